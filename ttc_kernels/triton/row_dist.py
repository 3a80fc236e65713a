"""The filtered distribution of a row, from logits and descriptor: csrc/verify/row_math.h."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from .fp32_math import exp2_fp32, is_kept
from .row_descriptor import load_logits


class Rows(NamedTuple):
    """Logits ``[N, vocab_size]`` and their descriptors, as a kernel takes them."""

    logits: Any
    stride: Any  # elements from row to row
    vocab_size: Any
    bitmask: Any  # or None
    desc: Any

    @classmethod
    def of(
        cls, logits: torch.Tensor, desc: torch.Tensor, bitmask: torch.Tensor | None = None
    ) -> Rows:
        return cls(logits, logits.stride(0), logits.shape[1], bitmask, desc)


class RowDist(NamedTuple):
    max: Any
    inv_temperature: Any  # 0 for a greedy row, of which only the argmax is kept
    pivot: Any
    tie_end: Any
    inv_z: Any
    log_z: Any
    argmax: Any  # -1: there is no distribution


@triton.jit
def row_dist(rows, r):
    """RowDist of row r."""
    desc = rows.desc + 9 * r
    temperature = tl.load(desc)
    greedy = temperature == 0.0
    inverse = tl.where(greedy, 0.0, tl.div_rn(1.0, tl.where(greedy, 1.0, temperature)))
    inv_z = tl.div_rn(1.0, tl.load(desc + 8))
    return RowDist(
        tl.load(desc + 5), inverse, tl.load(desc + 1), tl.load(desc + 2).to(tl.int32), inv_z,
        tl.load(desc + 3), tl.load(desc + 4).to(tl.int32),
    )  # fmt: skip


@triton.jit
def has_distribution(rows, r):
    """Whether row r has one; -1 is no row."""
    return tl.load(rows.desc + 9 * r + 4, mask=r >= 0, other=-1.0) >= 0.0


@triton.jit
def logits_of(rows, r, index):
    """Logits of row r; -inf past the vocabulary and where the bitmask has no bit."""
    bitmask = rows.bitmask
    if rows.bitmask is not None:
        bitmask = rows.bitmask + r * ((rows.vocab_size + 31) // 32)
    row = rows.logits + r * rows.stride
    return load_logits(row, bitmask, index, rows.vocab_size, rows.bitmask is not None)


@triton.jit
def probability(dist, logit, index):
    scale = dist.inv_temperature * 1.44269504
    w = exp2_fp32((logit - dist.max) * scale) * dist.inv_z
    return tl.where(is_kept(logit, index, dist.pivot, dist.tie_end), w, 0.0)


@triton.jit
def log_probability(dist, logit, index):
    log = (logit - dist.max) * dist.inv_temperature - dist.log_z
    return tl.where(is_kept(logit, index, dist.pivot, dist.tie_end), log, float("-inf"))


@triton.jit
def remainder_of(p, c, q):
    """What a residual keeps of a token: max(p - c q, 0)."""
    r = p - c * q
    return tl.where(r > 0.0, r, 0.0)
