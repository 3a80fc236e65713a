"""Step scores in Triton: one launch, whatever the head, and for a beam round what follows as well.

A program holds 16 gathered rows and a tile of the first layer's outputs, and reduces it at once to
what a score needs: its share of the two logits, or of a softmax's sums. The program that arrives
last for its rows adds the shares up in order; the last of all goes on to aggregates and selection.

    grid: row tiles x output tiles
      hidden rows ─ x gain ─> dot ─ x 1/rms, + bias ─> relu, W2 │ softmax sums ─> shares
                                         last of a row tile: add shares in order ─> scores
                                         last of all (score_round): aggregates, then the best k

Tiles depend on the head alone, and inside a tile rows do not touch each other, so that a row's
score has the same bits whichever rows are scored with it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .fp32_math import NO_FUSION
from .step_paths import (
    BLOCK,
    RIVALS,
    aggregate_block,
    exp_negative,
    fill_block,
    group_bits,
    select_block,
    sigmoid,
)

_ROWS = 16
KINDS = {"two_logit": 0, "value": 1, "raw": 2, "token_pair": 3, "softmax": 4}
TWO_LOGIT, VALUE, RAW, SOFTMAX = (tl.constexpr(i) for i in (0, 1, 2, 4))


@triton.jit
def _shares(z, n, in_n, w2, good, num_out, KIND: tl.constexpr):
    """What a tile of outputs ``z`` contributes: three numbers a row."""
    if KIND == TWO_LOGIT:
        z = tl.where(z < 0.0, 0.0, z)  # written so that NaN passes
        first = tl.load(w2 + n, mask=in_n, other=0.0).to(tl.float32)
        second = tl.load(w2 + num_out + n, mask=in_n, other=0.0).to(tl.float32)
        a = tl.sum(z * first[None, :], 1)
        b = tl.sum(z * second[None, :], 1)
        return a, b, b
    if KIND == SOFTMAX:
        z = tl.where(in_n[None, :], z, float("-inf"))
        top = tl.max(z, 1)
        e = exp_negative(z - top[:, None])
        is_good = tl.load(good + n, mask=in_n, other=0.0)
        return top, tl.sum(e, 1), tl.sum(e * is_good[None, :], 1)
    a = tl.sum(tl.where((n == 0)[None, :], z, 0.0), 1)
    b = tl.sum(tl.where((n == 1)[None, :], z, 0.0), 1)
    return a, b, b


@triton.jit
def _score_of(shares, m, in_m, num_rows, tiles, b2, KIND: tl.constexpr):
    """Scores from the shares of all tiles, added in order."""
    a = tl.zeros(m.shape, tl.float32)
    b = tl.zeros(m.shape, tl.float32)
    top = tl.full(m.shape, float("-inf"), tl.float32)
    at = shares + m * 3
    for _ in range(tiles):
        x = tl.load(at, mask=in_m, other=0.0, cache_modifier=".cg")
        y = tl.load(at + 1, mask=in_m, other=1.0, cache_modifier=".cg")
        if KIND == SOFTMAX:
            good = tl.load(at + 2, mask=in_m, other=0.0, cache_modifier=".cg")
            new = tl.maximum(top, x)
            old_part, new_part = exp_negative(top - new), exp_negative(x - new)
            a = a * old_part + y * new_part
            b = b * old_part + good * new_part
            top = new
        else:
            a += x
            b += y
        at += num_rows * 3
    if KIND == SOFTMAX:
        return tl.div_rn(b, a)
    if KIND == TWO_LOGIT:
        return sigmoid((b + tl.load(b2 + 1)) - (a + tl.load(b2)))
    if KIND == VALUE:
        return sigmoid(a)
    if KIND == RAW:
        return a
    return sigmoid(a - b)


@triton.jit
def _score(
    hidden, hidden_stride, rows, norm_weight, norm_eps, weight, bias, w2, b2, good, shares, scores,
    arrivals, num_rows, width, num_out, parent, carry_stats, carry_state, num_carried, stats, state,
    group_indptr, num_groups, group_bits, k, selected,
    KIND: tl.constexpr, HAS_NORM: tl.constexpr, HAS_BIAS: tl.constexpr, IS_ROUND: tl.constexpr,
    HAS_CARRY: tl.constexpr, BY: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK: tl.constexpr, RIVALS: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k_range = tl.arange(0, BLOCK_K)
    in_m, in_n = m < num_rows, n < num_out
    source = tl.load(rows + m, mask=in_m, other=0).to(tl.int64)
    x_rows = hidden + source[:, None] * hidden_stride
    squares = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in tl.range(0, width, BLOCK_K):
        at = start + k_range[None, :]
        x = tl.load(x_rows + at, mask=in_m[:, None] & (at < width), other=0.0).to(tl.float32)
        if HAS_NORM:
            squares += x * x
            x = x * tl.load(norm_weight + at, mask=at < width, other=0.0)
        w = tl.load(
            weight + n[None, :].to(tl.int64) * width + (start + k_range)[:, None],
            mask=in_n[None, :] & ((start + k_range)[:, None] < width),
            other=0.0,
        ).to(tl.float32)
        sums = tl.dot(x, w, sums, input_precision="ieee")
    if HAS_NORM:
        mean = tl.div_rn(tl.sum(squares, 1), width.to(tl.float32))
        sums = sums * tl.div_rn(1.0, tl.sqrt_rn(mean + norm_eps))[:, None]
    if HAS_BIAS:
        sums += tl.load(bias + n, mask=in_n, other=0.0)[None, :]
    a, b, c = _shares(sums, n, in_n, w2, good, num_out, KIND)
    place = shares + (tl.program_id(1).to(tl.int64) * num_rows + m) * 3
    tl.store(place, a, mask=in_m)
    tl.store(place + 1, b, mask=in_m)
    tl.store(place + 2, c, mask=in_m)
    tl.debug_barrier()  # every thread's stores before the arrival of this program
    tiles = tl.num_programs(1)
    if tl.atomic_add(arrivals + tl.program_id(0), 1, sem="acq_rel") == tiles - 1:
        tl.store(arrivals + tl.program_id(0), 0)  # for the next launch
        tl.store(scores + m, _score_of(shares, m, in_m, num_rows, tiles, b2, KIND), mask=in_m)
        if IS_ROUND:
            tl.debug_barrier()
            row_tiles = tl.num_programs(0)
            if tl.atomic_add(arrivals + row_tiles, 1, sem="acq_rel") == row_tiles - 1:
                tl.store(arrivals + row_tiles, 0)
                for start in range(0, num_rows, BLOCK):
                    i = start + tl.arange(0, BLOCK)
                    aggregate_block(
                        i, i < num_rows, scores, parent, carry_stats, carry_state, num_carried,
                        num_rows, stats, state, HAS_CARRY,
                    )  # fmt: skip
                tl.debug_barrier()
                for start in range(0, num_rows, BLOCK):
                    i = start + tl.arange(0, BLOCK)
                    select_block(
                        i, num_rows, stats + BY * num_rows, group_indptr, num_groups, group_bits,
                        k, selected, RIVALS,
                    )  # fmt: skip
                for start in range(0, num_groups * k, BLOCK):
                    i = start + tl.arange(0, BLOCK)
                    fill_block(i, group_indptr, num_groups, k, selected)


_arrivals: dict[tuple, torch.Tensor] = {}


def _arrival_counters(device: torch.device, count: int) -> torch.Tensor:
    """Zeros, one set per stream: a launch leaves its counters at zero for the next."""
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    counters = _arrivals.get((device, stream))
    if counters is None or len(counters) < count:
        counters = torch.zeros(max(count, 1024), dtype=torch.int32, device=device)
        _arrivals[device, stream] = counters
    return counters


def _launch(hidden, rows, kind, weights, norm_weight, norm_eps, round_arguments=None, by=0):
    scores = torch.empty(len(rows), dtype=torch.float32, device=hidden.device)
    weight, bias, w2, b2, good = (weights[0], None, None, None, None)
    if kind == "two_logit":
        _, bias, w2, b2 = weights
    elif kind == "softmax":
        _, bias, good = weights
    elif kind != "token_pair":
        bias = weights[1]
    block_n = 16 if len(weight) <= 16 else 64
    row_tiles, tiles = triton.cdiv(len(rows), _ROWS), triton.cdiv(len(weight), block_n)
    shares = torch.empty((tiles, len(rows), 3), dtype=torch.float32, device=hidden.device)
    tail = round_arguments or (None, None, None, 0, None, None, None, 0, 0, 1, None)
    _score[(row_tiles, tiles)](
        hidden, hidden.stride(0), rows, norm_weight, norm_eps, weight, bias, w2, b2, good, shares,
        scores, _arrival_counters(hidden.device, row_tiles + 1), len(rows), hidden.shape[1],
        len(weight), *tail,
        KIND=KINDS[kind], HAS_NORM=norm_weight is not None, HAS_BIAS=bias is not None,
        IS_ROUND=round_arguments is not None, HAS_CARRY=tail[1] is not None, BY=by,
        BLOCK_M=_ROWS, BLOCK_N=block_n, BLOCK_K=128 // weight.element_size(),
        BLOCK=BLOCK, RIVALS=RIVALS, num_warps=2 * weight.element_size(), maxnreg=168, **NO_FUSION,
    )  # fmt: skip
    return scores


def score_steps(
    hidden: torch.Tensor,
    rows: torch.Tensor,
    kind: str,
    weights: list[torch.Tensor],
    norm_weight: torch.Tensor | None,
    norm_eps: float,
) -> torch.Tensor:
    """`ttc_kernels.score_steps` in Triton; the arguments are those of the op, not checked."""
    if len(rows) == 0:
        return torch.empty(0, dtype=torch.float32, device=hidden.device)
    return _launch(hidden, rows, kind, weights, norm_weight, norm_eps)


def score_round(
    hidden, rows, kind, weights, norm_weight, norm_eps, parent, carry_stats, carry_state,
    group_indptr, k, by,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """`ttc_kernels.score_round` in Triton; the arguments are those of the op, not checked."""
    n, groups = len(rows), len(group_indptr) - 1
    new = lambda shape, dtype: torch.empty(shape, dtype=dtype, device=hidden.device)  # noqa: E731
    stats, state = new((4, n), torch.float32), new((3, n), torch.int64)
    selected = new((groups, k), torch.int32)
    carried = 0 if carry_stats is None else carry_stats.shape[1]
    if n == 0:
        return new(0, torch.float32), stats, state, selected.fill_(-1)
    carry = (carry_stats, carry_state) if carried else (None, None)
    arguments = (
        parent, *carry, carried, stats, state,
        group_indptr, groups, group_bits(groups), k, selected,
    )  # fmt: skip
    scores = _launch(hidden, rows, kind, weights, norm_weight, norm_eps, arguments, by)
    return scores, stats, state, selected
