"""Block verification of a chain, Sun et al., 2024 (2403.10444)."""

from __future__ import annotations

import triton
import triton.language as tl

from .draft_nodes import at
from .residual import coin, is_candidate, is_one_hot, proposed, residual_mass, target, usable


@triton.jit
def _drafts_in_front(q):
    """How many drafts there are before the first that cannot be accepted."""
    length = tl.full([], 0, tl.int32)
    going = usable(q, length)
    while going:
        draft = length + 1
        going = (draft < q.nodes.count) & (at(q.nodes.token, draft) >= 0)
        going &= is_candidate(q, length, draft) & usable(q, length)
        length += going.to(tl.int32)
    return length


@triton.jit
def _left_after(q, i, ratio, BLOCK: tl.constexpr):
    """Z_i of the paper: the sum of max(P_i p - q, 0) after i drafts."""
    z = tl.full([], 0.0, tl.float32)
    if ratio > 0.0:
        if is_one_hot(q, i + 1):
            p = target(q, i, at(q.nodes.token, i + 1))
            z = ratio * tl.where(p < 1.0, 1.0 - p, 0.0)
        else:
            z = ratio * residual_mass(q, i, tl.div_rn(1.0, ratio), 0, BLOCK)
    return z


@triton.jit
def block(q, BLOCK: tl.constexpr):
    """The longest prefix whose own test passes: its last node, and c and changed of its residual.
    There is no early stop."""
    length = _drafts_in_front(q)
    accepted = tl.full([], 0, tl.int32)
    ratio = tl.full([], 1.0, tl.float32)  # P_i of the paper
    accepted_ratio = ratio
    i = tl.full([], 1, tl.int32)
    while i <= length:
        share, _ = proposed(q, i - 1, i, ratio)
        numerator = ratio * target(q, i - 1, at(q.nodes.token, i))
        u = coin(q, i, q.position, i - 1)
        quotient = tl.div_rn(numerator, tl.where(share > 0.0, share, 1.0))
        certain = tl.where(numerator > 0.0, 1.0, 0.0)
        ratio = tl.where(share > 0.0, tl.where(quotient < 1.0, quotient, 1.0), certain)
        passes = u * share < numerator
        if i < length:
            z = _left_after(q, i, ratio, BLOCK)
            total = z + (1.0 - ratio)
            passes = (u * total < z) | (total <= 0.0)
        if passes:
            accepted = i
            accepted_ratio = ratio
        i += 1
    c = tl.full([], 0.0, tl.float32)
    if (accepted < length) & (is_one_hot(q, accepted + 1) == 0):
        c = tl.div_rn(1.0, accepted_ratio)
    return accepted, c, accepted < length
