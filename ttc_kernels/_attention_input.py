"""Argument checks of tree attention, and which backend a call runs on."""

from __future__ import annotations

import importlib.util
import math
import os

import torch

from . import _load
from ._plan import TreeAttentionPlan

OP = "tree_attention"
MAX_GROUP = 512  # query heads to a KV head that the Triton kernel's arithmetic allows


def resolve_backend(backend: str, plan: TreeAttentionPlan) -> str:
    """The backend that a call will run on, or an error that says why it cannot."""
    on_gpu = plan.device.type == "cuda"
    if backend == "auto":
        backend = "cpu"
        if on_gpu:
            backend = "triton" if cuda_obstacle(plan.device, plan.dtype) else "cuda"
    if backend == "cpu":
        if on_gpu:
            raise ValueError(f'{OP}: backend "cpu" needs a plan on the cpu, got {plan.device}')
        if plan.kv_dtype == torch.float8_e4m3fn:
            raise TypeError(
                f'{OP}: float8_e4m3fn caches need backend "cuda" or "triton"; "cpu" reads those in '
                f"the dtype of q"
            )
        return backend
    if backend == "cuda":
        if not on_gpu:
            raise ValueError(f'{OP}: backend "cuda" needs a plan on a GPU, got {plan.device}')
        if obstacle := cuda_obstacle(plan.device, plan.dtype):
            raise ValueError(
                f'{OP}: backend "cuda" will not do: {obstacle}; backend "triton" would'
            )
        return backend
    if importlib.util.find_spec("triton") is None:
        raise ValueError(f'{OP}: backend "triton" needs the package triton, which is missing')
    if not on_gpu:
        if os.environ.get("TRITON_INTERPRET") != "1":
            raise ValueError(
                f'{OP}: backend "triton" needs a plan on a GPU; on the cpu it runs only in '
                f"Triton's interpreter (TRITON_INTERPRET=1), for tests"
            )
        if plan.dtype == torch.bfloat16:
            raise ValueError(f"{OP}: Triton's interpreter computes wrongly in bfloat16")
    return backend


def cuda_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the CUDA kernel cannot serve calls on this GPU in this dtype; None: it can."""
    if dtype == torch.float32:
        return "it computes in float16 and bfloat16, got float32"
    if _load.cuda_error is None and not _load.has_cuda_kernel(OP):
        return "this build has no CUDA kernel for it"
    return _load.cuda_architecture(device)[1] or None


def split_scale(
    name: str, scale: float | torch.Tensor | None, plan: TreeAttentionPlan
) -> tuple[float, torch.Tensor | None]:
    """A scale of the caches as a number for all heads, and as a tensor with one for each."""
    if scale is None:
        return 1.0, None
    if plan.kv_dtype != torch.float8_e4m3fn:
        raise ValueError(f"{OP}: {name} is for float8_e4m3fn caches, got {short(plan.kv_dtype)}")
    if isinstance(scale, torch.Tensor):
        heads = plan._options["num_kv_heads"]
        check_tensor(name, scale, (heads,), torch.float32, plan.device)
        return 1.0, scale
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"{OP}: {name} must be positive and finite, got {scale}")
    return float(scale), None


def check_triton(q, k_cache, v_cache, plan, workspace, k_scales, v_scales, out, lse) -> None:
    """What the Triton kernels take for granted, for direct callers of the op too."""
    op = "tree_attention_triton"
    tensors = {"q": q, "k_cache": k_cache, "v_cache": v_cache, "out": out}
    for name, x in tensors.items():
        rank = 4 if "cache" in name else 3
        if x.dim() != rank or x.shape[-1] != q.shape[-1] or x.stride(-1) != 1:
            raise ValueError(
                f"{op}: {name} must have {rank} dimensions, the last of size {q.shape[-1]} and "
                f"contiguous, got {list(x.shape)} with strides {x.stride()}"
            )
        # 16-byte loads, and one compiled kernel whatever the strides.
        uneven = any(s % 16 for s, n in zip(x.stride()[:-1], x.shape, strict=False) if n > 1)
        if uneven or x.data_ptr() % 16:
            raise ValueError(
                f"{op}: {name} must begin at a multiple of 16 bytes and have strides that are "
                f"multiples of 16 elements, got strides {x.stride()}"
            )
    if k_cache.shape != v_cache.shape or k_cache.stride() != v_cache.stride():
        raise ValueError(
            f"{op}: k_cache and v_cache must have one shape and one set of strides, got "
            f"{list(k_cache.shape)} {k_cache.stride()} and {list(v_cache.shape)} {v_cache.stride()}"
        )
    heads, kv_heads = q.shape[1], k_cache.shape[2]
    if q.shape[-1] not in (64, 96, 128, 256):
        raise ValueError(f"{op}: head_dim must be 64, 96, 128 or 256, got {q.shape[-1]}")
    if heads % kv_heads or heads > MAX_GROUP * kv_heads:
        raise ValueError(
            f"{op}: q must have 1 to {MAX_GROUP} heads for each of {kv_heads} KV heads, "
            f"got {heads} heads"
        )
    cache_dtypes = [q.dtype] if q.dtype == torch.float32 else [q.dtype, torch.float8_e4m3fn]
    if k_cache.dtype != v_cache.dtype or k_cache.dtype not in cache_dtypes:
        raise TypeError(
            f"{op}: caches must be {' or '.join(map(short, cache_dtypes))} for q in "
            f"{short(q.dtype)}, got {short(k_cache.dtype)} and {short(v_cache.dtype)}"
        )
    if out.shape != q.shape or out.dtype != q.dtype or lse.shape != q.shape[:2]:
        raise ValueError(
            f"{op}: out must be like q and lse [T, Hq], got {list(out.shape)} {short(out.dtype)} "
            f"and {list(lse.shape)}"
        )
    vectors = {"plan": plan, "workspace": workspace, "k_scales": k_scales, "v_scales": v_scales}
    for name, x in {**vectors, "lse": lse}.items():
        dtype = torch.int32 if name == "plan" else torch.float32
        if x is not None and (x.dtype != dtype or not x.is_contiguous()):
            raise TypeError(f"{op}: {name} must be contiguous {short(dtype)}, got {x.dtype}")
    for name, x in {**tensors, **vectors, "lse": lse}.items():
        if x is not None and x.device != q.device:
            raise ValueError(f"{op}: {name} must be on {q.device} like q, got {x.device}")


def check_tensor(
    name: str,
    x: torch.Tensor,
    shape: tuple[int | None, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{OP}: {name} must be a tensor, got {type(x).__name__}")
    fits = x.dim() == len(shape) and all(
        w in (None, g) for w, g in zip(shape, x.shape, strict=True)
    )
    wanted = "[" + ", ".join("P" if w is None else str(w) for w in shape) + "]"
    if not fits or x.dtype != dtype or x.device != device:
        kind = ValueError if x.dtype == dtype else TypeError
        raise kind(
            f"{OP}: {name} must be {wanted} {short(dtype)} on {device}, "
            f"got {list(x.shape)} {short(x.dtype)} on {x.device}"
        )
    if x.shape[-1] > 1 and x.stride(-1) != 1:
        raise ValueError(f"{OP}: {name} must be contiguous in its last dimension, got {x.stride()}")


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
