"""Children of draft nodes, a program to a row: the likeliest tokens, or drawn ones."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .fp32_math import NO_FUSION, is_kept, noise_bound
from .race import BLOCK, NOBODY, beats, best_of, load_tile, may_reach, race, tile_noise
from .random_numbers import DRAFT, TARGET, Stream, noise_blocks, noise_of
from .row_dist import Rows, log_probability, logits_of, row_dist


@triton.jit
def _stream(seed, position, stream, child, TARGET_NOISE: tl.constexpr):
    if TARGET_NOISE:
        drawn = Stream(seed, position, TARGET, stream * 0)
    else:
        drawn = Stream(seed, position, DRAFT, (stream << 8) | child)
    return drawn


@triton.jit
def _best(rows, r, dist, stream, k, NOISE: tl.constexpr, ROOM: tl.constexpr, BLOCK: tl.constexpr):
    """The k best scores of a row and whose they are, in no order; -inf for none."""
    lane = tl.arange(0, ROOM)
    scores = tl.full([ROOM], float("-inf"), tl.float32)
    tokens = tl.full([ROOM], NOBODY, tl.int32)
    for start in tl.range(0, rows.vocab_size, BLOCK):
        block, index, logit = load_tile(rows, r, start, BLOCK)
        leasts, places = noise_blocks(stream, block)
        bound = noise_bound(leasts) if NOISE else 0.0
        worst = tl.min(tl.where(lane < k, scores, float("inf")))
        if may_reach(dist, logit, bound, worst):
            score = (logit - dist.max) * dist.inv_temperature
            if NOISE:
                score += tile_noise(stream, start, index, leasts, places, BLOCK)
            kept = is_kept(logit, index, dist.pivot, dist.tie_end)
            score = tl.where(kept, score, float("-inf"))
            found, token = best_of(score, index)
            last = tl.max(tl.where((lane < k) & (scores == worst), tokens, -1))
            while (found > float("-inf")) & beats(found, token, worst, last):
                out = (lane < k) & (scores == worst) & (tokens == last)
                out = lane == tl.min(tl.where(out, lane, ROOM))
                scores = tl.where(out, found, scores)
                tokens = tl.where(out, token, tokens)
                score = tl.where(index == token, float("-inf"), score)
                found, token = best_of(score, index)
                worst = tl.min(tl.where(lane < k, scores, float("inf")))
                last = tl.max(tl.where((lane < k) & (scores == worst), tokens, -1))
    return scores, tokens


@triton.jit
def _write(rows, r, dist, place, token, score, out_tokens, logprobs, out_scores):
    logprob = tl.full([], float("-inf"), tl.float32)
    if token >= 0:
        logprob = log_probability(dist, logits_of(rows, r, token), token)
    tl.store(out_tokens + place, token)
    tl.store(logprobs + place, logprob)
    tl.store(out_scores + place, tl.where(token >= 0, score, float("-inf")))


@triton.jit
def _children(
    rows, seeds, positions, streams, k, out_tokens, logprobs, out_scores,
    MODE: tl.constexpr, TARGET_NOISE: tl.constexpr, ROOM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    r = tl.program_id(0).to(tl.int64)
    dist = row_dist(rows, r)
    seed, position, stream = tl.load(seeds + r), tl.load(positions + r), tl.load(streams + r)
    if MODE != "iid":
        own = _stream(seed, position, stream, 0, TARGET_NOISE)
        scores, tokens = _best(rows, r, dist, own, k, MODE != "topk", ROOM, BLOCK)
    for i in range(k):
        if MODE == "iid":
            own = _stream(seed, position, stream, i, TARGET_NOISE)
            score, token = noise_of(own, dist.argmax), dist.argmax
            score, token = race(rows, r, dist, own, 0, rows.vocab_size, score, token, BLOCK)
        else:
            score, token = best_of(scores, tokens)
            scores = tl.where(tokens == token, float("-inf"), scores)
            token = tl.where(score > float("-inf"), token, -1)
        score = tl.where(dist.inv_temperature == 0.0, 0.0, score)  # there was nothing to draw
        _write(rows, r, dist, r * k + i, token, score, out_tokens, logprobs, out_scores)


def sample_children(
    logits: torch.Tensor,
    desc: torch.Tensor,
    k: int,
    mode: str,
    target_noise: bool,
    seeds: torch.Tensor,
    positions: torch.Tensor,
    streams: torch.Tensor,
    bitmask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`ttc_kernels.sample_children` in Triton; the arguments are those of the op, not checked."""
    n = len(logits)
    tokens = torch.empty((n, k), dtype=torch.int32, device=logits.device)
    logprobs = torch.empty((n, k), dtype=torch.float32, device=logits.device)
    scores = torch.empty_like(logprobs)
    if n:
        _children[(n,)](
            Rows.of(logits, desc, bitmask), seeds, positions, streams, k, tokens, logprobs, scores,
            MODE=mode, TARGET_NOISE=target_noise, ROOM=triton.next_power_of_2(k), BLOCK=BLOCK,
            num_warps=8, **NO_FUSION,
        )  # fmt: skip
    return tokens, logprobs, scores
