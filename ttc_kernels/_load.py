"""Loads the compiled modules and remembers why one could not be loaded."""

from __future__ import annotations

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

cuda_error: str | None = None
"""Why the CUDA kernels are not there; None if they are."""

_cuda_library = Path(__file__).with_name("_C_cuda.so")
if torch.version.cuda is None:
    cuda_error = f"torch {torch.__version__} is a build without CUDA"
elif not _cuda_library.exists():
    cuda_error = "this wheel was built without CUDA kernels (TTC_CUDA=OFF)"
else:
    try:
        torch.ops.load_library(os.fspath(_cuda_library))
    except OSError as error:
        cuda_error = f"{_cuda_library.name} could not be loaded: {error}"
