"""Argument checks that more than one op needs."""

from __future__ import annotations

import torch

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def require_dtype(
    op: str, name: str, tensor: object, expected: tuple[torch.dtype, ...] = FLOAT_DTYPES
) -> None:
    """Raises TypeError, naming op and argument, unless `tensor` is one of an expected dtype."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.dtype not in expected:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in expected)
        raise TypeError(f"{op}: {name} must be {names}, got {tensor.dtype}")
