"""Row descriptors: one program to a row, in a few passes over its logits.

The cut of top_k and top_p is found by bisecting the bits of the logits, seen as integers in the
same order: each pass sums the tokens above three thresholds and quarters the interval, and tiles
without a token in the interval are skipped. Sums are integers, as on the CPU, so that the cut is
the same.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .fp32_math import NO_FUSION, fixed_weight, from_fixed, is_kept, log_fp32

LOWEST = tl.constexpr(-3.4028234663852886e38)
ALL_TIES = tl.constexpr(2**31 - 1)
_LOWEST_KEY = tl.constexpr(-2139095041)  # of -inf
_BLOCK = 4096


@triton.jit
def load_logits(row, mask, index, vocab_size, MASKED: tl.constexpr):
    """Logits as fp32; -inf outside the vocabulary and where the row's bitmask has no bit."""
    inside = index < vocab_size
    if MASKED:
        words = tl.load(mask + index // 32, mask=inside, other=0)
        inside = inside & (((words >> (index % 32)) & 1) != 0)
    return tl.load(row + index, mask=inside, other=float("-inf")).to(tl.float32)


@triton.jit
def _load(row, mask, start, vocab_size, MASKED: tl.constexpr, BLOCK: tl.constexpr):
    index = start + tl.arange(0, BLOCK)
    return index, load_logits(row, mask, index, vocab_size, MASKED)


@triton.jit
def _key(logit):
    """int32 in the order of the logits; both zeros are one key."""
    bits = tl.where(logit == 0.0, 0.0, logit).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _logit_of(key):
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def row_top(row, mask, vocab_size, MASKED: tl.constexpr, BLOCK: tl.constexpr):
    """The largest logit, and whether the row has a distribution."""
    lanes = tl.full([BLOCK], float("-inf"), tl.float32)
    bad = tl.zeros([BLOCK], tl.int32)
    for start in tl.range(0, vocab_size, BLOCK):
        _, logit = _load(row, mask, start, vocab_size, MASKED, BLOCK)
        lanes = tl.where(logit > lanes, logit, lanes)
        bad |= tl.where(logit < float("inf"), 0, 1)
    max_logit = tl.max(lanes)
    return max_logit, (tl.max(bad) == 0) & (max_logit > float("-inf"))


@triton.jit
def kept_sums(
    row, mask, vocab_size, max_logit, inv, pivot, tie_end,
    MASKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Number and mass of the kept tokens."""
    count = tl.zeros([BLOCK], tl.int32)
    mass = tl.zeros([BLOCK], tl.int64)
    for start in tl.range(0, vocab_size, BLOCK):
        index, logit = _load(row, mask, start, vocab_size, MASKED, BLOCK)
        kept = is_kept(logit, index, pivot, tie_end)
        count += kept.to(tl.int32)
        mass += tl.where(kept, fixed_weight(logit, max_logit, inv), 0)
    return tl.sum(count), tl.sum(mass)


@triton.jit
def _cut(
    row, mask, vocab_size, max_logit, inv, target,
    BY_MASS: tl.constexpr, MASKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Where the shortest prefix of the tokens, in order of falling logit, ties to the lower index,
    reaches `target` tokens, or so much mass: (pivot, tie_end)."""
    low = tl.full([], _LOWEST_KEY, tl.int64)
    high = _key(max_logit).to(tl.int64)
    above = target * 0  # what lies above `high`
    while low < high:
        span = high - low
        key1, key2, key3 = low + (span + 3) // 4, low + (span + 1) // 2, low + (3 * span + 3) // 4
        sum1 = tl.zeros([BLOCK], tl.int64)
        sum2 = tl.zeros([BLOCK], tl.int64)
        sum3 = tl.zeros([BLOCK], tl.int64)
        for start in tl.range(0, vocab_size, BLOCK):
            _, logit = _load(row, mask, start, vocab_size, MASKED, BLOCK)
            key = _key(logit)
            inside = (key > low) & (key <= high)
            if tl.max(inside.to(tl.int32)) > 0:
                if BY_MASS:
                    amount = fixed_weight(logit, max_logit, inv)
                else:
                    amount = tl.full([BLOCK], 1, tl.int64)
                amount = tl.where(inside, amount, 0)
                sum1 += tl.where(key >= key1, amount, 0)
                sum2 += tl.where(key >= key2, amount, 0)
                sum3 += tl.where(key >= key3, amount, 0)
        total1 = above + tl.sum(sum1)
        total2 = above + tl.sum(sum2)
        total3 = above + tl.sum(sum3)
        if total3 >= target:
            low = key3
        elif total2 >= target:
            low, high, above = key2, key3 - 1, total3
        elif total1 >= target:
            low, high, above = key1, key2 - 1, total2
        else:
            high, above = key1 - 1, total1
    pivot = tl.full([], LOWEST, tl.float32)
    tie_end = tl.full([], ALL_TIES, tl.int32)
    if low > _LOWEST_KEY:
        pivot = _logit_of(low.to(tl.int32))
        each = target * 0 + 1
        if BY_MASS:
            each = fixed_weight(pivot, max_logit, inv)
        wanted = (target - above + each - 1) // each  # ties that are kept
        before = target * 0
        for start in tl.range(0, vocab_size, BLOCK):
            index, logit = _load(row, mask, start, vocab_size, MASKED, BLOCK)
            tied = (logit == pivot).to(tl.int32)
            number = tl.sum(tied)
            if (before < wanted) & (before + number >= wanted):
                rank = before + tl.cumsum(tied, 0)
                last = (tied > 0) & (rank == wanted)
                tie_end = tl.min(tl.where(last, index, 2**31 - 2)) + 1
            before += number
    return pivot, tie_end


@triton.jit
def _narrower(pivot, tie_end, other_pivot, other_end):
    first = tl.where(pivot == other_pivot, tie_end < other_end, pivot > other_pivot)
    return tl.where(first, pivot, other_pivot), tl.where(first, tie_end, other_end)


@triton.jit
def _describe(
    logits, stride, vocab_size, masks, temperatures, top_ks, top_ps, min_ps, out,
    MASKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    r = tl.program_id(0).to(tl.int64)
    row = logits + r * stride
    mask = masks
    if MASKED:
        mask = masks + r * ((vocab_size + 31) // 32)
    max_logit, usable = row_top(row, mask, vocab_size, MASKED, BLOCK)
    temperature = tl.load(temperatures + r)
    greedy = temperature == 0.0
    inv = tl.div_rn(1.0, tl.where(greedy, 1.0, temperature))
    first = tl.full([BLOCK], 2**31 - 1, tl.int32)
    count = tl.zeros([BLOCK], tl.int32)
    mass = tl.zeros([BLOCK], tl.int64)
    for start in tl.range(0, vocab_size, BLOCK):
        index, logit = _load(row, mask, start, vocab_size, MASKED, BLOCK)
        first = tl.minimum(first, tl.where(logit == max_logit, index, 2**31 - 1))
        count += (logit >= LOWEST).to(tl.int32)
        mass += fixed_weight(logit, max_logit, inv)
    argmax, mass_all = tl.min(first), tl.sum(mass)

    pivot = tl.full([], LOWEST, tl.float32)
    tie_end = tl.full([], ALL_TIES, tl.int32)
    num_kept, kept_mass = tl.sum(count), mass_all
    top_k = tl.load(top_ks + r)
    top_p = tl.load(top_ps + r)
    min_p = tl.load(min_ps + r)
    if usable & (temperature > 0.0):
        if (top_k > 0) & (top_k < vocab_size):
            target = top_k.to(tl.int64)
            pivot, tie_end = _cut(
                row, mask, vocab_size, max_logit, inv, target, False, MASKED, BLOCK
            )
            num_kept, kept_mass = kept_sums(
                row, mask, vocab_size, max_logit, inv, pivot, tie_end, MASKED, BLOCK
            )
        if top_p < 1.0:
            share = tl.ceil(top_p.to(tl.float64) * kept_mass.to(tl.float64)).to(tl.int64)
            target = tl.minimum(tl.maximum(share, 1), kept_mass)
            p_pivot, p_end = _cut(
                row, mask, vocab_size, max_logit, inv, target, True, MASKED, BLOCK
            )
            pivot, tie_end = _narrower(pivot, tie_end, p_pivot, p_end)
        if min_p > 0.0:
            least = tl.where(min_p > 1.1754943508222875e-38, min_p, 1.1754943508222875e-38)
            bound = max_logit + temperature * log_fp32(least)
            pivot, tie_end = _narrower(pivot, tie_end, bound, 2**31 - 1)
        if pivot > LOWEST:
            num_kept, kept_mass = kept_sums(
                row, mask, vocab_size, max_logit, inv, pivot, tie_end, MASKED, BLOCK
            )

    nan = float("nan")
    z = from_fixed(kept_mass)
    z_all = from_fixed(mass_all)
    log_z = log_fp32(tl.where(usable, z, 1.0))
    log_z_all = log_fp32(tl.where(usable, z_all, 1.0))
    plain = usable & (temperature > 0.0)
    desc = out + 9 * r
    tl.store(desc, temperature)
    tl.store(desc + 1, tl.where(plain, pivot, tl.where(usable, max_logit, float("inf"))))
    end = tl.where(plain, tl.minimum(tie_end, vocab_size), tl.where(usable, argmax + 1, 0))
    tl.store(desc + 2, end.to(tl.float32))
    tl.store(desc + 3, tl.where(plain, log_z, tl.where(usable, 0.0, nan)))
    tl.store(desc + 4, tl.where(usable, argmax, -1).to(tl.float32))
    tl.store(desc + 5, tl.where(usable, max_logit, nan))
    tl.store(desc + 6, tl.where(plain, num_kept, tl.where(usable, 1, 0)).to(tl.float32))
    tl.store(desc + 7, tl.where(plain, log_z_all, tl.where(usable, 0.0, nan)))
    tl.store(desc + 8, tl.where(plain, z, tl.where(usable, 1.0, 0.0)))


def row_descriptor(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    bitmask: torch.Tensor | None = None,
) -> torch.Tensor:
    """`ttc_kernels.row_descriptor` in Triton; the arguments are those of the op, not checked."""
    n, vocab_size = logits.shape
    out = torch.empty((n, 9), dtype=torch.float32, device=logits.device)
    if n:
        block = min(_BLOCK, max(128, triton.next_power_of_2(vocab_size)))
        _describe[(n,)](
            logits, logits.stride(0), vocab_size, bitmask, temperature, top_k, top_p, min_p, out,
            MASKED=bitmask is not None, BLOCK=block, num_warps=16 if block == _BLOCK else 4,
            **NO_FUSION,
        )  # fmt: skip
    return out
