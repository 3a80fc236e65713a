"""Forward passes replayed from captured graphs, where their shape allows it.

A decoding step of N rows runs N tokens, padded to one of a few sizes. For each size there is one
`Batch` at fixed addresses, and one graph that reads it; a step fills the batch and replays the
graph. Everything else runs as it comes, with buffers of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from ttc_runtime.batch import Batch, Rows

LARGEST = 512  # rows of the largest captured step


class Graph(Protocol):
    """A recorded pass. output: where `replay` leaves its result."""

    output: Tensor

    def replay(self) -> None: ...


Capture = Callable[[Callable[[], Tensor]], Graph]
"""Makes a graph of a function without arguments."""


class CudaGraph:
    """A CUDA graph of a function without arguments. Raises what the capture raises.

    pool: a handle of memory, which graphs that run one at a time share.
    """

    def __init__(self, pool, function: Callable[[], Tensor]) -> None:
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            self.output = function()

    def replay(self) -> None:
        self._graph.replay()


class CalledAgain:
    """In place of a graph where there is none: calls the function, into the same output."""

    def __init__(self, function: Callable[[], Tensor]) -> None:
        self._function, self.output = function, function()

    def replay(self) -> None:
        self.output.copy_(self._function())


class _Step:
    """The batch of one size, its graph, and why there is none."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.graph: Graph | None = None
        self.refused: str | None = None


class GraphRunner:
    """Runs passes of a model, decoding steps from graphs.

    compute: runs the model on a batch and returns its outputs ``[num_outputs, n]``. plan_options:
    as for `Batch`. row_block: tokens and outputs of a pass are padded to a multiple of it. capture:
    makes a graph of a function, as `CudaGraph` does; None runs every pass as it comes.
    """

    def __init__(
        self,
        compute: Callable[[Batch], Tensor],
        plan_options: dict,
        row_block: int,
        capture: Capture | None,
    ) -> None:
        self._compute, self._plan_options = compute, plan_options
        self._row_block, self._capture = row_block, capture
        self._steps: dict[int, _Step] = {}

    def size_for(self, rows: Rows) -> int | None:
        """Tokens of the graph that runs these rows, None if there is to be none."""
        num_tokens = len(rows.token_ids)
        if self._capture is None or len(rows.q_lens) < num_tokens or num_tokens > LARGEST:
            return None
        size = self._row_block
        while size < num_tokens:
            size *= 2
        return size

    def run(self, rows: Rows) -> Tensor:
        """The outputs of a pass, ``[len(rows.keep), n]``, valid until the next pass."""
        size = self.size_for(rows)
        if size is None:
            batch = Batch(
                self._round_up(len(rows.token_ids)),
                self._round_up(len(rows.keep)),
                self._plan_options,
                refillable=False,
            )
            batch.fill(rows)
            return self._compute(batch)[: len(rows.keep)]
        if size not in self._steps:
            batch = Batch(size, size, self._plan_options, refillable=True)
            self._steps[size] = _Step(batch)
        return self._run_step(self._steps[size], rows)[: len(rows.keep)]

    def _run_step(self, step: _Step, rows: Rows) -> Tensor:
        if step.batch.fill(rows):
            step.graph = None  # it reads where a plan no longer is
        if step.graph is not None:
            step.graph.replay()
            return step.graph.output
        # The first run compiles kernels and makes the plans, neither of which can be captured.
        output = self._compute(step.batch)
        if step.refused is None and self._capture is not None:
            try:
                step.graph = self._capture(lambda: self._compute(step.batch))
            except Exception as error:  # a step that cannot be captured can still be run
                step.refused = f"{type(error).__name__}: {error}"
        return output

    def _round_up(self, count: int) -> int:
        return -(-count // self._row_block) * self._row_block

    def report(self) -> dict[str, str]:
        """How passes run: for each size "graph", or why it runs eagerly."""
        if self._capture is None:
            return {"all": "eager: the cpu backend has no graphs"}
        report = {}
        for size, step in sorted(self._steps.items()):
            graph = "graph" if step.graph is not None else "not yet"
            report[f"{size} rows"] = graph if step.refused is None else f"eager: {step.refused}"
        report["other"] = (
            f"eager: passes with prompts or steps, and of more than {LARGEST} rows, differ in shape"
        )
        return report
