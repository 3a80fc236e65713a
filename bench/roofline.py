"""What a device can do at best, and how long a plan should take on it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .devices import best_seconds, capture
from .forest import Forest
from .timing import Timing


@dataclass(frozen=True)
class Roofline:
    """Measured limits of a device for one dtype.

    Attributes:
        bytes_per_s: bandwidth of main or device memory: reading with all threads, or on a GPU
            copying, bytes read and written counted, if that is faster.
        flops_per_s: rate of a large square matrix product in the dtype.
        launch_s: a graph with one tiny kernel, start to end; 0 on a CPU.
    """

    bytes_per_s: float
    flops_per_s: float
    launch_s: float = 0.0

    @classmethod
    def measure(
        cls, dtype: torch.dtype, device: torch.device | str = "cpu", seconds: float = 1.5
    ) -> Roofline:
        """Measure the device in this process, with torch's current number of threads.

        Args:
            dtype: of the matrix product. Bandwidth is measured in float32, where adding is cheap.
            device: which one.
            seconds: how long each of the measurements repeats; the best repetition counts, for a
                floor is what the machine can do.
        """
        device = torch.device(device)
        on_gpu = device.type == "cuda"
        # Random data: on equal numbers a GPU multiplies faster than it ever will in use.
        data = torch.randn(1 << (29 if on_gpu else 27), device=device)
        bytes_per_s = data.nbytes / _best(data.sum, seconds, device)
        if on_gpu:
            # Whatever torch's sum leaves unused, a copy may use.
            copy = functools.partial(torch.empty_like(data).copy_, data)
            copied = 2 * data.nbytes / _best(copy, seconds, device)
            bytes_per_s = max(bytes_per_s, copied)
            del copy
        del data
        side = 8192 if on_gpu else 2048
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        flops_per_s = 2 * side**3 / _best(lambda: torch.mm(a, b), seconds, device)
        launch_s = 0.0
        if on_gpu:
            one = torch.zeros(1, device=device)
            launch_s = _graph_seconds(capture(lambda: one.add_(1), device))
        return cls(bytes_per_s, flops_per_s, launch_s)

    def floor_s(
        self, forest: Forest, heads: tuple[int, int], head_dim: int, itemsize: int
    ) -> float:
        """Seconds below which attention over a forest cannot go.

        The larger of reading every unique K and V element once and of doing the two products for
        every query and every token that it sees.

        Args:
            forest: the workload.
            heads: query heads and KV heads.
            head_dim: elements per head.
            itemsize: bytes per element of K and V.
        """
        num_bytes = 2 * forest.unique_tokens * heads[1] * head_dim * itemsize
        flops = 4 * forest.seen_pairs * heads[0] * head_dim
        return max(num_bytes / self.bytes_per_s, flops / self.flops_per_s)

    def model_s(
        self, stats: Mapping[str, Any], heads: tuple[int, int], head_dim: int, launches: int
    ) -> float:
        """Seconds that a plan should take here, if only bytes, products and launches cost time.

        Bytes are the K and V that the items read, and each partial result written and read once in
        float32; products are those of every query and token that it sees.

        Args:
            stats: of the plan.
            heads: query heads and KV heads.
            head_dim: elements per head.
            launches: kernels of one call.
        """
        partial_bytes = 2 * 4 * stats["partials"] * heads[0] * (head_dim + 2)
        bytes_s = (stats["kv_bytes"] + partial_bytes) / self.bytes_per_s
        return launches * self.launch_s + max(bytes_s, stats["flops"] / self.flops_per_s)


class Gauge:
    """The roofline at the time of a measurement.

    A CPU's rates wander from minute to minute, above all those of a shared machine. So a read of an
    array much larger than the caches and a product are timed in turn with what they bound, and the
    medians are compared. A GPU is measured once.

    Attributes:
        first: the device as it is measured beforehand, the best repetitions.
    """

    _SIDE = 2048  # of the product's matrices

    def __init__(self, dtype: torch.dtype, device: torch.device, first: Roofline) -> None:
        self.first = first
        self._runs: dict[str, Callable[[], object]] = {}
        if device.type == "cpu":
            self._data = torch.randn(1 << 26)
            a, b = (torch.randn(self._SIDE, self._SIDE).to(dtype) for _ in range(2))
            self._runs = {"read": self._data.sum, "product": lambda: torch.mm(a, b)}

    def contenders(self) -> dict[str, Callable[[], object]]:
        """What to time beside a workload's own contenders, by name."""
        return dict(self._runs)

    def roofline(self, timings: Mapping[str, Timing]) -> Roofline:
        """The limits by those timings."""
        if not self._runs:
            return self.first
        bytes_per_s = self._data.nbytes / timings["read"].median
        return Roofline(bytes_per_s, 2 * self._SIDE**3 / timings["product"].median)


def _best(fn: Callable[[], object], seconds: float, device: torch.device) -> float:
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        best = min(best, best_seconds(fn, device, 1))
    return best


def _graph_seconds(replay: Callable[[], object], calls: int = 50) -> float:
    """Median time of a graph between two events."""
    times = []
    for _ in range(calls):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return sorted(times)[calls // 2]
