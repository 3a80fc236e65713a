"""Philox against published vectors, and the quality of the Gumbel noise made from it."""

from __future__ import annotations

import numpy as np
import pytest

from ttc_kernels.reference.verify import (
    ACCEPT,
    DRAFT,
    NOISE_BLOCK,
    RESIDUAL,
    TARGET,
    noise_of_words,
    philox4x32,
    random_words,
    token_noise,
)

# kat_vectors of the Random123 distribution
KNOWN_ANSWERS = [
    ([0] * 4, (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        (0xA4093822, 0x299F31D0),
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_known_answers(counter: list[int], key: tuple[int, int], expected: str) -> None:
    words = philox4x32(np.array(counter, np.uint32), key)
    assert " ".join(f"{word:08x}" for word in words) == expected


def test_every_part_of_the_address_matters() -> None:
    base = {"seed": 5, "position": 9, "domain": TARGET, "sub_index": 0}
    changes = [{}, {"seed": 5 + 2**32}, {"seed": 6}, {"position": 10}, {"position": 9 + 2**32}]
    changes += [{"sub_index": 1}, {"domain": ACCEPT}, {"domain": RESIDUAL}, {"domain": DRAFT}]
    drawn = {tuple(random_words(**base | change, n=8).tolist()) for change in changes}
    assert len(drawn) == len(changes)


def test_noise_is_accurate_and_finite_at_the_ends() -> None:
    random = np.concatenate(
        [
            np.arange(2000, dtype=np.uint32),
            np.arange(2**32 - 2000, 2**32, dtype=np.uint64).astype(np.uint32),
            np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint64).astype(np.uint32),
        ]
    )
    # One token alone in its block, whose place is another's: its clock is the block's plus its own.
    blocks = np.random.default_rng(1).permutation(random)
    first = np.stack([blocks, np.full_like(blocks, 7 << 24)], 1)[:, None]
    noise = noise_of_words(random[:, None], first)[:, 0]
    assert noise.dtype == np.float32 and np.isfinite(noise).all()
    # The formula costs a few roundings, given the uniform numbers as floats ...
    limit = np.float32(4294967040.0)
    uniform = lambda x: np.minimum(x.astype(np.float32) + np.float32(0.5), limit) * 2.0**-32  # noqa: E731
    clock = lambda w: -np.log1p(-w.astype(np.float64))  # noqa: E731
    exact = -np.log(clock(uniform(random)) + clock(uniform(blocks)) / 256)
    assert np.abs(noise - exact).max() < 4e-6
    # ... which have all 32 bits where clocks ring early, as those of winners do.
    early = (random < 2**31) & (blocks < 2**31)
    every_bit = lambda x: -np.log1p(-(x + 0.5) * 2.0**-32)  # noqa: E731
    exact = -np.log(every_bit(random) + every_bit(blocks) / 256)
    assert np.abs(noise - exact)[early].max() < 4e-6


def test_noise_of_a_block_is_independent_gumbel_noise() -> None:
    n, draws = 2 * NOISE_BLOCK + 40, 1500
    noise = np.stack([token_noise(seed, 3, TARGET, 0, n) for seed in range(draws)]).astype(float)
    error = 1.283 / noise.size**0.5
    assert noise.mean() == pytest.approx(np.euler_gamma, abs=5 * error)
    assert noise.std() == pytest.approx(np.pi / 6**0.5, rel=0.01)
    # As uniform numbers: the same in all cells of (token, value), and of pairs of tokens.
    uniform = np.exp(-np.exp(-noise))
    for other in (uniform, np.roll(uniform, 1, 1), np.roll(uniform, NOISE_BLOCK, 1)):
        cells = (8 * uniform).astype(int) * 8 + (8 * other).astype(int)
        if other is uniform:
            counts, freedom = np.stack([(cells // 9 == cell).sum(0) for cell in range(8)]), 7 * n
        else:
            counts, freedom = np.bincount(cells.ravel(), minlength=64), 63
        expected = counts.sum() / counts.size
        deviation = ((counts - expected) ** 2 / expected).sum()
        assert abs(deviation - freedom) < 5 * (2 * freedom) ** 0.5
    # The largest of a block belongs to any of its tokens alike.
    places = noise[:, :NOISE_BLOCK].argmax(1)
    counts = np.bincount(places // 16, minlength=16)
    assert ((counts - draws / 16) ** 2 / (draws / 16)).sum() < 16 + 5 * 32**0.5
