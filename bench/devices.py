"""How time is taken on a device: its clock, its caches, its graphs."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

# More than the last-level caches of today's CPUs.
_CPU_FLUSH_BYTES = 1 << 28
# Calls recorded in one graph where the caches stay warm: the graph's own launch is shared by them.
_CALLS_PER_GRAPH = 8

Call = Callable[[], object]


class CpuClock:
    """Wall clock, and caches emptied by reading other data."""

    # How a call is timed: the first mode is the one that counts.
    modes = ("cold",)

    def __init__(self) -> None:
        self._other = torch.zeros(_CPU_FLUSH_BYTES // 4)

    def prepare(self, fn: Call, mode: str) -> Call:
        """What is timed in a mode in place of `fn`."""
        return fn

    def seconds(self, prepared: Call, mode: str) -> float:
        """One timed call, after the caches were filled with other data."""
        self._other.sum()
        return best_seconds(prepared, torch.device("cpu"), 1)


class CudaClock:
    """CUDA events; L2 emptied by writing a buffer larger than it.

    Modes: `graph` replays one captured call with L2 cold; `graph warm` captures several calls and
    divides; `eager` and `eager warm` launch from Python on an idle device, host time included.

    Args:
        device: a CUDA device.
    """

    modes = ("graph", "graph warm", "eager", "eager warm")

    def __init__(self, device: torch.device) -> None:
        self._device = device
        l2 = torch.cuda.get_device_properties(device).L2_cache_size
        self._other = torch.empty(max(4 * l2, 1 << 28), dtype=torch.uint8, device=device)

    def prepare(self, fn: Call, mode: str) -> Call:
        """`fn`, or the replay of a graph that holds it.

        Raises:
            Exception: of whatever kind the capture failed with.
        """
        if not mode.startswith("graph"):
            return fn
        return capture(fn, self._device, _CALLS_PER_GRAPH if mode == "graph warm" else 1)

    def seconds(self, prepared: Call, mode: str) -> float:
        """One timed call of what `prepare` returned."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if mode.endswith("warm"):
            prepared()
        else:
            self._other.zero_()
        if mode.startswith("eager"):
            torch.cuda.synchronize(self._device)
        start.record()
        prepared()
        end.record()
        torch.cuda.synchronize(self._device)
        calls = _CALLS_PER_GRAPH if mode == "graph warm" else 1
        return start.elapsed_time(end) / 1e3 / calls


Clock = CpuClock | CudaClock


def make_clock(device: torch.device) -> Clock:
    """The clock of a device."""
    return CpuClock() if device.type == "cpu" else CudaClock(device)


def capture(fn: Call, device: torch.device, calls: int = 1) -> Call:
    """Record calls of `fn` in a CUDA graph; returns its replay.

    Args:
        fn: without host synchronisation; it is run before the capture, so that what is compiled or
            allocated at first is not recorded.
        device: where it runs.
        calls: how often the graph calls it.
    """
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(2):
            fn()
    torch.cuda.current_stream(device).wait_stream(stream)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            fn()
    return graph.replay


def best_seconds(fn: Call, device: torch.device, calls: int) -> float:
    """Shortest of some timed calls, for tuning and for limits of the machine."""
    best = float("inf")
    for _ in range(calls):
        synchronize(device)
        start = time.perf_counter()
        fn()
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best


def synchronize(device: torch.device) -> None:
    """Wait for the device's queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
