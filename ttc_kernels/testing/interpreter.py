"""Runs Triton kernels on the CPU, in Triton's interpreter."""

from __future__ import annotations

import os
import sys

import numpy as np


def use_interpreter() -> None:
    """Make every Triton kernel of this process run in the interpreter, on CPU tensors.

    To be called before triton is imported. The interpreter computes in numpy: slowly, right in
    float32 and float16, and wrong in bfloat16.

    Raises:
        RuntimeError: triton was imported already, with kernels that are compiled.
        ImportError: triton is not installed.
    """
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("use_interpreter: call it before triton is imported")
    os.environ["TRITON_INTERPRET"] = "1"
    from triton.runtime import interpreter

    patch_tensor = interpreter._patch_lang_tensor

    def with_index(tensor, scope) -> None:
        patch_tensor(tensor, scope)
        # range() with a runtime bound needs one; since numpy 2.4 an array of one element has none.
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = with_index

    def create_fma(self, x, y, z):
        return interpreter.TensorHandle(_fma(x.data, y.data, z.data), z.dtype.scalar)

    # Its own rounds the product as well.
    interpreter.InterpreterBuilder.create_fma = create_fma


def _fma(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """x * y + z, rounded once; at most fp32, whose products are exact in fp64."""
    product, wide = x.astype(np.float64) * y.astype(np.float64), z.astype(np.float64)
    total = product + wide
    back = total - product
    error = (product - (total - back)) + (wide - back)
    # Where the sum in fp64 was rounded, its last bit is made odd, so that the second rounding, to
    # fp32, takes no false tie (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums").
    even = (total.view(np.int64) & 1) == 0
    odd = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
    return np.where((error != 0) & even, odd, total).astype(z.dtype)
