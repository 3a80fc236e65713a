"""The best formulation in plain torch: flash attention per level, merged by log-sum-exp.

A level is one batched call: all leaves below a node are the query rows of that node. Neighbouring
levels may be joined, at the price of copies of the upper one, which pays when nodes are small.
Which levels to join is found by timing the runs of levels, so that the plain cascade, the two-level
splits and one call per branch are among the candidates, wherever they do not copy far too much.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from .base import Problem, Run, Skip

# Runs of levels with so few tokens, copies included, are timed whatever they copy.
_ALWAYS_TIMED_TOKENS = 1 << 15

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

# Returns the output [num_queries, Hkv, group, D] and the lse [num_queries, Hkv, group].
_State = tuple[torch.Tensor, torch.Tensor]
_RunOfLevels = Callable[[], _State]


def build_cascade(problem: Problem) -> Run:
    """Choose the runs of levels and prepare the queries, keys and values of each, untimed.

    Raises:
        Skip: if the nodes of a level have different numbers of leaves.
    """
    tree = problem.tree
    if any(tree.num_queries % n for n in tree.nodes_per_level):
        raise Skip("leaves unevenly spread")
    runs = [_build_run(problem, first, last) for first, last in _choose_runs(problem)]

    def run() -> torch.Tensor:
        return _merge([levels() for levels in runs]).to(problem.q.dtype).flatten(1, 2)

    return run


def _build_run(problem: Problem, first: int, last: int) -> _RunOfLevels:
    tree = problem.tree
    nodes = tree.nodes_per_level[last]
    if first == last:
        start = int(tree.node_tokens(last)[0, 0])
        sizes = (nodes, tree.tokens_per_node[last])
        k, v = (
            x[:, start : start + sizes[0] * sizes[1]].unflatten(1, sizes).transpose(0, 1)
            for x in (problem.k, problem.v)
        )
    else:
        k, v = problem.kv_of(torch.from_numpy(tree.path_of_nodes(first, last)))
    # [nodes, Hkv, leaves below the node * group, D]
    leaves = tree.num_queries // nodes
    q = problem.folded_queries().unflatten(0, (nodes, leaves)).transpose(1, 2).flatten(2, 3)
    shape = (leaves, problem.group)

    def run() -> _State:
        out, lse = _flash(q, k, v)
        return (
            out.unflatten(2, shape).transpose(1, 2).flatten(0, 1),
            lse.unflatten(2, shape).transpose(1, 2).flatten(0, 1),
        )

    return run


def _merge(states: list[_State]) -> torch.Tensor:
    """Weigh the outputs by their share of the softmax's denominator, in float32."""
    if len(states) == 1:
        return states[0][0]
    weights = torch.stack([lse for _, lse in states]).softmax(0).unsqueeze(-1)
    merged = states[0][0] * weights[0]
    for (out, _), weight in zip(states[1:], weights[1:], strict=True):
        merged.addcmul_(out, weight)
    return merged


def _choose_runs(problem: Problem) -> list[tuple[int, int]]:
    """The cheapest way to cut the levels into runs, by dynamic programming over timed runs."""
    depth = problem.tree.depth
    state = _build_run(problem, depth - 1, depth - 1)()
    merge_s = _seconds(lambda: _merge([state, state])) / 2 if depth > 1 else 0.0
    # best[i] is the cheapest cut of the first i levels.
    best: list[tuple[float, list[tuple[int, int]]]] = [(0.0, [])]
    for last in range(depth):
        candidates = []
        for first in range(last + 1):
            if not _worth_timing(problem, first, last):
                continue
            try:
                cost = _seconds(_build_run(problem, first, last)) + merge_s
            except Skip:
                continue
            candidates.append((best[first][0] + cost, [*best[first][1], (first, last)]))
        best.append(min(candidates))
    return best[-1][1]


def _worth_timing(problem: Problem, first: int, last: int) -> bool:
    """Whether joining these levels copies little enough that it might pay.

    A run does the same products however it is cut; joining saves calls and merges, which cost
    microseconds, and pays with copies to read.
    """
    tree = problem.tree
    sizes = list(zip(tree.nodes_per_level, tree.tokens_per_node, strict=True))[first : last + 1]
    joined = sizes[-1][0] * sum(tokens for _, tokens in sizes)
    apart = sum(nodes * tokens for nodes, tokens in sizes)
    return joined <= max(2 * apart, _ALWAYS_TIMED_TOKENS)


def _seconds(fn: Callable[[], object]) -> float:
    times = []
    for _ in range(2):
        start = time.perf_counter()
        fn()
        times.append(time.perf_counter() - start)
    return min(times)
