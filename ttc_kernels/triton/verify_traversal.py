"""Traversal verification, Weng et al., 2025 (2505.12398): from the leaves up."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .draft_nodes import NODES, at, set_at
from .residual import Residual, coin, left_of, next_candidate, proposed, rejected, usable


class _State(NamedTuple):
    """Of every node, a lane each."""

    alpha: Any  # the probability of acceptance
    c: Any  # these three as in Residual
    mass: Any
    rem: Any
    deleted: Any  # the last child that was deleted, 0 for none: the root is nobody's child


@triton.jit
def _path_acceptance(q, s, node, child):
    """alpha of a child that the walk comes to, at most 1."""
    kept, mass = left_of(q, node, child, at(s.c, node)), at(s.mass, node)
    alpha = tl.full([], 0.0, tl.float32)
    if (kept > 0.0) & (mass > 0.0):
        share, rem = proposed(q, node, child, at(s.rem, node))
        certain = share <= 0.0  # what was never drawn is not refused
        rem = tl.div_rn(rem, tl.where(certain, 1.0, share))
        alpha = at(s.alpha, node) * tl.div_rn(kept, mass)
        alpha = tl.where(certain, 1.0, alpha * rem)
    return tl.where(alpha < 1.0, alpha, 1.0)


@triton.jit
def _delete(q, s, node, child, BLOCK: tl.constexpr):
    """A leaf that failed leaves its parent a residual, and the parent a new chance."""
    alpha, mass = at(s.alpha, node), at(s.mass, node)
    r = Residual(at(s.c, node), mass, at(s.rem, node), True)
    r = rejected(q, node, child, left_of(q, node, child, r.c), alpha, r, BLOCK)
    left = alpha * tl.div_rn(r.mass, tl.where(mass > 0.0, mass, 1.0))
    left = tl.where(mass > 0.0, left, 0.0)
    total = left + (1.0 - alpha)
    alpha = tl.where(total > 0.0, tl.div_rn(left, tl.where(total > 0.0, total, 1.0)), 1.0)
    return _State(
        set_at(s.alpha, node, alpha), set_at(s.c, node, r.c), set_at(s.mass, node, r.mass),
        set_at(s.rem, node, r.rem), set_at(s.deleted, node, child),
    )  # fmt: skip


@triton.jit
def traversal(q, BLOCK: tl.constexpr):
    """Where the walk ends: the node, and c and changed of its residual."""
    ones = tl.full([NODES], 1.0, tl.float32)
    s = _State(ones, ones * 0.0, ones, ones, tl.zeros([NODES], tl.int32))
    node = tl.full([], 0, tl.int32)
    tests = tl.full([], 0, tl.int32)
    going = tl.full([], True, tl.int1)
    while going:
        child = tl.full([], NODES, tl.int32)
        if usable(q, node):
            child = next_candidate(q, node, at(s.deleted, node))
        if child < NODES:
            alpha = set_at(s.alpha, child, _path_acceptance(q, s, node, child))
            s = _State(alpha, s.c, s.mass, s.rem, s.deleted)
            node = child
        else:
            going = node > 0
            if going:
                going = coin(q, node, q.position, tests) >= at(s.alpha, node)
            if going:
                parent = at(q.nodes.parent, node)
                s = _delete(q, s, parent, node, BLOCK)
                node = parent
                tests += 1
    return node, at(s.c, node), at(s.deleted, node) > 0
