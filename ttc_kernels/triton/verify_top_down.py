"""Rules that go down from the root and test a node's children against its distribution."""

from __future__ import annotations

import triton
import triton.language as tl

from .draft_nodes import NODES, at, next_child
from .residual import Residual, coin, left_of, next_candidate, proposed, rejected, usable, whole


@triton.jit
def accept_by_one_coin(q, node, position):
    """SGLang's rule without its thresholds: each child is an interval of one coin."""
    u = coin(q, node, position, 0)
    accepted = tl.full([], NODES, tl.int32)
    total = tl.full([], 0.0, tl.float32)
    changed = tl.full([], False, tl.int1)
    child = next_child(q.nodes, node, 0)
    while child < NODES:
        total += left_of(q, node, child, 0.0)
        if u < total:
            accepted = child
            child = tl.full([], NODES, tl.int32)
        else:
            changed = tl.full([], True, tl.int1)
            child = next_child(q.nodes, node, child)
    return accepted, changed


@triton.jit
def accept_in_turn(q, node, position, BLOCK: tl.constexpr):
    """Leviathan et al. and, for more than one child, recursive rejection: each is tested against
    what the earlier ones have left."""
    r = whole()
    accepted = tl.full([], NODES, tl.int32)
    number = tl.full([], 0, tl.int32)
    child = next_candidate(q, node, 0)
    while child < NODES:
        u = coin(q, child, position, number)
        kept = left_of(q, node, child, r.c)
        share, rem = proposed(q, node, child, r.rem)
        if u * (share * r.mass) < kept * rem:
            accepted = child
            child = tl.full([], NODES, tl.int32)
        else:
            r = rejected(q, node, child, kept, 1.0, r, BLOCK)
            number += 1
            child = next_candidate(q, node, child)
    return accepted, r


@triton.jit
def top_down(q, RULE: tl.constexpr, BLOCK: tl.constexpr):
    """Where the walk ends: the node, and c and changed of its residual."""
    node = tl.full([], 0, tl.int32)
    r = whole()
    going = usable(q, node)
    while going:
        position = q.position + at(q.nodes.depth, node)
        if RULE == "target_only":
            child, changed = accept_by_one_coin(q, node, position)
            r = Residual(r.c, r.mass, r.rem, changed)
        else:
            child, r = accept_in_turn(q, node, position, BLOCK)
        going = child < NODES
        if going:
            node = child
            going = usable(q, node)
            r = whole()
    return node, r.c, r.changed
