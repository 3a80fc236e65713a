"""Typical acceptance, Cai et al. (Medusa), 2024 (2401.10774); not lossless."""

from __future__ import annotations

import triton
import triton.language as tl

from .draft_nodes import NODES, at
from .fp32_math import exp_fp32, from_fixed, to_fixed
from .residual import usable
from .row_dist import log_probability, logits_of, probability, row_dist


@triton.jit
def _entropy(q, r, dist, BLOCK: tl.constexpr):
    """Of a row, in nats."""
    total = tl.zeros([BLOCK], tl.int64)
    for start in tl.range(0, q.rows.vocab_size, BLOCK):
        index = start + tl.arange(0, BLOCK)
        logit = logits_of(q.rows, r, index)
        p = probability(dist, logit, index)
        below = tl.where(p > 0.0, logit - dist.max, 0.0)
        total += to_fixed(p * (dist.log_z - below * dist.inv_temperature))
    return from_fixed(tl.sum(total))


@triton.jit
def typical(q, epsilon, delta, BLOCK: tl.constexpr):
    """The deepest accepted node, the likelier path on a tie, then the lower index."""
    lane = tl.arange(0, NODES)
    lowest = float("-inf")
    likelihood = tl.where(lane == 0, 0.0, lowest)  # of the path to a node, -inf: not accepted
    node = tl.full([], 0, tl.int32)
    while node < q.nodes.count:
        children = (q.nodes.parent == node) & (q.nodes.token >= 0)
        sum = at(likelihood, node)
        if (sum > lowest) & usable(q, node) & (tl.max(children.to(tl.int32)) > 0):
            r = q.nodes.begin + node
            dist = row_dist(q.rows, r)
            token = tl.where(children, q.nodes.token, q.rows.vocab_size)
            logit = logits_of(q.rows, r, token)
            bound = delta * exp_fp32(-_entropy(q, r, dist, BLOCK))
            passes = probability(dist, logit, token) > tl.where(epsilon < bound, epsilon, bound)
            found = sum + log_probability(dist, logit, token)
            likelihood = tl.where(children & passes, found, likelihood)
        node += 1
    depth = tl.where(likelihood > lowest, q.nodes.depth, -1)
    likelihood = tl.where(depth == tl.max(depth), likelihood, lowest)
    return tl.min(tl.where(likelihood == tl.max(likelihood), lane, NODES))
