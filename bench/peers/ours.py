"""ttc_kernels on the tree's pages."""

from __future__ import annotations

import time

import torch

from ttc_kernels import TreeAttentionPlan, plan_tree_attention, tree_attention

from .base import Problem


class Ours:
    """Paged K and V of a problem, planned and ready to run.

    Unused slots hold NaN: reading one spoils the result, which is checked.

    Args:
        problem: what to compute.
        page_size: tokens in a page.
        deterministic: cut the work at fixed positions.
    """

    def __init__(self, problem: Problem, page_size: int, deterministic: bool = False) -> None:
        self._problem = problem
        self._deterministic = deterministic
        self._page_size = page_size
        pages = problem.tree.pages(page_size)
        self._block_tables, self._kv_lens = pages.block_tables, pages.kv_lens
        tokens = torch.from_numpy(pages.page_tokens)
        self._k_cache, self._v_cache = (_paged(x, tokens) for x in (problem.k, problem.v))
        self._plan = self._make_plan()
        self._out = torch.empty_like(problem.q)

    @property
    def stats(self) -> dict[str, object]:
        """What the plan says about itself."""
        return dict(self._plan.stats)

    def plan_seconds(self, repeats: int = 10) -> float:
        """Median seconds of making the plan from block tables and lengths."""
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            self._make_plan()
            times.append(time.perf_counter() - start)
        return sorted(times)[repeats // 2]

    def __call__(self) -> torch.Tensor:
        """Attention with the plan at hand."""
        out, _ = tree_attention(
            self._problem.q, self._k_cache, self._v_cache, self._plan, out=self._out
        )
        return out

    def _make_plan(self) -> TreeAttentionPlan:
        q, k = self._problem.q, self._problem.k
        return plan_tree_attention(
            self._block_tables,
            self._kv_lens,
            page_size=self._page_size,
            num_q_heads=q.shape[1],
            num_kv_heads=k.shape[0],
            head_dim=q.shape[2],
            dtype=q.dtype,
            device=q.device,
            deterministic=self._deterministic,
        )


def _paged(unique: torch.Tensor, page_tokens: torch.Tensor) -> torch.Tensor:
    """Copy [Hkv, unique_tokens, D] to [num_pages, page_size, Hkv, D]."""
    num_heads, _, dim = unique.shape
    cache = unique.new_empty(*page_tokens.shape, num_heads, dim)
    tokens = page_tokens.clamp(min=0)
    for head in range(num_heads):
        cache[:, :, head] = unique[head, tokens]
    cache[page_tokens < 0] = float("nan")
    return cache
