"""torch's scaled_dot_product_attention, every branch reading its own copy of its path."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from .base import Problem, Run


def build_sdpa(problem: Problem) -> Run:
    """All branches in one batched call if they are alike, else a call for each; copies untimed.

    Raises:
        Skip: if the gathered paths need too much memory.
    """
    forest = problem.forest
    lens, counts = forest.kv_lens, forest.query_counts
    problem.require_bytes(forest.path_tokens)
    if (lens == lens[0]).all() and (counts == counts[0]).all():
        return _batched(problem, list(range(forest.num_rows)))
    # Rows of one shape share a call.
    shapes: dict[tuple[int, int], list[int]] = {}
    for row, shape in enumerate(zip(lens.tolist(), counts.tolist(), strict=True)):
        shapes.setdefault(shape, []).append(row)
    runs = [(_queries(problem, rows), _batched(problem, rows)) for rows in shapes.values()]
    out = torch.empty_like(problem.q)

    def run() -> torch.Tensor:
        for queries, part in runs:
            out[queries] = part()
        return out

    return run


def _queries(problem: Problem, rows: list[int]) -> torch.Tensor:
    ptr = problem.forest.query_ptr
    index = np.concatenate([np.arange(ptr[row], ptr[row + 1]) for row in rows])
    return torch.from_numpy(index).to(problem.device)


def _batched(problem: Problem, rows: list[int]) -> Run:
    """Rows of equal length and equally many queries."""
    forest = problem.forest
    k, v = problem.kv_of(np.stack([forest.row_tokens[row] for row in rows]))
    count = int(forest.query_counts[rows[0]])
    q = problem.folded_queries()
    if len(rows) < forest.num_rows:
        q = q[_queries(problem, rows)]
    if count == 1:
        return lambda: F.scaled_dot_product_attention(q, k, v).flatten(1, 2)
    mask = torch.stack([problem.mask_of(row) for row in rows])[:, None]
    # [rows, Hkv, count * group, D]; the mask's rows are repeated for the group.
    q = q.unflatten(0, (len(rows), count)).permute(0, 2, 1, 3, 4).flatten(2, 3)
    mask = mask.repeat_interleave(problem.group, 2)

    def run() -> torch.Tensor:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out = out.unflatten(2, (count, problem.group)).permute(0, 2, 1, 3, 4)
        return out.flatten(0, 1).flatten(1, 2)

    return run
