"""Which machine, which versions, which day: what a figure is worth nothing without."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path

import torch


def describe() -> dict[str, object]:
    """Facts to store beside every result."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers", "ttc-kernels")},
    }


def version(package: str) -> str | None:
    """Installed version of a package, None where it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def available_bytes() -> int:
    """Memory that can be taken without swapping."""
    return _kib(Path("/proc/meminfo"), "MemAvailable:") * 1024


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far.

    Not from getrusage, whose maximum a new process takes over from the one that started it.
    """
    return _kib(Path("/proc/self/status"), "VmHWM:") * 1024


def _kib(file: Path, name: str) -> int:
    for line in file.read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise RuntimeError(f"machine: expected a line {name!r} in {file}, got none")


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()
