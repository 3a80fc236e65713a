"""The nodes of one request's draft tree, a lane to a node.

    lane     0    1    2    3    4  ...  255     0 [the] +- 1 [cat] +- 3 [sat]
    parent  -1    0    0    1    1        -1             |          +- 4 [is]
    token  the  cat  dog  sat   is        -1             +- 2 [dog]

Children of a node are the lanes with that parent, in rising order, so nothing has to be linked and
nothing is kept in memory.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

NODES = tl.constexpr(256)  # kMaxDraftNodes in csrc/verify/verify.h
ONE_HOT, IID, WITHOUT_REPLACEMENT = (tl.constexpr(i) for i in range(3))


class Trees(NamedTuple):
    """Requests of draft nodes, as a kernel takes them: the tensors of the op `verify`."""

    tokens: Any
    parent: Any  # or None: chains
    cu_nodes: Any
    num_nodes: Any
    proposals: Any  # or None: all one-hot


class Nodes(NamedTuple):
    begin: Any  # the row of node 0
    count: Any
    parent: Any
    token: Any  # -1 outside the vocabulary: padding
    proposal: Any
    depth: Any


@triton.jit
def load_nodes(trees, request, vocab_size, width):
    """The nodes of a request, and whether they are a tree that fits the outputs."""
    lane = tl.arange(0, NODES)
    begin = tl.load(trees.cu_nodes + request).to(tl.int64)
    count = (tl.load(trees.cu_nodes + request + 1) - begin).to(tl.int32)
    is_tree = (count >= 0) & (count <= NODES) & (begin >= 0) & (begin + count <= trees.num_nodes)
    inside = (lane < count) & is_tree
    if trees.parent is None:
        parent = tl.where(inside, lane - 1, -1)
        depth = tl.where(inside, lane, 0)
    else:
        parent = tl.load(trees.parent + begin + lane, mask=inside, other=-1)
        before = tl.where(lane == 0, parent == -1, (parent >= 0) & (parent < lane))
        is_tree &= tl.min((before | (lane >= count)).to(tl.int32)) > 0
        depth = tl.zeros([NODES], tl.int32)
        above = tl.where(is_tree, parent, -1)
        while tl.max(above) >= 0:
            depth += (above >= 0).to(tl.int32)
            above = tl.load(trees.parent + begin + above, mask=above >= 0, other=-1)
    is_tree &= tl.max(depth) < width
    token = tl.load(trees.tokens + begin + lane, mask=inside, other=-1)
    token = tl.where((token >= 0) & (token < vocab_size), token, -1)
    proposal = tl.zeros([NODES], tl.int32)
    if trees.proposals is not None:
        proposal = tl.load(trees.proposals + begin + lane, mask=inside, other=0).to(tl.int32)
    return Nodes(begin, count, parent, token, proposal, depth), is_tree


@triton.jit
def at(values, node):
    """The value of one node."""
    return tl.sum(tl.where(tl.arange(0, NODES) == node, values, tl.zeros_like(values)))


@triton.jit
def set_at(values, node, value):
    return tl.where(tl.arange(0, NODES) == node, value, values)


@triton.jit
def next_child(nodes, node, after):
    """The first child of a node behind the node `after`, padding aside; NODES for none."""
    lane = tl.arange(0, NODES)
    there = (nodes.parent == node) & (lane > after) & (nodes.token >= 0)
    return tl.min(tl.where(there, lane, NODES))


@triton.jit
def has_earlier(nodes, node, child, proposal):
    """Whether a child has an earlier sibling of its token that was chosen in a certain way."""
    same = (nodes.parent == node) & (tl.arange(0, NODES) < child)
    same &= (nodes.token == at(nodes.token, child)) & (nodes.proposal == proposal)
    return tl.max(same.to(tl.int32)) > 0
