"""Draws a token per row: programs race the tokens of a chunk, then one picks the row's winner."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .fp32_math import (
    NO_FUSION,
    NOISE_BLOCK,
    is_kept,
    noise_block,
    noise_bound,
    token_noise,
)
from .row_descriptor import load_logits

_CHUNK = 8192  # tokens to a program
_BLOCK = 1024
_TARGET = tl.constexpr(1)  # RandomDomain::kTarget in csrc/common/philox.h


@triton.jit
def _random_words(seed, position, counter):
    """The four random words of each counter."""
    low = (position & 0xFFFFFFFF).to(tl.uint32)
    high = ((position >> 32) | (_TARGET << 24)).to(tl.uint32)
    return tl.philox(seed, counter.to(tl.uint32), low * 0, low, high)


@triton.jit
def _noise_block(seed, position, block):
    word0, word1, _, _ = _random_words(seed, position, block.to(tl.uint32) + 2147483648)
    return noise_block(word0, word1)


@triton.jit
def _race(
    logits, stride, vocab_size, masks, descriptors, seeds, positions, best_scores, best_tokens,
    MASKED: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    r, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    desc = descriptors + 9 * r
    temperature, argmax = tl.load(desc), tl.load(desc + 4).to(tl.int32)
    if (temperature > 0.0) & (argmax >= 0):
        pivot, tie_end = tl.load(desc + 1), tl.load(desc + 2).to(tl.int32)
        max_logit = tl.load(desc + 5)
        inv = tl.div_rn(1.0, temperature)
        mask = masks
        if MASKED:
            mask = masks + r * ((vocab_size + 31) // 32)
        seed, position = tl.load(seeds + r), tl.load(positions + r)
        # Every chunk begins with the likeliest token, a score that most tiles cannot beat.
        w0, w1, w2, w3 = _random_words(seed, position, argmax // 4)
        even = tl.where(argmax % 4 < 2, w0, w2)
        odd = tl.where(argmax % 4 < 2, w1, w3)
        least, place = _noise_block(seed, position, argmax // NOISE_BLOCK)
        best = token_noise(least, place, argmax, tl.where(argmax % 2 == 0, even, odd))
        token = argmax
        rows: tl.constexpr = BLOCK // NOISE_BLOCK
        for start in tl.range(chunk * CHUNK, tl.minimum(vocab_size, (chunk + 1) * CHUNK), BLOCK):
            block = start // NOISE_BLOCK + tl.arange(0, rows)
            index = NOISE_BLOCK * block[:, None] + tl.arange(0, NOISE_BLOCK)[None, :]
            logit = load_logits(logits + r * stride, mask, index, vocab_size, MASKED)
            tops = tl.max(logit, 1)
            leasts, places = _noise_block(seed, position, block)
            reach = (tops - max_logit) * inv + noise_bound(leasts)
            # Random words are drawn only where a block may hold a winner, which few may.
            if tl.max(((tops >= pivot) & (reach >= best)).to(tl.int32)) > 0:
                counter = start // 4 + tl.arange(0, BLOCK // 4)
                v0, v1, v2, v3 = _random_words(seed, position, counter)
                words = tl.join(tl.join(v0, v2), tl.join(v1, v3)).reshape(rows, NOISE_BLOCK)
                noise = token_noise(leasts[:, None], places[:, None], index, words)
                score = (logit - max_logit) * inv + noise
                score = tl.where(is_kept(logit, index, pivot, tie_end), score, float("-inf"))
                tile_best = tl.max(score)
                winner = tl.min(tl.where(score == tile_best, index, 2**31 - 1))
                if (tile_best > best) | ((tile_best == best) & (winner < token)):
                    best, token = tile_best, winner
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
            logits, logits.stride(0), vocab_size, bitmask, desc, seeds, positions, scores,
            candidates, MASKED=bitmask is not None, CHUNK=_CHUNK, BLOCK=_BLOCK, num_warps=4,
            **NO_FUSION,
        )  # fmt: skip
        _pick[(n,)](
            desc, scores, candidates, tokens, chunks,
            BLOCK=triton.next_power_of_2(chunks), num_warps=1, **NO_FUSION,
        )  # fmt: skip
    return tokens
