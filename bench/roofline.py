"""What this machine can do at best: read bandwidth and matrix multiplication rate."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .workloads import Tree


@dataclass(frozen=True)
class Roofline:
    """Measured limits of a machine for one dtype.

    Attributes:
        bytes_per_s: read bandwidth of main memory with all threads.
        flops_per_s: rate of a large square matrix product in the dtype.
    """

    bytes_per_s: float
    flops_per_s: float

    @classmethod
    def measure(cls, dtype: torch.dtype, seconds: float = 1.5) -> Roofline:
        """Measure the machine in this process, with torch's current number of threads.

        Args:
            dtype: of the matrix product. Bandwidth is measured in float32, where adding is cheap.
            seconds: how long each of the two measurements repeats; the best repetition counts,
                for a floor is what the machine can do.
        """
        data = torch.ones(1 << 27)
        bytes_per_s = data.nbytes / _best(data.sum, seconds)
        del data
        side = 2048
        a, b = (torch.randn(side, side).to(dtype) for _ in range(2))
        return cls(bytes_per_s, 2 * side**3 / _best(lambda: torch.mm(a, b), seconds))

    def floor_s(self, tree: Tree, heads: tuple[int, int], head_dim: int, itemsize: int) -> float:
        """Seconds below which attention over a tree cannot go.

        The larger of reading every unique K and V element once and of doing the two products for
        every query and every token on its path.

        Args:
            tree: the workload.
            heads: query heads and KV heads.
            head_dim: elements per head.
            itemsize: bytes per element of K and V.
        """
        num_bytes = 2 * tree.unique_tokens * heads[1] * head_dim * itemsize
        flops = 4 * tree.path_tokens * heads[0] * head_dim
        return max(num_bytes / self.bytes_per_s, flops / self.flops_per_s)


def _best(fn: Callable[[], object], seconds: float) -> float:
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        start = time.perf_counter()
        fn()
        best = min(best, time.perf_counter() - start)
    return best
