"""torch's scaled_dot_product_attention, every branch reading its own copy of its path."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from ..devices import best_seconds
from .base import Problem, Run, Skip


def build_sdpa(problem: Problem) -> Run:
    """All branches in one batched call if they are alike; copies are not timed.

    Else the faster of one padded call with a mask and one call for each length.

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

    if (counts != counts[0]).any() or forest.draft_parents is not None:
        return run
    try:
        padded = _padded(problem)
    except Skip:
        return run
    return min((run, padded), key=lambda fn: best_seconds(fn, problem.device, 2))


def _padded(problem: Problem) -> Run:
    """Rows of equally many queries but different lengths, shorter ones padded in front."""
    forest = problem.forest
    longest = int(forest.kv_lens.max())
    tokens = np.zeros((forest.num_rows, longest), np.int64)
    count = int(forest.query_counts[0])
    mask = torch.zeros(forest.num_rows, 1, count, longest, dtype=torch.bool)
    for row, path in enumerate(forest.row_tokens):
        tokens[row, longest - len(path) :] = path
        mask[row, 0, :, longest - len(path) :] = problem.mask_of(row).cpu()
    return _masked(problem, *problem.kv_of(tokens), mask.to(problem.device), count)


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
    return _masked(problem, k, v, mask, count, q)


def _masked(
    problem: Problem,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    count: int,
    q: torch.Tensor | None = None,
) -> Run:
    """One call with a mask, the rows' queries `q` (default all) with `count` for each row."""
    q = problem.folded_queries() if q is None else q
    # [rows, Hkv, count * group, D]; the mask's rows are repeated for the group.
    q = q.unflatten(0, (len(k), count)).permute(0, 2, 1, 3, 4).flatten(2, 3)
    mask = mask.repeat_interleave(problem.group, 2)

    def run() -> torch.Tensor:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out = out.unflatten(2, (count, problem.group)).permute(0, 2, 1, 3, 4)
        return out.flatten(0, 1).flatten(1, 2)

    return run
