"""A search through the page pool, the plan and the attention of one layer, with its peers."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ttc_kernels import (
    Branch,
    PagePool,
    TreeAttentionPlan,
    copy_pages,
    plan_tree_attention,
    tree_attention,
)

from .devices import Clock, synchronize
from .measure import check
from .peers import PEERS, Problem, Run, Skip
from .roofline import Roofline
from .search import Path, Search, Step, forest_of
from .timing import in_turn


@dataclass
class ReplayResult:
    """Figures of one search. Seconds of one layer, means over the steps unless named otherwise."""

    search: str
    dtype: str
    heads: tuple[int, int]
    steps: int = 0
    births: int = 0
    deaths: int = 0
    new_plans: int = 0
    live: tuple[int, float, int] = (0, 0.0, 0)
    pool_s: float = 0.0
    new_plan_s: float = 0.0
    update_s: float = 0.0
    plan_s_per_step: float = 0.0
    attention_s: float = 0.0
    floor_s: float = 0.0
    model_s: float = 0.0
    unique_tokens: float = 0.0
    path_tokens: float = 0.0
    samples: int = 0
    peers: dict[str, dict[str, Any]] = field(default_factory=dict)

    def plan_share(self, layers: int) -> float:
        """Part of a step's time that goes into planning, where one plan serves so many layers."""
        return self.plan_s_per_step / (self.plan_s_per_step + layers * self.attention_s)


class Replay:
    """One layer's caches, the pool and the plan of a running search.

    Args:
        search: whose life it is.
        heads: query heads and KV heads.
        head_dim: elements per head.
        dtype: of the caches.
        device: where they are.
        reserve: tokens for which pages are taken ahead, so that an append needs no new plan.
        num_pages: of the pool.
        page_size: tokens in a page.
        deterministic: plan with fixed cuts.
        backend: of `tree_attention`.
    """

    def __init__(
        self,
        search: Search,
        heads: tuple[int, int],
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        reserve: int = 64,
        num_pages: int = 1 << 13,
        page_size: int = 16,
        deterministic: bool = False,
        backend: str = "auto",
    ) -> None:
        self._search, self._heads, self._reserve = search, heads, reserve
        self._device, self._backend = device, backend
        self.pool = PagePool(num_pages, page_size)
        shape = (num_pages, page_size, heads[1], head_dim)
        k, v = (torch.randn(shape, device=device).to(dtype) for _ in range(2))
        self.caches = (k, v)
        prompt = self.pool.new_branch()
        prompt.append(search.prompt)
        self._branches: dict[Path, Branch] = {(): prompt}
        self.sizes: dict[Path, int] = {(): search.prompt}
        self._lens: dict[Path, int] = {(): search.prompt}
        self.live: list[Path] = []
        self.plan: TreeAttentionPlan | None = None
        self._options: dict[str, Any] = {
            "page_size": page_size,
            "num_q_heads": heads[0],
            "num_kv_heads": heads[1],
            "head_dim": head_dim,
            "dtype": dtype,
            "device": device,
            "deterministic": deterministic,
        }
        self.pool_s: list[float] = []
        self.plan_s: list[float] = []
        self.update_s: list[float] = []

    def step(self, step: Step) -> None:
        """Births, deaths and one token for every live branch; then the plan is ready."""
        start = time.perf_counter()
        for path in step.dead:
            self._branches.pop(path).free()
            del self._lens[path]
        for path, count in step.forks:
            parent = self._branches.pop(path)
            length = self._lens.pop(path)
            parent.truncate(length)
            for child, branch in enumerate(parent.fork(count)):
                birth = (*path, child)
                self._branches[birth], self._lens[birth] = branch, length
                self.sizes[birth] = 0
            parent.free()
        for path in step.live:
            self._lens[path] += 1
            self.sizes[path] += 1
        self.live = step.live
        branches = [self._branches[path] for path in step.live]
        lens = np.array([self._lens[path] for path in step.live], np.int32)
        is_short = any(b.length < n for b, n in zip(branches, lens.tolist(), strict=True))
        if is_short:
            for branch, length in zip(branches, lens.tolist(), strict=True):
                branch.append(length + self._reserve - branch.length)
        copies = self.pool.take_copies()
        self.pool_s.append(time.perf_counter() - start)
        if len(copies):
            k, v = self.caches
            copy_pages([k], [v], torch.from_numpy(copies).to(self._device))
        if step.is_new_topology or is_short or self.plan is None:
            self.plan_s.append(self._timed(lambda: self._make_plan(branches, lens)))
        else:
            self.update_s.append(self._timed(functools.partial(self.plan.update, lens)))

    def problem(self, max_bytes: int) -> tuple[Problem, Run]:
        """This step's attention for the peers, and our own run of it with the plan at hand."""
        forest, first = forest_of(self._search.name, self.sizes, self.live)
        page_size, slots = self.pool.page_size, []
        for node, path in enumerate(first):
            table = self._branches[path].pages
            at = np.arange(forest.ends[node] - forest.sizes[node], forest.ends[node])
            slots.append(table[at // page_size].astype(np.int64) * page_size + at % page_size)
        index = torch.from_numpy(np.concatenate(slots)).to(self._device)
        k, v = (x.flatten(0, 1)[index].transpose(0, 1).contiguous() for x in self.caches)
        q = torch.randn(len(self.live), self._heads[0], k.shape[2], device=self._device)
        q = q.to(k.dtype)
        plan, out = self.plan, torch.empty_like(q)
        assert plan is not None  # a step was taken

        def run() -> torch.Tensor:
            return tree_attention(q, *self.caches, plan, out=out, backend=self._backend)[0]

        return Problem(forest, q, k, v, max_bytes, page_size), run

    def _make_plan(self, branches: list[Branch], lens: np.ndarray) -> None:
        reserved = np.array([branch.length for branch in branches], np.int32)
        tables = self.pool.block_tables(branches)
        self.plan = plan_tree_attention(tables, lens, reserved_lens=reserved, **self._options)

    def _timed(self, fn: Callable[[], None]) -> float:
        synchronize(self._device)
        start = time.perf_counter()
        fn()
        synchronize(self._device)
        return time.perf_counter() - start


def replay(
    run: Replay,
    steps: list[Step],
    result: ReplayResult,
    limit: Roofline,
    clock: Clock,
    peers: list[str],
    samples: int,
    rounds: int,
    max_bytes: int,
) -> None:
    """Replay a search, measure attention at some steps and fill in the result."""
    chosen = set(np.linspace(0, len(steps) - 1, min(samples, len(steps))).astype(int).tolist())
    rows: list[dict[str, float]] = []
    for number, step in enumerate(steps):
        run.step(step)
        if number in chosen:
            rows.append(_sample(run, result, limit, clock, peers, rounds, max_bytes))
            print(f"{result.search}: step {number} of {len(steps)}", file=sys.stderr, flush=True)
    run.pool.check_integrity()
    counts = [len(step.live) for step in steps]
    result.live = (min(counts), float(np.mean(counts)), max(counts))
    result.steps, result.samples = len(steps), len(rows)
    result.births = sum(count for step in steps for _, count in step.forks)
    result.deaths = sum(len(step.dead) for step in steps)
    result.new_plans = len(run.plan_s)
    result.pool_s = float(np.mean(run.pool_s))
    result.new_plan_s = float(np.median(run.plan_s))
    result.update_s = float(np.median(run.update_s)) if run.update_s else 0.0
    result.plan_s_per_step = (sum(run.plan_s) + sum(run.update_s)) / len(steps)
    for name in ("attention_s", "floor_s", "model_s", "unique_tokens", "path_tokens"):
        setattr(result, name, float(np.mean([row[name] for row in rows])))
    for name in peers:
        # Both sides over the steps that the peer could do.
        common = [row for row in rows if name in row]
        if common:
            theirs = sum(row[name] for row in common)
            result.peers[name]["ratio"] = theirs / sum(row["attention_s"] for row in common)
            result.peers[name]["samples"] = len(common)


def _sample(
    run: Replay,
    result: ReplayResult,
    limit: Roofline,
    clock: Clock,
    peers: list[str],
    rounds: int,
    max_bytes: int,
) -> dict[str, float]:
    """Check and time one step's attention."""
    problem, ours = run.problem(max_bytes)
    _, wrong = check(ours, problem)
    if wrong:
        raise RuntimeError(f"replay: attention {wrong}")
    contenders: dict[str, Run] = {"attention_s": ours}
    for name in peers:
        outcome = result.peers.setdefault(name, {})
        try:
            contenders[name] = PEERS[problem.device.type][name](problem)
            _, wrong = check(contenders[name], problem)
        except Exception as error:
            if not isinstance(error, Skip) and problem.device.type == "cpu":
                raise
            wrong = f"{type(error).__name__}: {error}".splitlines()[0]
        if wrong:
            outcome["skipped"] = wrong
            contenders.pop(name, None)
    forest = problem.forest
    dim, itemsize = problem.q.shape[2], problem.q.dtype.itemsize
    plan = run.plan
    assert plan is not None  # a step was taken
    row = {
        "floor_s": limit.floor_s(forest, result.heads, dim, itemsize),
        "model_s": limit.model_s(plan.stats, result.heads, dim, 2 if plan.stats["partials"] else 1),
        "unique_tokens": float(forest.unique_tokens),
        "path_tokens": float(forest.path_tokens),
    }
    timings: dict[str, float] = {}
    for mode in clock.modes:
        # The first mode that works for a contender counts, as a multiple of ours in that mode.
        todo = {name: fn for name, fn in contenders.items() if name not in timings}
        if todo:
            measured = in_turn({"attention_s": ours, **todo}, rounds, clock=clock, mode=mode)
            if "attention_s" in measured:
                unit = timings.setdefault("attention_s", measured["attention_s"].median)
                for name in set(measured) & set(todo) - {"attention_s"}:
                    ratio = measured[name].median / measured["attention_s"].median
                    timings[name] = ratio * unit
    return {**row, **timings}
