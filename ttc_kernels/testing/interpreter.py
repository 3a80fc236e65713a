"""Runs Triton kernels on the CPU, in Triton's interpreter."""

from __future__ import annotations

import os
import sys


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
