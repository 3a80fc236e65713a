"""Launches the Triton kernels of tree attention, and lists every way in which they are compiled."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from .tree_attention_kernel import merge_kernel, tree_attention_kernel

__all__ = ["Config", "configs", "tree_attention"]

# A block of merge_kernel adds up the partials of this many heads.
_MERGE_HEADS = 4
_STRIDE_UNIT = 16  # STRIDE_UNIT of the kernels


@dataclass(frozen=True)
class Config:
    """One compiled form of the attention kernel.

    Attributes:
        q_dtype: "float32", "float16" or "bfloat16".
        kv_dtype: that of q, or "float8_e4m3fn".
        head_dim: 64, 96, 128 or 256.
        soft_cap: whether scores are capped.
        capability: 80, 90 or 100: the least compute capability it is meant for.
        rows: rows of a large tile; small ones have 16.
        keys: keys of a tile; keys_small: of a small one.
        num_stages, num_warps: as Triton has them. A page number is loaded one stage before its
            keys, so that n stages keep (n - 1) / 2 tiles of keys and values in flight.
    """

    q_dtype: str
    kv_dtype: str
    head_dim: int
    soft_cap: bool
    capability: int
    rows: int
    keys: int
    keys_small: int
    num_stages: int
    num_warps: int

    @property
    def fp8_bits(self) -> bool:
        """Whether the kernel takes 8-bit floats apart itself: there is no instruction for it."""
        return self.kv_dtype == "float8_e4m3fn" and self.capability < 90

    def constants(self) -> dict[str, int | bool]:
        """The compile-time arguments of `tree_attention_kernel`."""
        return {
            "HEAD_DIM": self.head_dim,
            "ROWS": self.rows,
            "KEYS": self.keys,
            "KEYS_SMALL": self.keys_small,
            "STAGES": self.num_stages,
            "SOFT_CAP": self.soft_cap,
            "FP8_BITS": self.fp8_bits,
        }

    def options(self) -> dict[str, int | bool]:
        """Options of the compiler. Bits must not depend on what it chose to fuse."""
        return {"num_warps": self.num_warps, "num_stages": 1, "enable_fp_fusion": False}


@lru_cache
def config(q_dtype: str, kv_dtype: str, head_dim: int, soft_cap: bool, capability: int) -> Config:
    """The one configuration for a kind of call; the tiles are as large as fit without spills."""
    rows, keys, keys_small, num_stages, num_warps = 64, 64, 64, 5, 8
    if q_dtype == "float32":
        # Without tensor cores every thread holds what it multiplies.
        rows, keys, keys_small, num_stages = 32, 16, 16, 3
        if head_dim == 64:
            keys, keys_small = 32, 32
        elif head_dim == 256:
            rows = 16
    elif head_dim == 256:
        # On sm_100 the accumulator lies in tensor memory.
        tensor_memory = capability >= 100 and kv_dtype == q_dtype
        rows, keys, keys_small = 64 if tensor_memory else 32, 32, 32
    elif capability < 90:
        keys = 32
    elif head_dim != 96 and kv_dtype == q_dtype and not soft_cap:
        num_warps = 4  # two blocks to a multiprocessor
    tile = (rows, keys, keys_small, num_stages, num_warps)
    return Config(q_dtype, kv_dtype, head_dim, soft_cap, capability, *tile)


def configs() -> list[Config]:
    """Every configuration that a call can lead to, on every architecture."""
    pairs = [("float32", "float32")]
    for q_dtype in ("float16", "bfloat16"):
        pairs += [(q_dtype, q_dtype), (q_dtype, "float8_e4m3fn")]
    return [
        config(q_dtype, kv_dtype, head_dim, soft_cap, capability)
        for q_dtype, kv_dtype in pairs
        for head_dim in (64, 96, 128, 256)
        for soft_cap in (False, True)
        for capability in (80, 90, 100)
    ]


@lru_cache
def _grid(device: torch.device, num_warps: int) -> tuple[int, int]:
    """Programs of the two kernels: as many as the GPU holds at a time."""
    if device.type == "cpu":  # the interpreter
        return 3, 3
    count = torch.cuda.get_device_properties(device).multi_processor_count
    return count * 8 // num_warps, 16 * count


@lru_cache
def _capability(device: torch.device) -> int:
    if device.type == "cpu":
        return 90
    major = torch.cuda.get_device_capability(device)[0]
    return 100 if major >= 10 else 90 if major == 9 else 80


@lru_cache
def _page_division(page_size: int) -> tuple[int, int]:
    """(m, s) with key // page_size == key * m >> s for 0 <= key < 2**31."""
    shift = 31 + (page_size - 1).bit_length()
    return (1 << shift) // page_size + 1, shift


def tree_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    plan: torch.Tensor,
    workspace: torch.Tensor,
    sm_scale: float,
    logits_soft_cap: float,
    v_scale: float,
    k_scales: torch.Tensor | None,
    v_scales: torch.Tensor | None,
    out: torch.Tensor,
    lse: torch.Tensor,
) -> None:
    """Launches the two kernels on checked arguments, without waiting and without allocating.

    Args:
        sm_scale: the scale of the scores, times that of the keys if it is one number.
        v_scale: the scale of the values if it is one number, else 1.
        k_scales, v_scales: fp32 [Hkv] or None. The others are those of the op.
    """
    page_size, num_q_heads, head_dim = k_cache.shape[1], q.shape[1], q.shape[2]
    names = [str(x.dtype).removeprefix("torch.") for x in (q, k_cache)]
    chosen = config(names[0], names[1], head_dim, logits_soft_cap > 0, _capability(q.device))
    if chosen.fp8_bits:
        k_cache, v_cache = k_cache.view(torch.uint8), v_cache.view(torch.uint8)
    strides = [s // _STRIDE_UNIT for s in (*q.stride()[:2], *out.stride()[:2])]
    cache_strides = [s // _STRIDE_UNIT for s in k_cache.stride()[:3]]
    num_slots = workspace.numel() // (num_q_heads * (head_dim + 2))
    per_head = (k_scales is not None) + 2 * (v_scales is not None)
    blocks, merge_blocks = _grid(q.device, chosen.num_warps)
    tree_attention_kernel[(blocks,)](
        q, k_cache, v_cache, out, lse, plan, workspace,
        lse if k_scales is None else k_scales,  # stands in for a pointer that is not followed
        lse if v_scales is None else v_scales,
        page_size, *_page_division(page_size), num_slots,
        sm_scale, logits_soft_cap, v_scale, per_head, *strides, *cache_strides,
        **chosen.constants(), **chosen.options(),
    )  # fmt: skip
    merge_kernel[(merge_blocks,)](
        out, lse, plan, workspace, num_q_heads, num_slots, *strides[2:],
        HEAD_DIM=head_dim, HEADS=_MERGE_HEADS, num_warps=4, num_stages=1, enable_fp_fusion=False,
    )  # fmt: skip
