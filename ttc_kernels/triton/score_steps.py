"""Step scores in Triton: linear layers over gathered rows, in tiles of one shape.

The tile shape depends on the head alone, and inside a tile rows do not touch each other, so that a
row's score has the same bits whichever rows are scored with it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _linear(
    x, x_stride, rows, norm_weight, norm_eps, weight, bias, y, num_rows, width, num_out,
    HAS_ROWS: tl.constexpr, HAS_NORM: tl.constexpr, HAS_BIAS: tl.constexpr, RELU: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """y = relu(norm(x[rows]) @ weight.T + bias), each step if its flag is set; y is fp32."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    in_m, in_n = m < num_rows, n < num_out
    source = m.to(tl.int64)
    if HAS_ROWS:
        source = tl.load(rows + m, mask=in_m, other=0).to(tl.int64)
    x_rows = x + source[:, None] * x_stride
    scale = tl.full([BLOCK_M], 1.0, tl.float32)
    if HAS_NORM:
        squares = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
        for start in tl.range(0, width, BLOCK_K):
            at = start + k[None, :]
            part = tl.load(x_rows + at, mask=in_m[:, None] & (at < width), other=0.0)
            squares += part.to(tl.float32) * part.to(tl.float32)
        mean = tl.sum(squares, 1) / width
        scale = tl.div_rn(1.0, tl.sqrt_rn(mean + norm_eps))
    sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in tl.range(0, width, BLOCK_K):
        at = start + k[None, :]
        part = tl.load(x_rows + at, mask=in_m[:, None] & (at < width), other=0.0).to(tl.float32)
        if HAS_NORM:
            gain = tl.load(norm_weight + at, mask=at < width, other=0.0)
            part = part * (scale[:, None] * gain)
        w = tl.load(
            weight + n[None, :].to(tl.int64) * width + (start + k)[:, None],
            mask=in_n[None, :] & ((start + k)[:, None] < width),
            other=0.0,
        ).to(tl.float32)
        sums = tl.dot(part, w, sums, input_precision="ieee")
    if HAS_BIAS:
        sums += tl.load(bias + n, mask=in_n, other=0.0)[None, :]
    if RELU:
        sums = tl.where(sums < 0.0, 0.0, sums)  # written so that NaN passes
    place = m[:, None].to(tl.int64) * num_out + n[None, :]
    tl.store(y + place, sums, mask=in_m[:, None] & in_n[None, :])


def _layer(x, weight, bias, *, rows=None, norm=(None, 0.0), relu=False) -> torch.Tensor:
    num_rows, num_out = len(x) if rows is None else len(rows), len(weight)
    y = torch.empty((num_rows, num_out), dtype=torch.float32, device=x.device)
    block_n = 16 if num_out <= 16 else 32
    grid = (triton.cdiv(num_rows, 16), triton.cdiv(num_out, block_n))
    _linear[grid](
        x, x.stride(0), rows, norm[0], norm[1], weight, bias, y, num_rows, x.shape[1], num_out,
        HAS_ROWS=rows is not None, HAS_NORM=norm[0] is not None, HAS_BIAS=bias is not None,
        RELU=relu, BLOCK_M=16, BLOCK_N=block_n, BLOCK_K=64, num_warps=4,
    )  # fmt: skip
    return y


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
    first = {"rows": rows, "norm": (norm_weight, norm_eps)}
    if kind == "two_logit":
        w1, b1, w2, b2 = weights
        z = _layer(_layer(hidden, w1, b1, relu=True, **first), w2, b2)
        return torch.sigmoid(z[:, 1] - z[:, 0])  # the softmax over two
    if kind == "value":
        return torch.sigmoid(_layer(hidden, *weights, **first)[:, 0])
    z = _layer(hidden, weights[0], None, **first)
    return torch.sigmoid(z[:, 0] - z[:, 1])
