"""Aggregates along paths of steps and the best of each group, in Triton.

Both are functions of a block of steps, called by kernels of their own and by the last program of
`score_round`. A step walks up its own path, so no program waits for another; sums are integers
(csrc/step_score/score_math.h), so the order of walking does not show in the bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .fp32_math import NO_FUSION, exp_fp32, log_fp32

BLOCK, RIVALS = 128, 16  # candidates of a program, and how many each is compared with at a time


@triton.jit
def exp_negative(x):
    """exp(x) for x <= 0, NaN for NaN."""
    half = exp_fp32(x * 0.5)
    return tl.where(x == x, tl.where(x < -80.0, half * half, exp_fp32(x)), x)


@triton.jit
def sigmoid(x):
    e = exp_negative(tl.where(x < 0.0, x, -x))
    return tl.div_rn(tl.where(x >= 0.0, 1.0, e), 1.0 + e)


@triton.jit
def _fixed_log(score):
    """The logarithm of a probability in units of 2**-32; that of 0 is -128."""
    tiny = score < 7.888609052210118e-31  # 2**-100
    scaled = tl.where(tiny, score * 1152921504606846976.0, score)
    log = log_fp32(tl.where(scaled > 0.0, scaled, 1.0)) - tl.where(tiny, 41.5888308, 0.0)
    return (tl.where(score > 0.0, log, -128.0) * 4294967296.0).to(tl.int64)


@triton.jit
def aggregate_block(
    i, in_i, scores, parent, carry_stats, carry_state, num_carried, num_steps, stats, state,
    HAS_CARRY: tl.constexpr,
):  # fmt: skip
    """Write the aggregates of the steps ``i``."""
    last = tl.load(scores + i, mask=in_i, other=0.0, cache_modifier=".cg")
    least = tl.full(i.shape, 1.0, tl.float32)
    logs = tl.zeros(i.shape, tl.int64)
    total = tl.zeros(i.shape, tl.int64)
    count = tl.zeros(i.shape, tl.int64)
    bad = tl.zeros(i.shape, tl.int32)
    at = tl.where(in_i, i + num_carried, -1)  # carried entries first, then the steps of this call
    while tl.max(at, 0) >= num_carried:
        own = at >= num_carried
        step = at - num_carried
        score = tl.load(scores + step, mask=own, other=1.0, cache_modifier=".cg")
        usable = (score >= 0.0) & (score <= 1.0)
        score = tl.where(usable, score, 1.0)
        least = tl.minimum(least, score)
        logs += _fixed_log(score)
        total += tl.where(own & usable, (score * 4294967296.0).to(tl.int64), 0)
        count += own.to(tl.int64)
        above = tl.load(parent + step, mask=own, other=-1)
        wrong = own & ((above >= at) | (above < -1))
        bad = tl.where((own & ~usable) | wrong, 1, bad)
        # A path that has reached the carried entries (or its beginning) stays there.
        at = tl.where(own, tl.where(wrong, -1, above), at)
        done = (at >= 0) & (at < num_carried)
        if HAS_CARRY:
            before = tl.load(carry_stats + at, mask=own & done, other=1.0)
            bad = tl.where(before == before, bad, 1)
            least = tl.minimum(least, tl.where(before == before, before, 1.0))
            logs += tl.load(carry_state + at, mask=own & done, other=0)
            total += tl.load(carry_state + num_carried + at, mask=own & done, other=0)
            count += tl.load(carry_state + 2 * num_carried + at, mask=own & done, other=0)
        at = tl.where(done, -1, at)
    nan = float("nan")
    steps = tl.maximum(count, 1).to(tl.float32)
    mean = tl.div_rn(total.to(tl.float32) * 2.3283064365386963e-10, steps)
    product = exp_negative(logs.to(tl.float32) * 2.3283064365386963e-10)
    tl.store(state + i, logs, mask=in_i)
    tl.store(state + num_steps + i, total, mask=in_i)
    tl.store(state + 2 * num_steps + i, count, mask=in_i)
    tl.store(stats + i, tl.where(bad > 0, nan, least), mask=in_i)
    tl.store(stats + num_steps + i, tl.where(bad > 0, nan, product), mask=in_i)
    tl.store(stats + 2 * num_steps + i, tl.where(bad > 0, nan, mean), mask=in_i)
    tl.store(stats + 3 * num_steps + i, last, mask=in_i)


@triton.jit
def select_block(
    i, num_scores, values, group_indptr, num_groups, group_bits, k, selected, RIVALS: tl.constexpr
):
    """Write the places of the candidates ``i`` among the best k, and -1 at the k-places ``i``."""
    # The last group that begins at or before i, by bisection.
    group = tl.zeros(i.shape, tl.int32) - 1
    above = tl.zeros(i.shape, tl.int32) + num_groups + 1
    for _ in range(group_bits):
        middle = (group + above) // 2
        inside = (middle >= 0) & (middle <= num_groups)
        begins = tl.load(group_indptr + middle, mask=inside, other=0)
        before = (middle < 0) | ((begins <= i) & inside)
        group = tl.where(before, middle, group)
        above = tl.where(before, above, middle)
    valid = (i < num_scores) & (group >= 0) & (group < num_groups)
    begin = tl.load(group_indptr + group, mask=valid, other=0)
    end = tl.load(group_indptr + group + 1, mask=valid, other=0)
    value = tl.load(values + i, mask=valid, other=0.0, cache_modifier=".cg")
    rank = tl.zeros(i.shape, tl.int32)
    for start in range(tl.min(tl.where(valid, begin, num_scores), 0), tl.max(end, 0), RIVALS):
        j = start + tl.arange(0, RIVALS)
        other = tl.load(values + j, mask=j < num_scores, other=0.0, cache_modifier=".cg")
        u, v = other[None, :], value[:, None]
        same = (u == v) | ((u != u) & (v != v))
        better = (u > v) | ((u == u) & (v != v)) | (same & (j[None, :] < i[:, None]))
        inside = (j[None, :] >= begin[:, None]) & (j[None, :] < end[:, None])
        rank += tl.sum((better & inside).to(tl.int32), 1)
    place = group.to(tl.int64) * k + rank
    tl.store(selected + place, i.to(tl.int32), mask=valid & (rank < k))


@triton.jit
def fill_block(i, group_indptr, num_groups, k, selected):
    """Write -1 at those of the places ``i`` of ``[G, k]`` that a group is too small for."""
    in_i = i < num_groups * k
    group = i // k
    first = tl.load(group_indptr + group, mask=in_i, other=0)
    size = tl.load(group_indptr + group + 1, mask=in_i, other=0) - first
    tl.store(selected + i, -1, mask=in_i & (i - group * k >= size))


@triton.jit
def _aggregate(
    scores, parent, carry_stats, carry_state, num_carried, num_steps, stats, state,
    HAS_CARRY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    aggregate_block(
        i, i < num_steps, scores, parent, carry_stats, carry_state, num_carried, num_steps, stats,
        state, HAS_CARRY,
    )  # fmt: skip


@triton.jit
def _select(
    values, num_scores, group_indptr, num_groups, group_bits, k, selected,
    BLOCK: tl.constexpr, RIVALS: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    select_block(i, num_scores, values, group_indptr, num_groups, group_bits, k, selected, RIVALS)
    fill_block(i, group_indptr, num_groups, k, selected)


def aggregate_steps(
    scores: torch.Tensor,
    parent: torch.Tensor,
    carry_stats: torch.Tensor | None,
    carry_state: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`ttc_kernels.aggregate_steps` in Triton; the arguments are those of the op, not checked."""
    n = len(scores)
    stats = torch.empty((4, n), dtype=torch.float32, device=scores.device)
    state = torch.empty((3, n), dtype=torch.int64, device=scores.device)
    carried = 0 if carry_stats is None else carry_stats.shape[1]
    if n:
        _aggregate[(triton.cdiv(n, BLOCK),)](
            scores, parent, carry_stats, carry_state, carried, n, stats, state,
            HAS_CARRY=carried > 0, BLOCK=BLOCK, num_warps=4, **NO_FUSION,
        )  # fmt: skip
    return stats, state


def select_topk(scores: torch.Tensor, group_indptr: torch.Tensor, k: int) -> torch.Tensor:
    """`ttc_kernels.select_topk` in Triton; the arguments are those of the op, not checked."""
    groups = len(group_indptr) - 1
    selected = torch.empty((groups, k), dtype=torch.int32, device=scores.device)
    blocks = triton.cdiv(max(len(scores), groups * k), BLOCK)
    if groups:
        _select[(blocks,)](
            scores, len(scores), group_indptr, groups, group_bits(groups), k, selected,
            BLOCK=BLOCK, RIVALS=RIVALS, num_warps=4,
        )  # fmt: skip
    return selected


def group_bits(num_groups: int) -> int:
    """Steps of a bisection among so many groups."""
    return (num_groups + 2).bit_length()
