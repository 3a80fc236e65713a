"""Moves of K and V in paged caches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from . import _load  # noqa: F401  (registers the ops)
from ._check import require_dtype

__all__ = ["copy_pages", "write_kv"]


def write_kv(
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor | np.ndarray,
) -> None:
    """Writes the K and V of new tokens to their slots, in place.

    Args:
        k, v: ``[T, Hkv, D]`` float32, float16 or bfloat16; any strides with a dense last dimension.
        k_cache, v_cache: ``[num_pages, page_size, Hkv, D]``, contiguous, dtype and device as ``k``.
        slots: int32 ``[T]``, ``page * page_size + offset`` as `Branch.append` returns them; ``-1``
            skips the token (padding). No slot may occur twice.

    Raises:
        TypeError: for a wrong dtype.
        ValueError: for a wrong shape or device, or a slot outside the caches. Nothing was written.

    >>> cache = torch.zeros(2, 4, 1, 8), torch.zeros(2, 4, 1, 8)
    >>> new = torch.ones(1, 1, 8)
    >>> write_kv(new, new, *cache, torch.tensor([5], dtype=torch.int32))
    >>> cache[0][1, 1].sum().item()
    8.0
    """
    require_dtype("write_kv", "k_cache", k_cache)
    for name, tensor in (("k", k), ("v", v), ("v_cache", v_cache)):
        require_dtype("write_kv", name, tensor, (k_cache.dtype,))
    slots = _as_int32("write_kv", "slots", slots, k_cache.device)
    torch.ops.ttc_kernels.write_kv(k, v, k_cache, v_cache, slots)


def copy_pages(
    k_caches: Sequence[torch.Tensor],
    v_caches: Sequence[torch.Tensor],
    copies: torch.Tensor | np.ndarray,
) -> None:
    """Copies the first tokens of pages to other pages, in the caches of all layers, in place.

    Args:
        k_caches, v_caches: one contiguous ``[num_pages, page_size, Hkv, D]`` per layer, all of one
            shape, dtype (float32, float16 or bfloat16) and device.
        copies: int32 ``[C, 3]`` of ``(src_page, dst_page, num_tokens)`` as `PagePool.take_copies`
            returns them; they take effect in this order.

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
        require_dtype("copy_pages", "every cache", cache)
    if not caches:
        return
    copies = _as_int32("copy_pages", "copies", copies, caches[0].device)
    torch.ops.ttc_kernels.copy_pages(list(k_caches), list(v_caches), copies)


def _as_int32(
    op: str, name: str, values: torch.Tensor | np.ndarray, device: torch.device
) -> torch.Tensor:
    if isinstance(values, np.ndarray):
        values = torch.from_numpy(values).to(device)
    require_dtype(op, name, values, (torch.int32,))
    return values


@torch.library.register_fake("ttc_kernels::write_kv")
def _write_kv_fake(k, v, k_cache, v_cache, slots) -> None:
    return None


@torch.library.register_fake("ttc_kernels::copy_pages")
def _copy_pages_fake(k_caches, v_caches, copies) -> None:
    return None
