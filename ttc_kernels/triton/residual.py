"""What rejected drafts leave of a node's distribution.

After any number of rejections it is max(p - c q, 0) / mass without the tokens of the one-hot ones:
three numbers, and the children that are over (csrc/verify/walk.h).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .draft_nodes import IID, NODES, ONE_HOT, WITHOUT_REPLACEMENT, at, has_earlier, next_child
from .draft_rows import LISTED, draft_probabilities, draft_probability, draft_row, list_block
from .fp32_math import from_fixed, log_fp32, noise_bound, to_fixed
from .race import NOBODY, beats, best_of, load_tile, may_reach, tile_noise
from .random_numbers import ACCEPT, Stream, coin_uniform, noise_blocks
from .row_dist import has_distribution, logits_of, probability, remainder_of, row_dist


class Request(NamedTuple):
    """All that a rule needs of one request."""

    rows: Any  # Rows: the target's, one for each node
    draft: Any  # DraftRows
    nodes: Any  # Nodes
    coins: Any  # given for each node, or None
    seed: Any
    position: Any  # of the token that follows node 0


class Residual(NamedTuple):
    c: Any
    mass: Any
    rem: Any  # the share of q that rejected siblings without replacement have left
    changed: Any  # whether a child was rejected


@triton.jit
def whole():
    """The residual of a node of which nothing was rejected."""
    one = tl.full([], 1.0, tl.float32)
    return Residual(one * 0.0, one, one, tl.full([], False, tl.int1))


@triton.jit
def usable(q, node):
    """Whether tokens can be drawn after a node."""
    return has_distribution(q.rows, q.nodes.begin + node)


@triton.jit
def target(q, node, token):
    """p of a token after a node."""
    r = q.nodes.begin + node
    return probability(row_dist(q.rows, r), logits_of(q.rows, r, token), token)


@triton.jit
def draft_of(q, node, token):
    """q of a token after a node that has a draft distribution."""
    return draft_probability(q.draft, draft_row(q.draft, q.nodes.begin + node), token)


@triton.jit
def is_one_hot(q, child):
    return at(q.nodes.proposal, child) == ONE_HOT


@triton.jit
def proposed(q, node, child, rem):
    """With what probability a child was drawn: q of it, over what rejected siblings without
    replacement have left. A chosen one was certain."""
    share = tl.full([], 1.0, tl.float32)
    if is_one_hot(q, child):
        rem = share
    else:
        share = draft_of(q, node, at(q.nodes.token, child))
    return share, rem


@triton.jit
def is_candidate(q, node, child):
    """Whether a draft can be accepted at all: not if its node has nothing that it could have been
    drawn from, nor as a second one where siblings differ. Padding is left out before."""
    proposal = at(q.nodes.proposal, child)
    from_row = draft_row(q.draft, q.nodes.begin + node) >= 0
    twice = has_earlier(q.nodes, node, child, WITHOUT_REPLACEMENT)
    drawn = from_row & ((proposal == IID) | (twice == 0))
    return (proposal == ONE_HOT) | drawn


@triton.jit
def next_candidate(q, node, after):
    """The first child of a node behind `after` that can be accepted; NODES for none."""
    child = next_child(q.nodes, node, after)
    while (child < NODES) & (is_candidate(q, node, child) == 0):
        child = next_child(q.nodes, node, child)
    return child


@triton.jit
def coin(q, node, position, number):
    """The coin of a node, uniform in [0, 1)."""
    if q.coins is not None:
        u = tl.load(q.coins + q.nodes.begin + node)
    else:
        u = coin_uniform(Stream(q.seed, position, ACCEPT, number))
    return u


@triton.jit
def left_of(q, node, child, c):
    """What the residual of a node keeps of a child, of which the earlier ones were rejected."""
    token = at(q.nodes.token, child)
    left = target(q, node, token)
    if c != 0.0:
        left = remainder_of(left, c, draft_of(q, node, token))
    return tl.where(has_earlier(q.nodes, node, child, ONE_HOT), 0.0, left)


@triton.jit
def rejected(q, node, child, kept, alpha, r, BLOCK: tl.constexpr):
    """The residual r of a node once one more child is rejected, of which it keeps so much."""
    c, mass, rem = r.c, r.mass, r.rem
    if is_one_hot(q, child):
        mass = tl.where(mass > kept, mass - kept, 0.0)
    else:
        scale = alpha * rem
        if scale > 0.0:
            c = c + tl.div_rn(mass, scale)
        mass = residual_mass(q, node, c, child, BLOCK)
        if at(q.nodes.proposal, child) == WITHOUT_REPLACEMENT:
            rem = rem - draft_of(q, node, at(q.nodes.token, child))
    return Residual(c, mass, rem, tl.full([], True, tl.int1))


@triton.jit
def residual_mass(q, node, c, end, BLOCK: tl.constexpr):
    """The sum of max(p - c q, 0), without the one-hot children before `end`."""
    r = q.nodes.begin + node
    dist = row_dist(q.rows, r)
    drafted = draft_row(q.draft, r)
    mass = tl.full([], 2**40, tl.int64)
    if q.draft.dense.logits is not None:
        total = tl.zeros([BLOCK], tl.int64)
        for start in tl.range(0, q.rows.vocab_size, BLOCK):
            index = start + tl.arange(0, BLOCK)
            p = probability(dist, logits_of(q.rows, r, index), index)
            total += to_fixed(remainder_of(p, c, draft_probabilities(q.draft, drafted, index)))
        mass = tl.sum(total)
    elif q.draft.ids is not None:  # all of p, less what the listed tokens lose
        for start in tl.range(0, q.draft.width, LISTED):
            index, share = list_block(q.draft, drafted, start)
            there = (index >= 0) & (index < q.rows.vocab_size)
            index = tl.where(there, index, q.rows.vocab_size)
            p = probability(dist, logits_of(q.rows, r, index), index)
            mass += tl.sum(to_fixed(remainder_of(p, c, share)) - to_fixed(p))
    child = next_child(q.nodes, node, 0)
    while child < end:
        if is_one_hot(q, child):
            mass -= to_fixed(left_of(q, node, child, c))
        child = next_child(q.nodes, node, child)
    return from_fixed(tl.maximum(mass, 0))


@triton.jit
def _not_one_hot(q, node, index):
    """Which tokens are none of the one-hot children's."""
    others = index >= 0
    child = next_child(q.nodes, node, 0)
    while child < NODES:
        if is_one_hot(q, child):
            others &= index != at(q.nodes.token, child)
        child = next_child(q.nodes, node, child)
    return others


@triton.jit
def race_left(q, node, stream, c, changed, BLOCK: tl.constexpr):
    """The winner among what the residual of a node has left, without its one-hot children if any
    was rejected; -1 if that is nothing."""
    r = q.nodes.begin + node
    dist = row_dist(q.rows, r)
    drafted = tl.full([], -1, tl.int64)
    if c != 0.0:
        drafted = draft_row(q.draft, r)
    best = tl.full([], float("-inf"), tl.float32)
    token = tl.full([], NOBODY, tl.int32)
    if dist.inv_temperature == 0.0:
        left = target(q, node, dist.argmax)
        if drafted >= 0:
            left = remainder_of(left, c, draft_probability(q.draft, drafted, dist.argmax))
        if changed:
            left = tl.where(_not_one_hot(q, node, dist.argmax), left, 0.0)
        token = tl.where(left > 0.0, dist.argmax, NOBODY)
    else:
        for start in tl.range(0, q.rows.vocab_size, BLOCK):
            block, index, logit = load_tile(q.rows, r, start, BLOCK)
            leasts, places = noise_blocks(stream, block)
            if may_reach(dist, logit, noise_bound(leasts), best):
                p = probability(dist, logit, index)
                left = p
                if drafted >= 0:
                    left = remainder_of(p, c, draft_probabilities(q.draft, drafted, index))
                if changed:
                    left = tl.where(_not_one_hot(q, node, index), left, 0.0)
                score = (logit - dist.max) * dist.inv_temperature
                part = left > 0.0
                score += log_fp32(tl.div_rn(tl.where(part, left, 1.0), tl.where(part, p, 1.0)))
                score += tile_noise(stream, start, index, leasts, places, BLOCK)
                tile_best, winner = best_of(tl.where(part, score, float("-inf")), index)
                if beats(tile_best, winner, best, token):
                    best, token = tile_best, winner
    return tl.where(token == NOBODY, -1, token)
