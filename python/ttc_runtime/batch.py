"""The inputs of a forward pass, in buffers that can be filled again at the same addresses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ttc_kernels import PlanCapacity, TreeAttentionPlan, plan_tree_attention


@dataclass(frozen=True)
class Rows:
    """The new tokens of a pass, on the host, one row after the other.

    token_ids, positions: int64[T]. slots: int32[T], where their keys and values go. block_tables:
    int32[B, max_pages]. kv_lens, q_lens: int32[B], tokens of each row, with the new ones and of
    those alone. keep: int64[R], the tokens (0 to T - 1) whose outputs are wanted. draft_parents:
    for each row None or int32[q_len], as `plan_tree_attention` takes them.
    """

    token_ids: np.ndarray
    positions: np.ndarray
    slots: np.ndarray
    block_tables: np.ndarray
    kv_lens: np.ndarray
    q_lens: np.ndarray
    keep: np.ndarray
    draft_parents: list[np.ndarray | None] | None = None

    def padded(self, num_tokens: int) -> Rows:
        """With padding up to so many tokens: a row of queries that see nothing and write nothing.

        The new tokens of that row have the slot -1; its attention is 0.
        """
        padding = num_tokens - len(self.token_ids)

        def extend(values: np.ndarray, fill: int) -> np.ndarray:
            return np.concatenate([values, np.full(padding, fill, values.dtype)])

        nothing = np.full((1, self.block_tables.shape[1]), -1, np.int32)
        return Rows(
            extend(self.token_ids, 0),
            extend(self.positions, 0),
            extend(self.slots, -1),
            np.concatenate([self.block_tables, nothing]),
            np.append(self.kv_lens, np.int32(0)),
            np.append(self.q_lens, np.int32(padding)),
            self.keep,
            None if self.draft_parents is None else [*self.draft_parents, None],
        )


class Batch:
    """A pass's inputs on the device, and its plans, one for each window among the layers.

    num_tokens, num_outputs: what the buffers hold, padding included. plan_options: what
    `plan_tree_attention` takes, the rows and the window aside. refillable: `fill` keeps every
    address, unless it says that one moved; the plans then have room to grow.
    """

    def __init__(
        self, num_tokens: int, num_outputs: int, plan_options: dict, *, refillable: bool
    ) -> None:
        self.num_tokens, self.num_outputs = num_tokens, num_outputs
        self._plan_options, self._refillable = plan_options, refillable
        device = plan_options["device"]
        self._buffer = torch.zeros((4, num_tokens), dtype=torch.int32, device=device)
        self._plans: dict[int, TreeAttentionPlan] = {}
        self._rows: Rows | None = None

    @property
    def token_ids(self) -> Tensor:
        """int32[num_tokens]."""
        return self._buffer[0]

    @property
    def positions(self) -> Tensor:
        """int32[num_tokens]."""
        return self._buffer[1]

    @property
    def slots(self) -> Tensor:
        """int32[num_tokens], -1 for padding."""
        return self._buffer[2]

    @property
    def keep(self) -> Tensor:
        """int32[num_outputs]."""
        return self._buffer[3, : self.num_outputs]

    def fill(self, rows: Rows) -> bool:
        """Take the rows of a pass, at most as many as fit. True if a buffer had to move."""
        rows = rows.padded(self.num_tokens)
        host = np.zeros(tuple(self._buffer.shape), np.int32)
        host[0], host[1], host[2] = rows.token_ids, rows.positions, rows.slots
        host[3, : len(rows.keep)] = rows.keep
        source = torch.from_numpy(host)
        if self._buffer.device.type == "cuda":
            source = source.pin_memory()  # or the copy would wait for the GPU
        self._buffer.copy_(source, non_blocking=True)
        before, self._rows = self._rows, rows
        moved = [self._replan(window, before) for window in self._plans]
        return any(moved)

    def plan(self, window_left: int) -> TreeAttentionPlan:
        """The plan for one window, made when a layer first asks for it."""
        if window_left not in self._plans:
            self._plans[window_left] = self._new_plan(window_left)
        return self._plans[window_left]

    def _replan(self, window_left: int, before: Rows | None) -> bool:
        rows, plan = self._filled(), self._plans[window_left]
        if before is not None and _grown_in_place(before, rows):
            plan.update(rows.kv_lens)
            return False
        try:
            plan.replan(rows.block_tables, rows.kv_lens, rows.q_lens)
        except ValueError:  # larger than its capacity; whatever else is wrong is raised again
            self._plans[window_left] = self._new_plan(window_left)
            return True
        return False

    def _new_plan(self, window_left: int) -> TreeAttentionPlan:
        rows = self._filled()
        arguments = (rows.block_tables, rows.kv_lens, rows.q_lens)
        options = {**self._plan_options, "window_left": window_left}
        if rows.draft_parents is not None:
            options["draft_parents"] = rows.draft_parents
        plan = plan_tree_attention(*arguments, **options)
        if not self._refillable:
            return plan
        # Twice as long rows fit, and forks of which a cut by cost makes more than one by position.
        num_rows, longest = self.num_tokens + 1, 2 * max(512, int(rows.kv_lens.max()))
        room = PlanCapacity.for_batch(num_rows, longest, page_size=options["page_size"])
        capacity = PlanCapacity(
            num_rows,
            self.num_tokens,
            max(room.ints, 2 * plan.capacity.ints),
            max(room.partials, 2 * plan.capacity.partials),
        )
        return plan_tree_attention(*arguments, **options, capacity=capacity)

    def _filled(self) -> Rows:
        if self._rows is None:
            raise RuntimeError("Batch: fill it before its plans are used")
        return self._rows


def _grown_in_place(before: Rows, after: Rows) -> bool:
    """Whether the same rows have more tokens on the same pages."""
    return (
        np.array_equal(before.block_tables, after.block_tables)
        and np.array_equal(before.q_lens, after.q_lens)
        and bool((after.kv_lens >= before.kv_lens).all())
    )
