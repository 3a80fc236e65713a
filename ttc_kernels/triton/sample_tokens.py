"""Draws a token per row: programs race the tokens of a chunk, then one picks the row's winner."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .fp32_math import NO_FUSION
from .race import BLOCK, race
from .random_numbers import TARGET, Stream, noise_of
from .row_dist import Rows, row_dist

_CHUNK = 8192  # tokens to a program


@triton.jit
def _race(
    rows, seeds, positions, best_scores, best_tokens, CHUNK: tl.constexpr, BLOCK: tl.constexpr
):
    r, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    dist = row_dist(rows, r)
    if (dist.inv_temperature > 0.0) & (dist.argmax >= 0):
        stream = Stream(tl.load(seeds + r), tl.load(positions + r), TARGET, 0)
        # Every chunk begins with the likeliest token, a score that most tiles cannot beat.
        best, token = noise_of(stream, dist.argmax), dist.argmax
        end = tl.minimum(rows.vocab_size, (chunk + 1) * CHUNK)
        best, token = race(rows, r, dist, stream, chunk * CHUNK, end, best, token, BLOCK)
        place = r * tl.num_programs(1) + chunk
        tl.store(best_scores + place, best)
        tl.store(best_tokens + place, token)


@triton.jit
def _pick(descriptors, best_scores, best_tokens, tokens, num_chunks, BLOCK: tl.constexpr):
    r = tl.program_id(0).to(tl.int64)
    token = tl.load(descriptors + 9 * r + 4).to(tl.int32)
    if (tl.load(descriptors + 9 * r) > 0.0) & (token >= 0):
        chunk = tl.arange(0, BLOCK)
        place, mask = r * num_chunks + chunk, chunk < num_chunks
        score = tl.load(best_scores + place, mask=mask, other=float("-inf"))
        candidate = tl.load(best_tokens + place, mask=mask, other=2**31 - 1)
        token = tl.min(tl.where(score == tl.max(score), candidate, 2**31 - 1))
    tl.store(tokens + r, token)


def sample_tokens(
    logits: torch.Tensor,
    desc: torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
    bitmask: torch.Tensor | None = None,
) -> torch.Tensor:
    """`ttc_kernels.sample_tokens` in Triton; the arguments are those of the op, not checked."""
    n, vocab_size = logits.shape
    chunks = triton.cdiv(vocab_size, _CHUNK)
    tokens = torch.empty((n,), dtype=torch.int32, device=logits.device)
    if n:
        scores = torch.empty((n, chunks), dtype=torch.float32, device=logits.device)
        candidates = torch.empty((n, chunks), dtype=torch.int32, device=logits.device)
        _race[(n, chunks)](
            Rows.of(logits, desc, bitmask), seeds, positions, scores, candidates, CHUNK=_CHUNK,
            BLOCK=BLOCK, num_warps=4, **NO_FUSION,
        )  # fmt: skip
        _pick[(n,)](
            desc, scores, candidates, tokens, chunks,
            BLOCK=triton.next_power_of_2(chunks), num_warps=1, **NO_FUSION,
        )  # fmt: skip
    return tokens
