"""torch's scaled_dot_product_attention, every branch reading its own copy of its path."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .base import Problem, Run


def build_sdpa(problem: Problem) -> Run:
    """All branches in one batched call; the gathering of their paths is not timed.

    All paths of a tree are of one length here, so that the batch has no padding.

    Raises:
        Skip: if the gathered paths need too much memory.
    """
    tree = problem.tree
    if tree.depth == 1:
        sizes = (tree.num_queries, tree.tokens_per_node[0])
        k, v = (x.unflatten(1, sizes).transpose(0, 1) for x in (problem.k, problem.v))
    else:
        k, v = problem.kv_of(torch.from_numpy(tree.path_of_nodes(0, tree.depth - 1)))
    q = problem.folded_queries()
    return lambda: F.scaled_dot_product_attention(q, k, v).flatten(1, 2)
