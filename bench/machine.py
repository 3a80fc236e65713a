"""Which machine, which versions, which day: what a figure is worth nothing without."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path

import torch

_PACKAGES = (
    "torch",
    "triton",
    "transformers",
    "ttc-kernels",
    "flashinfer-python",
    "flash-attn",
)


def describe(device: torch.device | str = "cpu") -> dict[str, object]:
    """Facts to store beside every result that was measured on a device."""
    device = torch.device(device)
    return {
        **(_gpu(device) if device.type == "cuda" else {}),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _PACKAGES},
    }


def version(package: str) -> str | None:
    """Installed version of a package, None where it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def available_bytes(device: torch.device | str = "cpu") -> int:
    """Memory of a device that can be taken, on the CPU without swapping."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return _kib(Path("/proc/meminfo"), "MemAvailable:") * 1024


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far.

    Not from getrusage, whose maximum a new process takes over from the one that started it.
    """
    return _kib(Path("/proc/self/status"), "VmHWM:") * 1024


def _gpu(device: torch.device) -> dict[str, object]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "gpu_sms": properties.multi_processor_count,
        "gpu_l2_mib": properties.L2_cache_size / 2**20,
        "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
    }


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
