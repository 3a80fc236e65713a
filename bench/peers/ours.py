"""ttc_kernels on the forest's pages."""

from __future__ import annotations

import time
from typing import Any

import torch

from ttc_kernels import TreeAttentionPlan, plan_tree_attention, tree_attention

from ..devices import synchronize
from .base import Problem, Run


class Ours:
    """Paged K and V of a problem, planned and ready to run.

    Args:
        problem: what to compute.
        deterministic: cut the work at fixed positions.
        backend: of `tree_attention`.
    """

    def __init__(
        self, problem: Problem, deterministic: bool = False, backend: str = "auto"
    ) -> None:
        self._problem = problem
        self._deterministic, self._backend = deterministic, backend
        forest = problem.forest
        draft = forest.draft_parents
        self._draft = None if draft is None else [list(draft)] * forest.num_rows
        self._k_cache, self._v_cache = problem.caches
        self._plan = self._make_plan()
        self._out = torch.empty_like(problem.q)

    @property
    def stats(self) -> dict[str, Any]:
        """What the plan says about itself."""
        return dict(self._plan.stats)

    def plan_seconds(self, repeats: int = 10) -> float:
        """Median seconds of making the plan from block tables and lengths, upload included."""
        times = []
        for _ in range(repeats):
            synchronize(self._problem.device)
            start = time.perf_counter()
            self._make_plan()
            synchronize(self._problem.device)
            times.append(time.perf_counter() - start)
        return sorted(times)[repeats // 2]

    def __call__(self) -> torch.Tensor:
        """Attention with the plan at hand."""
        out, _ = tree_attention(
            self._problem.q,
            self._k_cache,
            self._v_cache,
            self._plan,
            out=self._out,
            backend=self._backend,
        )
        return out

    def _make_plan(self) -> TreeAttentionPlan:
        q, k = self._problem.q, self._problem.k
        return plan_tree_attention(
            self._problem.pages.block_tables,
            self._problem.pages.kv_lens,
            self._problem.forest.query_counts,
            page_size=self._problem.page_size,
            num_q_heads=q.shape[1],
            num_kv_heads=k.shape[0],
            head_dim=q.shape[2],
            dtype=q.dtype,
            device=q.device,
            draft_parents=self._draft,
            deterministic=self._deterministic,
        )


def build_deterministic(problem: Problem) -> Run:
    """Our kernels with a plan that cuts at fixed positions."""
    return Ours(problem, deterministic=True)


def build_in_triton(problem: Problem) -> Run:
    """Our Triton kernels, beside those in CUDA."""
    return Ours(problem, backend="triton")
