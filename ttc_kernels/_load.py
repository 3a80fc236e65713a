"""Loads the compiled modules and remembers why one could not be loaded."""

from __future__ import annotations

import ctypes
import json
import os
from pathlib import Path

import torch

try:
    from . import _C  # type: ignore[attr-defined]  # noqa: F401  (importing it registers the ops)
except ImportError as error:
    raise ImportError(
        "ttc_kernels: its compiled ops could not be loaded; they need torch >= 2.11, found torch "
        f"{torch.__version__} at {Path(torch.__file__).parent}. Reinstall ttc-kernels if torch is "
        f"recent enough. ({error})"
    ) from error

CUDA_OPS = (
    "tree_attention",
    "merge_states",
    "write_kv",
    "copy_pages",
    "commit_kv",
    "score_steps",
    "aggregate_steps",
    "select_topk",
    "score_round",
    "row_descriptor",
    "sample_tokens",
    "sample_children",
    "token_logprobs",
    "verify",
)
"""The ops with a kernel in _C_cuda.so: all there are."""

_folder = Path(__file__).parent


def _toolkit() -> str | None:
    """The CUDA version that _C_cuda.so was built with."""
    try:
        return json.loads((_folder / "_C_cuda.json").read_text())["toolkit"]
    except (OSError, ValueError, KeyError):
        return None


def _driver() -> tuple[int, int] | None:
    """The CUDA version of the machine's driver, None without one. Asking wakes no GPU."""
    version = ctypes.c_int()
    try:
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)) != 0:
            return None
    except (OSError, AttributeError):
        return None
    return version.value // 1000, version.value % 1000 // 10


def _why_not(library: Path) -> str | None:
    """Why the CUDA kernels cannot be loaded; None if they can."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    if os.environ.get("TTC_CUDA") == "0":
        return "TTC_CUDA=0 in the environment"
    if not library.exists():
        return "this installation was built without CUDA kernels"
    toolkit, driver = _toolkit(), _driver()
    # Drivers serve every toolkit of their own and of earlier major versions.
    if toolkit and driver and driver[0] < int(toolkit.split(".")[0]):
        return (
            f"the kernels were built with CUDA {toolkit} and need a driver for CUDA "
            f"{toolkit.split('.')[0]}.0 or newer, the driver here is for {driver[0]}.{driver[1]}"
        )
    return None


def _load_cuda(library: Path) -> str | None:
    """Loads the CUDA kernels; returns why not, or None."""
    reason = _why_not(library)
    if reason is None:
        try:
            torch.ops.load_library(os.fspath(library))
        except (OSError, RuntimeError) as error:
            reason = f"{library.name} could not be loaded: {error}"
    return reason


cuda_error: str | None = _load_cuda(_folder / "_C_cuda.so")
"""Why the CUDA kernels are not there; None if they are."""


def has_cuda_kernel(op: str) -> bool:
    """Whether _C_cuda.so is loaded and has a kernel for the op."""
    return cuda_error is None and op in CUDA_OPS


def cuda_architecture(device: int | torch.device) -> tuple[str | None, str]:
    """Which of the CUDA kernels a GPU runs: ("sm_90a" or "sm_80", ""), or (None, why none)."""
    if cuda_error is not None:
        return None, cuda_error
    if not torch.cuda.is_available():
        return None, "torch sees no CUDA GPU"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        name = torch.cuda.get_device_name(device)
        return None, f"the kernels need compute capability 8.0 or newer, {name} has {major}.{minor}"
    # What wgmma and TMA became later is other instructions; the kernels for Ampere run everywhere.
    return ("sm_90a" if (major, minor) == (9, 0) else "sm_80"), ""
