"""The plan object: its buffers, and what may change after planning."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from ._host import PlanOptions
from ._host import plan as _host_plan
from ._plan_input import OP, block_table_arrays, draft_arrays, int_vector

# csrc/common/plan_layout.h: length of the header, and PlanHeader::max_page
_HEADER_INTS, _HEADER_MAX_PAGE = 32, 14
# csrc/tree_attention/cuda_params.h: counters before those of (query, KV head)
_ARRIVALS = 2


class Chunks(NamedTuple):
    """Deterministic plans cut at multiples of `tokens`; `fold`: the kernel can fold chunks."""

    tokens: int
    fold: bool


CHUNKS = {"cpu": Chunks(128, True), "cuda": Chunks(256, False)}


@dataclass(frozen=True)
class PlanCapacity:
    """The largest plan that a plan's buffers can hold.

    Attributes:
        rows: rows of the block tables.
        queries: query tokens of all rows.
        ints: length of `plan.buffer`.
        partials: partial results that `plan.workspace` has room for.
    """

    rows: int
    queries: int
    ints: int
    partials: int

    @classmethod
    def for_batch(
        cls, rows: int, max_kv_len: int, *, page_size: int, max_q_len: int = 1
    ) -> PlanCapacity:
        """Room for every deterministic plan of a batch, and for nearly all others.

        Only plans cut by cost for trees with many more forks than `max_kv_len / 128` on one path
        can be larger; `plan.replan` then raises.

        Args:
            rows: largest number of rows.
            max_kv_len: longest row, in tokens, reserved ones included.
            page_size: tokens per page.
            max_q_len: most query tokens of a row.

        Example:
            >>> PlanCapacity.for_batch(8, 1024, page_size=16).queries
            8
        """
        queries = rows * max_q_len
        chunks = -(-max_kv_len // 128) + 4
        items = queries * chunks
        pages = rows * (-(-max_kv_len // page_size) + chunks)
        ints = _HEADER_INTS + rows + 8 * items + pages + (3 + 4 + 2 + 1) * queries + items + 128
        return cls(rows, queries, ints, items)


class TreeAttentionPlan:
    """What one `tree_attention` call does: work items, pages, lengths, merge lists.

    Made by `plan_tree_attention`; valid for every layer of a model as long as the rows, their
    pages and their query lengths stay as they are. Addresses of `buffer` and `workspace` never
    change, so a captured CUDA graph stays valid through `update` and `replan`. Calls with one plan
    must not run at the same time.

    Attributes:
        buffer: int32 [capacity.ints] on `device`, the plan as the kernels read it.
        workspace: float32 [capacity.partials * Hq * (D + 2)] on a GPU, where items leave partial
            results; None on the CPU.
        counters: int32 [2 + capacity.queries * Hkv] on a GPU, zero between calls, by which blocks
            agree on who merges; None on the CPU.
        stats: what was decided and why: `unique_kv_tokens`, `path_kv_tokens`, `work_items`,
            `partials`, `kv_bytes` (each page range an item covers, counted once however many query
            tiles read it), `kv_bytes_read` (every read), `flops`, `plan_us`, `decision`.
        num_queries: T, the rows of q that the plan expects.
        max_page: the largest page id in use, -1 if none.
        capacity: the largest plan that fits, a `PlanCapacity`.
        dtype: of q. kv_dtype: of the caches. device: where the attention runs.
    """

    buffer: torch.Tensor
    workspace: torch.Tensor | None
    counters: torch.Tensor | None
    stats: dict[str, Any]
    num_queries: int
    max_page: int
    capacity: PlanCapacity

    def __init__(
        self,
        rows: tuple[Any, Any, Any, Any, Any],
        options: dict[str, Any],
        dtype: torch.dtype,
        kv_dtype: torch.dtype,
        device: torch.device,
        capacity: PlanCapacity | None,
    ) -> None:
        self._options = options
        self._plan_options = PlanOptions(**options)
        self.dtype, self.kv_dtype, self.device = dtype, kv_dtype, device
        self._make(*rows, capacity)

    def _make(
        self,
        block_tables: Any,
        kv_lens: Any,
        q_lens: Any,
        draft_parents: Sequence[Any] | None,
        reserved_lens: Any,
        capacity: PlanCapacity | None,
    ) -> None:
        """Plan, and put the plan into new buffers, or into the present ones if they exist."""
        start = time.perf_counter()
        lens = int_vector(kv_lens, "kv_lens")
        size = len(lens)
        queries = np.ones_like(lens) if q_lens is None else int_vector(q_lens, "q_lens", size)
        reserved = (
            None if reserved_lens is None else int_vector(reserved_lens, "reserved_lens", size)
        )
        parents = draft_arrays(draft_parents, queries)
        tables = block_table_arrays(block_tables, size)
        staging = None
        num_queries = 0

        def allocate(rows: int, queries: int, ints: int, partials: int) -> np.ndarray:
            """Where the planner writes: the buffer itself, or pinned memory on its way to a GPU."""
            nonlocal staging, num_queries
            num_queries = queries
            need = PlanCapacity(rows, queries, ints, partials)
            if capacity is not None:
                _check_fits(need, capacity)
            if not hasattr(self, "buffer"):
                self._allocate(capacity or need)
            if self.device.type == "cpu":
                return self.buffer.numpy()
            staging = torch.empty(ints, dtype=torch.int32, pin_memory=True)
            return staging.numpy()

        reserved, stats = _host_plan(
            self._plan_options, tables, lens, queries, reserved, parents, allocate
        )
        if staging is None:
            self.max_page = int(self.buffer[_HEADER_MAX_PAGE])
        else:
            self.max_page = int(staging[_HEADER_MAX_PAGE])
            self.buffer[: len(staging)].copy_(staging, non_blocking=True)
        self.num_queries = num_queries
        self._tables, self._parents = block_tables, draft_parents
        self._kv_lens, self._q_lens, self._reserved_lens = lens.copy(), queries.copy(), reserved
        stats["plan_us"] = (time.perf_counter() - start) * 1e6
        self.stats = stats

    def _allocate(self, capacity: PlanCapacity) -> None:
        o, self.capacity = self._options, capacity
        self.buffer = torch.empty(capacity.ints, dtype=torch.int32, device=self.device)
        self.device = self.buffer.device
        self.workspace = self.counters = None
        if self.device.type != "cpu":
            floats = capacity.partials * o["num_q_heads"] * (o["head_dim"] + 2)
            self.workspace = torch.empty(floats, dtype=torch.float32, device=self.device)
            counters = _ARRIVALS + capacity.queries * o["num_kv_heads"]
            self.counters = torch.zeros(counters, dtype=torch.int32, device=self.device)

    def update(self, kv_lens: Any) -> None:
        """Take new lengths after appends into reserved pages; nothing is planned.

        Lengths from the host are checked, then written in place on the CPU, or uploaded from
        pinned memory without waiting. A tensor on the plan's GPU is copied on that device, without
        waiting and *without a check*, so that this call may be captured in a CUDA graph: that its
        lengths neither shrink nor pass the reserved ones is then the caller's duty.

        Args:
            kv_lens: int32 [B], the new length of every row in tokens, at least the last length
                given by the host and at most its `reserved_lens`. Use `replan` for anything else.

        Raises:
            ValueError, TypeError: wrong shape or dtype, or (host only) a length that shrinks or
                passes the reserved one; the plan is then unchanged.

        Example:
            >>> plan = plan_tree_attention([[0, 1], [0, 2]], [20, 24], page_size=16, num_q_heads=8,
            ...     num_kv_heads=2, head_dim=64, dtype=torch.float32)
            >>> plan.update([21, 25])
        """
        op, size = "TreeAttentionPlan.update", len(self._kv_lens)
        target = self.buffer[_HEADER_INTS : _HEADER_INTS + size]
        if isinstance(kv_lens, torch.Tensor) and kv_lens.device.type != "cpu":
            fits = kv_lens.shape == target.shape and kv_lens.device == target.device
            if not fits or kv_lens.dtype != torch.int32:
                raise (ValueError if kv_lens.dtype == torch.int32 else TypeError)(
                    f"{op}: kv_lens must be int32 [{size}] on the host or on {target.device}, got "
                    f"{kv_lens.dtype} {list(kv_lens.shape)} on {kv_lens.device}"
                )
            target.copy_(kv_lens)
            return
        new = int_vector(kv_lens, "kv_lens", size)
        least = np.maximum(self._kv_lens, np.where(new > 0, self._q_lens, 0))
        wrong = (new < least) | (new > self._reserved_lens)
        if wrong.any():
            i = int(wrong.argmax())
            raise ValueError(
                f"{op}: kv_lens[{i}] must be in [{least[i]}, {self._reserved_lens[i]}], from its "
                f"present length to its reserved one, got {new[i]}; use plan.replan for other "
                f"lengths"
            )
        self._kv_lens[:] = new
        if self.device.type == "cpu":
            target.numpy()[:] = new
        else:
            target.copy_(torch.from_numpy(new).pin_memory(), non_blocking=True)

    def replan(
        self,
        block_tables: Any,
        kv_lens: Any,
        q_lens: Any = None,
        *,
        draft_parents: Sequence[Any] | None = None,
        reserved_lens: Any = None,
    ) -> None:
        """Plan other rows into the same buffers, at the same addresses, with one upload.

        A captured CUDA graph then runs the new plan. The graph's own q and out are as they were
        captured: rows of q past the new `num_queries` are left alone.

        Args:
            block_tables, kv_lens, q_lens, draft_parents, reserved_lens: as `plan_tree_attention`
                takes them. Heads, page size, window and mode stay.

        Raises:
            ValueError, TypeError: as `plan_tree_attention`, or because the new plan is larger than
                `capacity`; the plan is then unchanged.

        Example:
            >>> plan = plan_tree_attention([[0, 1], [0, 2]], [20, 24], page_size=16, num_q_heads=8,
            ...     num_kv_heads=2, head_dim=64, dtype=torch.float32,
            ...     capacity=PlanCapacity.for_batch(4, 256, page_size=16))
            >>> plan.replan([[0, 1], [0, 2], [0, 3]], [20, 24, 17])
            >>> plan.num_queries
            3
        """
        self._make(block_tables, kv_lens, q_lens, draft_parents, reserved_lens, self.capacity)

    def without_folds(self) -> TreeAttentionPlan:
        """This plan for kernels that fold no chunks of an item, as Triton's; itself on a GPU.

        Only tests need another one: Triton's interpreter runs on plans made for the CPU.
        """
        if not self._options["fold"]:
            return self
        options = {**self._options, "chunk": CHUNKS["cuda"].tokens, "fold": False}
        rows = (self._tables, self._kv_lens, self._q_lens, self._parents, self._reserved_lens)
        return TreeAttentionPlan(rows, options, self.dtype, self.kv_dtype, self.device, None)

    def __repr__(self) -> str:
        s = self.stats
        return (
            f"TreeAttentionPlan(rows={len(self._kv_lens)}, queries={self.num_queries}, "
            f"unique_kv_tokens={s['unique_kv_tokens']}, path_kv_tokens={s['path_kv_tokens']}, "
            f"work_items={s['work_items']}, partials={s['partials']}, {s['decision']!r})"
        )


def _check_fits(need: PlanCapacity, capacity: PlanCapacity) -> None:
    names = ("rows", "queries", "ints", "partials")
    for name, wanted, limit in zip(names, astuple(need), astuple(capacity), strict=True):
        if wanted > limit:
            raise ValueError(f"{OP}: capacity.{name} must be at least {wanted} here, got {limit}")
