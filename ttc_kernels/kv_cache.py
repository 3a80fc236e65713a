"""Moves of K and V in paged caches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from . import _load
from ._check import FLOAT_DTYPES, require_dtype

__all__ = ["commit_kv", "copy_pages", "write_kv"]

_FP8 = torch.float8_e4m3fn
_CACHE_DTYPES = (*FLOAT_DTYPES, _FP8)


def write_kv(
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor | np.ndarray,
    k_scale: float | torch.Tensor = 1.0,
    v_scale: float | torch.Tensor = 1.0,
    *,
    positions: torch.Tensor | None = None,
    cos_sin: torch.Tensor | None = None,
    interleaved: bool = False,
) -> None:
    """Writes the K and V of new tokens to their slots, in place.

    With ``positions``, K is rotated on the way: the rotary embedding of RoFormer (Su et al., 2021)
    of the first R elements of each head, in float32 and rounded once; V is not. Into float8_e4m3fn
    caches go the nearest values of ``k / k_scale`` and ``v / v_scale``, at most 448 in size.

    Args:
        k, v: ``[T, Hkv, D]`` float32, float16 or bfloat16; any strides with a dense last dimension.
        k_cache, v_cache: ``[num_pages, page_size, Hkv, D]``, contiguous, on the device of ``k`` and
            in its dtype or float8_e4m3fn.
        slots: int32 ``[T]``, ``page * page_size + offset`` as `Branch.append` returns them; ``-1``
            skips the token (padding). No slot may occur twice. On a GPU the caller vouches for
            them: looking would mean to wait.
        k_scale, v_scale: for float8 caches: a positive number, or float32 ``[Hkv]`` on the device.
        positions: int64 ``[T]``, each token's row of ``cos_sin`` (on a GPU not checked); ``None``
            writes K as it is.
        cos_sin: ``[max_position, R]``, R / 2 cosines and then R / 2 sines, float32 or as ``k``,
            contiguous; R is even and at most D. vLLM's ``cos_sin_cache`` is one.
        interleaved: pairs are ``(2i, 2i + 1)``, as in GPT-J; else ``(i, i + R / 2)``, as in
            GPT-NeoX and Llama.

    Raises:
        TypeError: for a wrong dtype.
        ValueError: for a wrong shape or device, a slot outside the caches or a position outside
            ``cos_sin``. Nothing was written.

    >>> cache = torch.zeros(2, 4, 1, 8), torch.zeros(2, 4, 1, 8)
    >>> new = torch.ones(1, 1, 8)
    >>> write_kv(new, new, *cache, torch.tensor([5], dtype=torch.int32))
    >>> cache[0][1, 1].sum().item()
    8.0
    >>> quarter_turn = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # by position; of the first pair
    >>> slots, positions = torch.tensor([6], dtype=torch.int32), torch.tensor([1])
    >>> write_kv(new, new, *cache, slots, positions=positions, cos_sin=quarter_turn)
    >>> cache[0][1, 2, 0, :4].tolist()
    [-1.0, 1.0, 1.0, 1.0]
    """
    op = "write_kv"
    require_dtype(op, "k_cache", k_cache, _CACHE_DTYPES)
    require_dtype(op, "v_cache", v_cache, (k_cache.dtype,))
    dtypes = FLOAT_DTYPES if k_cache.dtype == _FP8 else (k_cache.dtype,)
    require_dtype(op, "k", k, dtypes)
    require_dtype(op, "v", v, (k.dtype,))
    slots = _as_int32(op, "slots", slots, k_cache.device)
    k_number, k_scales = _split_scale("k_scale", k_scale, k_cache)
    v_number, v_scales = _split_scale("v_scale", v_scale, k_cache)
    if positions is not None:
        require_dtype(op, "positions", positions, (torch.int64,))
    if cos_sin is not None:
        require_dtype(op, "cos_sin", cos_sin, (torch.float32, k.dtype))
    torch.ops.ttc_kernels.write_kv(
        k, v, k_cache, v_cache, slots, k_number, v_number, k_scales, v_scales, positions, cos_sin,
        interleaved,
    )  # fmt: skip


def copy_pages(
    k_caches: Sequence[torch.Tensor],
    v_caches: Sequence[torch.Tensor],
    copies: torch.Tensor | np.ndarray,
) -> None:
    """Copies the first tokens of pages to other pages, in the caches of all layers, in place.

    Args:
        k_caches, v_caches: one contiguous ``[num_pages, page_size, Hkv, D]`` per layer, all of one
            shape, dtype (float32, float16, bfloat16 or float8_e4m3fn) and device.
        copies: int32 ``[C, 3]`` of ``(src_page, dst_page, num_tokens)`` as `PagePool.take_copies`
            returns them; they take effect in this order. On a GPU all layers run in one launch and
            the caller vouches for the pages; the launch may be captured in a graph (in Triton after
            a call with the same caches).

    Raises:
        TypeError: for a wrong dtype.
        ValueError: for a wrong shape or device, or a page outside the caches. Nothing was written.

    >>> k, v = torch.ones(3, 4, 1, 8), torch.ones(3, 4, 1, 8)
    >>> k[2] = 0
    >>> copy_pages([k], [v], torch.tensor([[0, 2, 3]], dtype=torch.int32))
    >>> k[2, :, 0, 0].tolist()
    [1.0, 1.0, 1.0, 0.0]
    """
    caches = [*k_caches, *v_caches]
    for cache in caches:
        require_dtype("copy_pages", "every cache", cache, _CACHE_DTYPES)
    if not caches:
        return
    copies = _as_int32("copy_pages", "copies", copies, caches[0].device)
    torch.ops.ttc_kernels.copy_pages(list(k_caches), list(v_caches), copies)


def commit_kv(
    k_caches: Sequence[torch.Tensor],
    v_caches: Sequence[torch.Tensor],
    src_slots: torch.Tensor | np.ndarray,
    dst_slots: torch.Tensor | np.ndarray,
) -> None:
    """Moves the K and V of accepted draft tokens to their places, in the caches of all layers.

    The tokens move in the order given, and no destination may be the source of a later token, so
    that the result is also that of reading all of them first. The accepted path of a draft tree is
    such a list: its i-th token stands at its place or behind it.

    Args:
        k_caches, v_caches: as for `copy_pages`.
        src_slots: int32 ``[N]``, where the tokens are: ``page * page_size + offset``.
        dst_slots: int32 ``[N]``, where they go, no slot twice. ``-1`` in either skips the token. On
            a GPU the caller vouches for both; capture in a graph is as for `copy_pages`.

    Raises:
        TypeError: for a wrong dtype.
        ValueError: for a wrong shape or device, a slot outside the caches, a destination given
            twice or read later. Nothing was written.

    >>> k, v = torch.arange(8.0).reshape(2, 4, 1, 1), torch.zeros(2, 4, 1, 1)
    >>> slots = torch.tensor([[4, 6], [4, 5]], dtype=torch.int32)
    >>> commit_kv([k], [v], slots[0], slots[1])
    >>> k.flatten().tolist()
    [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 6.0, 7.0]
    """
    caches = [*k_caches, *v_caches]
    for cache in caches:
        require_dtype("commit_kv", "every cache", cache, _CACHE_DTYPES)
    if not caches:
        return
    src = _as_int32("commit_kv", "src_slots", src_slots, caches[0].device)
    dst = _as_int32("commit_kv", "dst_slots", dst_slots, caches[0].device)
    torch.ops.ttc_kernels.commit_kv(list(k_caches), list(v_caches), src, dst)


def _split_scale(
    name: str, scale: float | torch.Tensor, cache: torch.Tensor
) -> tuple[float, torch.Tensor | None]:
    """A scale as a number for all heads, and as a tensor with one for each."""
    if isinstance(scale, torch.Tensor):
        require_dtype("write_kv", name, scale, (torch.float32,))
        if scale.shape != cache.shape[2:3] or scale.device != cache.device:
            raise ValueError(
                f"write_kv: {name} must be a number or float32 [{cache.shape[2]}] on "
                f"{cache.device}, got {list(scale.shape)} on {scale.device}"
            )
        number, scales = 1.0, scale.contiguous()
    else:
        number, scales = float(scale), None
        if not (math.isfinite(number) and number > 0):
            raise ValueError(f"write_kv: {name} must be positive and finite, got {scale}")
    if cache.dtype != _FP8 and (scales is not None or number != 1):
        raise ValueError(f"write_kv: {name} is for float8_e4m3fn caches, got {cache.dtype}")
    return number, scales


def _as_int32(
    op: str, name: str, values: torch.Tensor | np.ndarray, device: torch.device
) -> torch.Tensor:
    if isinstance(values, np.ndarray):
        values = torch.from_numpy(values).to(device)
    require_dtype(op, name, values, (torch.int32,))
    return values


@torch.library.register_fake("ttc_kernels::write_kv")
def _write_kv_fake(
    k, v, k_cache, v_cache, slots, k_scale=1.0, v_scale=1.0, k_scales=None, v_scales=None,
    positions=None, cos_sin=None, interleaved=False,
) -> None:  # fmt: skip
    return None


@torch.library.register_fake("ttc_kernels::copy_pages")
def _copy_pages_fake(k_caches, v_caches, copies) -> None:
    return None


@torch.library.register_fake("ttc_kernels::commit_kv")
def _commit_kv_fake(k_caches, v_caches, src_slots, dst_slots) -> None:
    return None


def _write_kv_triton(
    k, v, k_cache, v_cache, slots, k_scale=1.0, v_scale=1.0, k_scales=None, v_scales=None,
    positions=None, cos_sin=None, interleaved=False,
) -> None:  # fmt: skip
    _check_write("write_kv", k, v, k_cache, v_cache, slots)
    _check_rope("write_kv", k, positions, cos_sin)
    from .triton.kv_cache import write_kv

    write_kv(
        k, v, k_cache, v_cache, slots,
        k_scale if k_scales is None else k_scales, v_scale if v_scales is None else v_scales,
        positions, cos_sin, interleaved,
    )  # fmt: skip


def _copy_pages_triton(k_caches, v_caches, copies) -> None:
    _check_caches("copy_pages", k_caches, v_caches, {"copies": copies})
    if copies.dim() != 2 or copies.shape[1] != 3:
        raise ValueError(f"copy_pages: copies must be [C, 3], got {list(copies.shape)}")
    from .triton.kv_cache import copy_pages

    copy_pages(k_caches, v_caches, copies)


def _commit_kv_triton(k_caches, v_caches, src_slots, dst_slots) -> None:
    slots = {"src_slots": src_slots, "dst_slots": dst_slots}
    _check_caches("commit_kv", k_caches, v_caches, slots)
    if src_slots.dim() != 1 or src_slots.shape != dst_slots.shape:
        raise ValueError(
            f"commit_kv: src_slots and dst_slots must be [N], got {list(src_slots.shape)} and "
            f"{list(dst_slots.shape)}"
        )
    from .triton.kv_cache import commit_kv

    commit_kv(k_caches, v_caches, src_slots, dst_slots)


for _name, _run in (
    ("write_kv", _write_kv_triton),
    ("copy_pages", _copy_pages_triton),
    ("commit_kv", _commit_kv_triton),
):
    if not _load.has_cuda_kernel(_name):
        torch.library.impl(f"ttc_kernels::{_name}", "CUDA")(_run)


def _check_write(op, k, v, k_cache, v_cache, slots) -> None:
    """What can be known of the arguments without waiting for a GPU."""
    _check_caches(op, [k_cache], [v_cache], {"slots": slots})
    for name, x in (("k", k), ("v", v)):
        if x.dim() != 3 or x.shape[1:] != k_cache.shape[2:] or x.device != k_cache.device:
            raise ValueError(
                f"{op}: {name} must be [T, {k_cache.shape[2]}, {k_cache.shape[3]}] on "
                f"{k_cache.device}, got {list(x.shape)} on {x.device}"
            )
        if x.shape[2] > 1 and x.stride(2) != 1:
            raise ValueError(f"{op}: {name} must have a dense last dimension, got {x.stride()}")
    if not k.shape[0] == v.shape[0] == slots.numel():
        raise ValueError(
            f"{op}: k, v and slots must have as many tokens, got {k.shape[0]}, {v.shape[0]} and "
            f"{slots.numel()}"
        )


def _check_rope(op, k, positions, cos_sin) -> None:
    if (positions is None) != (cos_sin is None):
        raise ValueError(f"{op}: positions and cos_sin go together")
    if positions is None:
        return
    if positions.shape != k.shape[:1] or positions.device != k.device:
        raise ValueError(
            f"{op}: positions must be [{k.shape[0]}] on {k.device}, got {list(positions.shape)} on "
            f"{positions.device}"
        )
    fits = cos_sin.dim() == 2 and cos_sin.is_contiguous() and cos_sin.device == k.device
    if not fits or cos_sin.shape[1] % 2 or not 0 < cos_sin.shape[1] <= k.shape[2]:
        raise ValueError(
            f"{op}: cos_sin must be contiguous [max_position, R] with R even and at most "
            f"{k.shape[2]}, on {k.device}, got {list(cos_sin.shape)} on {cos_sin.device}"
        )


def _check_caches(op, k_caches, v_caches, indices) -> None:
    if len(k_caches) != len(v_caches):
        raise ValueError(
            f"{op}: k_caches and v_caches must be lists of one length, got {len(k_caches)} and "
            f"{len(v_caches)}"
        )
    for cache in (*k_caches, *v_caches):
        first = k_caches[0]
        alike = cache.shape == first.shape and cache.dtype == first.dtype
        if cache.dim() != 4 or not cache.is_contiguous() or not alike:
            raise ValueError(
                f"{op}: all caches must be contiguous [num_pages, page_size, Hkv, D] and agree in "
                f"shape and dtype, got {list(cache.shape)} {cache.dtype} beside "
                f"{list(first.shape)} {first.dtype}"
            )
        if cache.device != first.device:
            raise ValueError(f"{op}: all caches must be on {first.device}, got {cache.device}")
        if cache.shape[2] * cache.shape[3] * cache.element_size() % 4:
            raise ValueError(f"{op}: a token must have a multiple of 4 bytes in a cache")
    for name, index in indices.items():
        if index.dtype != torch.int32 or not index.is_contiguous():
            raise TypeError(f"{op}: {name} must be contiguous int32, got {index.dtype}")
        if k_caches and index.device != k_caches[0].device:
            raise ValueError(f"{op}: {name} must be on {k_caches[0].device}, got {index.device}")
