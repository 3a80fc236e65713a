"""Races of a row's tokens: the largest of scaled logit plus noise wins, the lower index on a tie.

Noise comes in blocks of 256 tokens (csrc/verify/fp32_math.h): two random words bound all of it,
and only where a block may hold a winner the tokens' own words are drawn.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .fp32_math import NOISE_BLOCK, is_kept, noise_bound, token_noise
from .random_numbers import noise_blocks, random_words
from .row_dist import logits_of

BLOCK = 1024  # tokens at a time
NOBODY = tl.constexpr(2**31 - 1)  # the winner of an empty race


@triton.jit
def load_tile(rows, r, start, BLOCK: tl.constexpr):
    """A tile of a row, a noise block to a line: blocks, indices, logits."""
    block = start // NOISE_BLOCK + tl.arange(0, BLOCK // NOISE_BLOCK)
    index = NOISE_BLOCK * block[:, None] + tl.arange(0, NOISE_BLOCK)[None, :]
    return block, index, logits_of(rows, r, index)


@triton.jit
def may_reach(dist, logit, noise, score):
    """Whether one of a tile's tokens may have such a score, with the most noise there is."""
    tops = tl.max(logit, 1)
    reach = (tops - dist.max) * dist.inv_temperature + noise
    return tl.max(((tops >= dist.pivot) & (reach >= score)).to(tl.int32)) > 0


@triton.jit
def tile_noise(stream, start, index, leasts, places, BLOCK: tl.constexpr):
    """The noise of a tile's tokens."""
    v0, v1, v2, v3 = random_words(stream, start // 4 + tl.arange(0, BLOCK // 4))
    words = tl.join(tl.join(v0, v2), tl.join(v1, v3)).reshape(BLOCK // NOISE_BLOCK, NOISE_BLOCK)
    return token_noise(leasts[:, None], places[:, None], index, words)


@triton.jit
def best_of(score, index):
    best = tl.max(score)
    return best, tl.min(tl.where(score == best, index, NOBODY))


@triton.jit
def beats(score, token, other_score, other):
    return (score > other_score) | ((score == other_score) & (token < other))


@triton.jit
def race(rows, r, dist, stream, begin, end, best, token, BLOCK: tl.constexpr):
    """The best of the kept tokens from begin to end, and of one whose score is known already."""
    for start in tl.range(begin, end, BLOCK):
        block, index, logit = load_tile(rows, r, start, BLOCK)
        leasts, places = noise_blocks(stream, block)
        if may_reach(dist, logit, noise_bound(leasts), best):
            score = (logit - dist.max) * dist.inv_temperature
            score += tile_noise(stream, start, index, leasts, places, BLOCK)
            score = tl.where(is_kept(logit, index, dist.pivot, dist.tie_end), score, float("-inf"))
            tile_best, winner = best_of(score, index)
            if beats(tile_best, winner, best, token):
                best, token = tile_best, winner
    return best, token
