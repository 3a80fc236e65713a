"""Log-probabilities of given tokens, a program to a token."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .fp32_math import NO_FUSION, from_fixed, log_fp32
from .row_descriptor import ALL_TIES, LOWEST, kept_sums, load_logits, row_top
from .row_dist import Rows, log_probability, logits_of, row_dist

_BLOCK = 4096


@triton.jit
def _plain_logprob(rows, r, token, BLOCK: tl.constexpr):
    """By the softmax of the logits as they are, the bitmask left aside."""
    row, vocab_size = rows.logits + r * rows.stride, rows.vocab_size
    top, usable = row_top(row, None, vocab_size, False, BLOCK)
    logprob = tl.full([], float("-inf"), tl.float32)
    if usable:
        _, mass = kept_sums(row, None, vocab_size, top, 1.0, LOWEST, ALL_TIES, False, BLOCK)
        logit = load_logits(row, None, token, vocab_size, False)
        logprob = (logit - top) - log_fp32(from_fixed(mass))
    return logprob


@triton.jit
def _logprobs(
    rows, num_rows, row_of, tokens, processed, raw, RAW: tl.constexpr, BLOCK: tl.constexpr
):
    i = tl.program_id(0).to(tl.int64)
    r, token = tl.load(row_of + i).to(tl.int64), tl.load(tokens + i)
    logprob = tl.full([], 0.0, tl.float32)
    plain = logprob
    if (r >= 0) & (r < num_rows) & (token >= 0) & (token < rows.vocab_size):
        logprob = log_probability(row_dist(rows, r), logits_of(rows, r, token), token)
        if RAW:
            plain = _plain_logprob(rows, r, token, BLOCK)
    tl.store(processed + i, logprob)
    if RAW:
        tl.store(raw + i, plain)


def token_logprobs(
    logits: torch.Tensor,
    desc: torch.Tensor,
    rows: torch.Tensor,
    tokens: torch.Tensor,
    raw: bool,
    bitmask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`ttc_kernels.token_logprobs` in Triton; the arguments are those of the op, not checked."""
    count = len(tokens)
    processed = torch.empty((count,), dtype=torch.float32, device=logits.device)
    plain = torch.empty((count if raw else 0,), dtype=torch.float32, device=logits.device)
    if count:
        block = min(_BLOCK, max(128, triton.next_power_of_2(logits.shape[1])))
        _logprobs[(count,)](
            Rows.of(logits, desc, bitmask), len(logits), rows, tokens, processed, plain, RAW=raw,
            BLOCK=block, num_warps=16 if block == _BLOCK else 4, **NO_FUSION,
        )  # fmt: skip
    return processed, plain
