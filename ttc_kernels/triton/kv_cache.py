"""Moves of K and V in paged caches: one launch for all layers.

Copies of whole tokens work on 32-bit words, whatever the dtype. A program owns some words of every
token of one cache and runs through the copies in their order, so that no other program touches what
it reads or writes. Caches are given by address, in a table that is kept: a captured graph must not
upload one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl

__all__ = ["commit_kv", "copy_pages", "write_kv"]

_WORDS = 64  # of a token, to a program
_TOKENS = 32  # moved at a time


@triton.jit
def _cache(table, words):
    """The program's cache and its part of a token, from a table of addresses."""
    base = tl.load(table + tl.program_id(0)).to(tl.pointer_type(tl.int32))
    return base + words


@triton.jit(do_not_specialize=["num_copies", "page_size", "token_words"])
def _copy_pages_kernel(
    table, copies, num_copies, page_size, token_words, WORDS: tl.constexpr, TOKENS: tl.constexpr
):
    words = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    cache = _cache(table, words)
    for c in tl.range(num_copies, num_stages=1):
        src = tl.load(copies + 3 * c).to(tl.int64) * page_size
        dst = tl.load(copies + 3 * c + 1).to(tl.int64) * page_size
        count = tl.load(copies + 3 * c + 2)
        for first in tl.range(0, count, TOKENS, num_stages=1):
            token = first + tl.arange(0, TOKENS)
            mask = (token < count)[:, None] & (words < token_words)[None, :]
            part = tl.load(cache[None, :] + (src + token)[:, None] * token_words, mask=mask)
            tl.store(cache[None, :] + (dst + token)[:, None] * token_words, part, mask=mask)
        tl.debug_barrier()  # the next copy may read what this one wrote


@triton.jit(do_not_specialize=["num_tokens", "token_words"])
def _commit_kv_kernel(
    table, src_slots, dst_slots, num_tokens, token_words,
    WORDS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    words = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    cache = _cache(table, words)
    for first in tl.range(0, num_tokens, TOKENS, num_stages=1):
        t = first + tl.arange(0, TOKENS)
        src = tl.load(src_slots + t, mask=t < num_tokens, other=-1).to(tl.int64)
        dst = tl.load(dst_slots + t, mask=t < num_tokens, other=-1).to(tl.int64)
        mask = ((src >= 0) & (dst >= 0))[:, None] & (words < token_words)[None, :]
        part = tl.load(cache[None, :] + src[:, None] * token_words, mask=mask)
        tl.debug_barrier()  # a destination may be the source of an earlier token
        tl.store(cache[None, :] + dst[:, None] * token_words, part, mask=mask)


@triton.jit
def _to_e4m3(x):
    """Bits of the nearest float8_e4m3fn, ties to even, saturated at 448; NaN stays NaN."""
    bits = x.to(tl.int32, bitcast=True)
    size = tl.abs(x)
    size = tl.where(size > 448.0, 448.0, size)
    exponent = tl.maximum((size.to(tl.int32, bitcast=True) >> 23) - 127, -6)
    # Multiples of the step 2^(exponent - 3); adding 1.5 * 2^23 rounds to an integer.
    steps = size * ((130 - exponent) << 23).to(tl.float32, bitcast=True)
    steps = ((steps + 12582912.0) - 12582912.0).to(tl.int32)
    code = ((exponent + 6) << 3) + steps  # a carry moves on into the exponent
    code = tl.where(x != x, 0x7F, code)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def _rotate(x, head, d, mask, cos_sin, rope_dim, INTERLEAVED: tl.constexpr):
    """The rotary embedding of a head's first `rope_dim` elements, which are those of `cos_sin`."""
    half = rope_dim // 2
    rotated = d < rope_dim
    if INTERLEAVED:
        first, other, pair = d % 2 == 0, d ^ 1, d // 2
    else:
        first, other, pair = d < half, tl.where(d < half, d + half, d - half), d % half
    y = tl.load(head + other, mask=mask & rotated, other=0.0).to(tl.float32)
    mine = x * tl.load(cos_sin + pair, mask=rotated, other=1.0).to(tl.float32)
    theirs = y * tl.load(cos_sin + half + pair, mask=rotated, other=0.0).to(tl.float32)
    return tl.where(rotated, tl.where(first, mine - theirs, mine + theirs), x)


@triton.jit(
    do_not_specialize=[
        "num_heads", "per_head", "k_scale", "v_scale", "k_token_stride", "k_head_stride",
        "v_token_stride", "v_head_stride", "rope_dim",
    ],
    do_not_specialize_on_alignment=[
        "k", "v", "slots", "k_scales", "v_scales", "positions", "cos_sin"
    ],
)  # fmt: skip
def _write_kv_kernel(
    k, v, k_cache, v_cache, slots, k_scales, v_scales, positions, cos_sin,
    num_heads, per_head, k_scale: tl.float32, v_scale: tl.float32,
    k_token_stride: tl.int64, k_head_stride: tl.int64,
    v_token_stride: tl.int64, v_head_stride: tl.int64, rope_dim,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, QUANTISE: tl.constexpr,
    ROPE: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """One token of one head: K and V."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.load(slots + token).to(tl.int64)
    if slot >= 0:
        d = tl.arange(0, BLOCK_D)
        mask = d < HEAD_DIM
        to = (slot * num_heads + head) * HEAD_DIM + d
        k_head = k + token * k_token_stride + head * k_head_stride
        x = tl.load(k_head + d, mask=mask)
        y = tl.load(v + token * v_token_stride + head * v_head_stride + d, mask=mask)
        if ROPE:
            angles = cos_sin + tl.load(positions + token) * rope_dim
            x = _rotate(x.to(tl.float32), k_head, d, mask, angles, rope_dim, INTERLEAVED)
        if QUANTISE:
            k_unit = k_scale * tl.load(k_scales + head, mask=(per_head & 1) != 0, other=1.0)
            v_unit = v_scale * tl.load(v_scales + head, mask=(per_head & 2) != 0, other=1.0)
            x = _to_e4m3(tl.div_rn(x.to(tl.float32), k_unit))
            y = _to_e4m3(tl.div_rn(y.to(tl.float32), v_unit))
        tl.store(k_cache + to, x.to(k_cache.dtype.element_ty), mask=mask)
        tl.store(v_cache + to, y, mask=mask)


def write_kv(
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor,
    k_scale: float | torch.Tensor = 1.0,
    v_scale: float | torch.Tensor = 1.0,
    positions: torch.Tensor | None = None,
    cos_sin: torch.Tensor | None = None,
    interleaved: bool = False,
) -> None:
    """`ttc_kernels.write_kv` in Triton; the arguments are those of the op, not checked."""
    tokens, heads, dim = k.shape
    if tokens == 0:
        return
    quantise = k_cache.dtype == torch.float8_e4m3fn
    if quantise:
        k_cache, v_cache = k_cache.view(torch.uint8), v_cache.view(torch.uint8)
    k_given, v_given = isinstance(k_scale, torch.Tensor), isinstance(v_scale, torch.Tensor)
    unused = slots.view(torch.float32)  # a pointer that is not followed
    _write_kv_kernel[(tokens, heads)](
        k, v, k_cache, v_cache, slots,
        k_scale if k_given else unused, v_scale if v_given else unused,
        unused if positions is None else positions, unused if cos_sin is None else cos_sin,
        heads, k_given + 2 * v_given, 1.0 if k_given else k_scale, 1.0 if v_given else v_scale,
        *k.stride()[:2], *v.stride()[:2], 0 if cos_sin is None else cos_sin.shape[1],
        HEAD_DIM=dim, BLOCK_D=triton.next_power_of_2(dim), QUANTISE=quantise,
        ROPE=positions is not None, INTERLEAVED=interleaved,
        num_warps=1, enable_fp_fusion=False,
    )  # fmt: skip


def copy_pages(
    k_caches: Sequence[torch.Tensor], v_caches: Sequence[torch.Tensor], copies: torch.Tensor
) -> None:
    """`ttc_kernels.copy_pages` in Triton; the arguments are those of the op, not checked."""
    if len(copies) == 0:
        return
    table, words = _table(k_caches, v_caches)
    _copy_pages_kernel[(len(table), triton.cdiv(words, _WORDS))](
        table, copies, len(copies), k_caches[0].shape[1], words,
        WORDS=_WORDS, TOKENS=_TOKENS, num_warps=4,
    )  # fmt: skip


def commit_kv(
    k_caches: Sequence[torch.Tensor],
    v_caches: Sequence[torch.Tensor],
    src_slots: torch.Tensor,
    dst_slots: torch.Tensor,
) -> None:
    """`ttc_kernels.commit_kv` in Triton; the arguments are those of the op, not checked."""
    if len(src_slots) == 0:
        return
    table, words = _table(k_caches, v_caches)
    _commit_kv_kernel[(len(table), triton.cdiv(words, _WORDS))](
        table, src_slots, dst_slots, len(src_slots), words,
        WORDS=_WORDS, TOKENS=_TOKENS, num_warps=4,
    )  # fmt: skip


def _table(
    k_caches: Sequence[torch.Tensor], v_caches: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, int]:
    """The caches' addresses on their device, and the 32-bit words of a token."""
    first = k_caches[0]
    addresses = tuple(cache.data_ptr() for cache in (*k_caches, *v_caches))
    words = first.shape[2] * first.shape[3] * first.element_size() // 4
    return _upload(addresses, first.device), words


@lru_cache(maxsize=256)
def _upload(addresses: tuple[int, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor(addresses, dtype=torch.int64, device=device)
