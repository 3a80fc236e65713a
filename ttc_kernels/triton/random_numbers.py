"""Philox by place: csrc/common/philox.h."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .fp32_math import NOISE_BLOCK, noise_block, token_noise

TARGET, ACCEPT, RESIDUAL, DRAFT = (tl.constexpr(i) for i in (1, 2, 3, 4))


class Stream(NamedTuple):
    """The random numbers of a place: key and counters, but for the first."""

    seed: Any
    position: Any
    domain: Any
    sub_index: Any


@triton.jit
def random_words(stream, counter):
    """The four random words of each counter."""
    low = (stream.position & 0xFFFFFFFF).to(tl.uint32)
    high = ((stream.position >> 32) | (stream.domain << 24)).to(tl.uint32)
    sub_index = (low * 0 + stream.sub_index).to(tl.uint32)
    return tl.philox(stream.seed, counter.to(tl.uint32), sub_index, low, high)


@triton.jit
def coin_uniform(stream):
    """24 random bits: in [0, 1)."""
    word, _, _, _ = random_words(stream, stream.position * 0)
    return (word >> 8).to(tl.float32) * 5.9604644775390625e-08


@triton.jit
def noise_blocks(stream, block):
    """The earliest clock of each block of tokens and whose it is."""
    word0, word1, _, _ = random_words(stream, block.to(tl.uint32) + 2147483648)
    return noise_block(word0, word1)


@triton.jit
def noise_of(stream, token):
    """The Gumbel noise of one token."""
    w0, w1, w2, w3 = random_words(stream, token // 4)
    even = tl.where(token % 4 < 2, w0, w2)
    odd = tl.where(token % 4 < 2, w1, w3)
    least, place = noise_blocks(stream, token // NOISE_BLOCK)
    return token_noise(least, place, token, tl.where(token % 2 == 0, even, odd))
