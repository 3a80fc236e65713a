"""Philox against published vectors, and the quality of the Gumbel noise made from it."""

from __future__ import annotations

import numpy as np
import pytest

from ttc_kernels.reference.verify import (
    ACCEPT,
    DRAFT,
    RESIDUAL,
    TARGET,
    gumbel,
    philox4x32,
    random_words,
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


def test_gumbel_is_accurate_and_finite_at_the_ends() -> None:
    random = np.concatenate(
        [
            np.arange(2000, dtype=np.uint32),
            np.arange(2**32 - 2000, 2**32, dtype=np.uint64).astype(np.uint32),
            np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint64).astype(np.uint32),
        ]
    )
    noise = gumbel(random)
    assert noise.dtype == np.float32 and np.isfinite(noise).all()
    assert noise.max() == gumbel(np.zeros(1, np.uint32))[0] < 22.875
    # The formula costs a few roundings, given the uniform number as a float ...
    w = np.minimum(random.astype(np.float32) + np.float32(0.5), np.float32(4294967040.0)) * 2.0**-32
    exact = -np.log(-np.log1p(-w.astype(np.float64)))
    assert np.abs(noise - exact).max() < 4e-6
    # ... which has all 32 bits for the large noise that wins races, and 24 for the smallest.
    large = random < 2**31
    exact = -np.log(-np.log1p(-(random + 0.5) * 2.0**-32))
    assert np.abs(noise - exact)[large].max() < 4e-6
    drawn = noise[-200_000:].astype(np.float64)
    assert drawn.mean() == pytest.approx(np.euler_gamma, abs=5 * 1.283 / 200_000**0.5)
    assert drawn.std() == pytest.approx(np.pi / 6**0.5, rel=0.02)
