"""The best formulation in plain torch: flash attention per level, merged by log-sum-exp.

A level is one batched call: all leaves below a node are the query rows of that node. Neighbouring
levels may be joined, at the price of copies of the upper one, which pays when nodes are small.
Which levels to join is found by timing the runs of levels, so that the plain cascade, the two-level
splits and one call per branch are among the candidates, wherever they do not copy far too much.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..devices import best_seconds
from ..tree import Tree
from .base import Problem, Run, Skip
from .flash import State, flash, merge
from .levels import build_levels

# Runs of levels with so few tokens, copies included, are timed whatever they copy.
_ALWAYS_TIMED_TOKENS = 1 << 15

# Returns the output [num_queries, Hkv, group, D] and the lse [num_queries, Hkv, group].
_RunOfLevels = Callable[[], State]


def build_cascade(problem: Problem, two_levels: bool = False) -> Run:
    """Choose the runs of levels and prepare the queries, keys and values of each, untimed.

    A forest without uniform levels is cut at its nodes, see `build_levels`.

    Args:
        problem: what to compute.
        two_levels: cut once at most, as engines with a shared prefix do.

    Raises:
        Skip: if there is no such cascade, with the reason.
    """
    if not isinstance(problem.forest, Tree):
        return build_levels(problem, two_levels)
    tree = problem.forest
    if any(tree.num_queries % n for n in tree.nodes_per_level):
        return build_levels(problem, two_levels)
    chosen = _choose_runs(problem, two_levels)
    runs = [_build_run(problem, first, last) for first, last in chosen]

    def run() -> torch.Tensor:
        return merge([levels() for levels in runs]).to(problem.q.dtype).flatten(1, 2)

    return run


def build_two_level_cascade(problem: Problem) -> Run:
    """The cascade with one shared part and one part per branch."""
    return build_cascade(problem, two_levels=True)


def _build_run(problem: Problem, first: int, last: int) -> _RunOfLevels:
    tree = problem.need_tree()
    nodes = tree.nodes_per_level[last]
    if first == last:
        start = int(tree.node_tokens(last)[0, 0])
        sizes = (nodes, tree.tokens_per_node[last])
        k, v = (
            x[:, start : start + sizes[0] * sizes[1]].unflatten(1, sizes).transpose(0, 1)
            for x in (problem.k, problem.v)
        )
    else:
        k, v = problem.kv_of(tree.path_of_nodes(first, last))
    # [nodes, Hkv, leaves below the node * group, D]
    leaves = tree.num_queries // nodes
    q = problem.folded_queries().unflatten(0, (nodes, leaves)).transpose(1, 2).flatten(2, 3)
    shape = (leaves, problem.group)

    def run() -> State:
        out, lse = flash(q, k, v)
        return (
            out.unflatten(2, shape).transpose(1, 2).flatten(0, 1),
            lse.unflatten(2, shape).transpose(1, 2).flatten(0, 1),
        )

    return run


def _choose_runs(problem: Problem, two_levels: bool) -> list[tuple[int, int]]:
    """The cheapest way to cut the levels into runs, by dynamic programming over timed runs."""
    tree = problem.need_tree()
    depth = tree.depth
    state = _build_run(problem, depth - 1, depth - 1)()
    merge_s = _seconds(problem, lambda: merge([state, state])) / 2 if depth > 1 else 0.0
    # best[i] is the cheapest cut of the first i levels.
    best: list[tuple[float, list[tuple[int, int]]]] = [(0.0, [])]
    for last in range(depth):
        candidates = [(float("inf"), [(0, last)])]
        for first in range(last + 1):
            if two_levels and first and (last < depth - 1 or len(best[first][1]) > 1):
                continue
            if not two_levels and not _worth_timing(tree, first, last):
                continue
            try:
                cost = _seconds(problem, _build_run(problem, first, last)) + merge_s
            except Skip:
                continue
            candidates.append((best[first][0] + cost, [*best[first][1], (first, last)]))
        best.append(min(candidates))
    if best[-1][0] == float("inf"):
        raise Skip("every cut needs too much memory")
    return best[-1][1]


def _worth_timing(tree: Tree, first: int, last: int) -> bool:
    """Whether joining these levels copies little enough that it might pay.

    A run does the same products however it is cut; joining saves calls and merges, which cost
    microseconds, and pays with copies to read.
    """
    sizes = list(zip(tree.nodes_per_level, tree.tokens_per_node, strict=True))[first : last + 1]
    joined = sizes[-1][0] * sum(tokens for _, tokens in sizes)
    apart = sum(nodes * tokens for nodes, tokens in sizes)
    return joined <= max(2 * apart, _ALWAYS_TIMED_TOKENS)


def _seconds(problem: Problem, fn: Callable[[], object]) -> float:
    return best_seconds(fn, problem.device, 2 if problem.device.type == "cpu" else 5)
