"""The report to paste into a bug report: `python -m ttc_kernels.collect_env`."""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from . import _load
from ._version import __version__
from .backends import backends, cpu_instruction_sets

__all__ = ["collect_env"]


def collect_env() -> str:
    """Versions, machine, compiled modules and backends, as text.

    Returns:
        One line per fact; nothing in it queries a GPU.

    Example:
        >>> "torch" in collect_env()
        True
    """
    lines = [
        f"ttc_kernels {__version__} at {Path(__file__).parent}",
        f"python {platform.python_version()} on {platform.platform()}",
        f"torch {torch.__version__}, CUDA {torch.version.cuda or 'none'}, "
        f"{torch.get_num_threads()} threads",
        f"numpy {np.__version__}",
    ]
    for package in ("transformers", "safetensors", "tokenizers", "triton"):
        try:
            lines.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            lines.append(f"{package} not installed")
    lines.append(f"cpu {_cpu_model()}, {os.cpu_count()} cores")
    for dtype, isa in cpu_instruction_sets().items():
        lines.append(f"tree_attention on the cpu in {dtype}: {isa}")
    lines.append(f"CUDA kernels: {_cuda_kernels()}")
    for op, status in backends().items():
        lines.append(f"{op}: " + "; ".join(f"{name} {text}" for name, text in status.items()))
    return "\n".join(lines)


def _cuda_kernels() -> str:
    if _load.cuda_error is not None:
        return f"not loaded: {_load.cuda_error}"
    build = json.loads(Path(__file__).with_name("_C_cuda.json").read_text())
    return f"loaded, built with CUDA {build['toolkit']} for {build['architectures']}"


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    print(collect_env())
