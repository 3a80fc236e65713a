"""Each detector of the emulator finds the bug planted for it, and passes the correct twin."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.emulator.build import ROOT, Adapter, EmulatorError, default_variant, preload
from tests.emulator.layouts import accumulators, operand
from tests.emulator.test_instructions import _bits

SEEDS = range(6)

# What the emulator says, in every build.
ERRORS = {
    "shared_write_out_of_bounds": r"wrote at byte 512 of 512 of shared memory",
    "shared_address_out_of_bounds": r"lane 31: cp.async of 16 bytes at byte 512 of shared memory",
    "global_copy_out_of_bounds": r"lane 31: cp.async of 16 bytes at .* outside every registered",
    "stage_refilled_early": r"one arrival more than the 32 of mbarrier",
    "missing_mbarrier_fence": r"no fence_mbarrier_init",
    "wrong_byte_count": r"deadlock(.*\n)*.*mbarrier at byte 512: phase 0 needs 0 of 1 arrivals and "
    r"expects 528 bytes, of which 512",
    "divergent_shuffle": r"divergent (__shfl_xor_sync|__syncwarp): lanes .* wait .*faults.cpp:\d+",
    "divergent_mma": r"divergent mma.sync.*returned",
    "divergent_barrier": r"divergent __syncthreads at faults.cpp:\d+: lane \d+ of the same warp",
    "deadlock": r"deadlock(.*\n)*.*warp 3 lanes 0-31: bar.sync at faults.cpp:\d+",
    "product_missing_fence": r"no wgmma_fence",
    "product_accumulator_touched": r"wrote its accumulator 5 while it was in flight",
}
# Faults that show in the numbers.
WRONG = {
    "shared_read_out_of_bounds",
    "missing_copy_wait",
    "missing_barrier_wait",
    "missing_tensor_wait",
    "wrong_swizzle",
    "product_missing_wait",
    "product_operand_overwritten",
    "product_wrong_swizzle",
}
# What the race build says.
RACES = {
    "shared_read_out_of_bounds": r"read of 4 bytes at byte 512 of shared memory, .*faults.cpp:\d+",
    "shared_write_out_of_bounds": r"write of 4 bytes at byte 512 of shared memory.*faults.cpp:\d+",
    "missing_barrier": r"race: .*faults.cpp:\d+.* of shared memory, unordered with the earlier",
    "missing_warp_sync": r"race: .* of shared memory, unordered",
    "missing_barrier_wait": r"race: .*unordered with the earlier",
    "missing_tensor_wait": r"race: read .*unordered .* write \(tensor load at",
    "missing_release": r"race: read .*global address .*unordered .* write .* by block",
    "product_missing_proxy_fence": r"race: read \(wgmma at .*no fence_proxy_async after",
    "product_operand_overwritten": r"race: write .*unordered .* read \(wgmma at",
}
SANITIZED = {
    "shared_write_out_of_bounds": "heap-buffer-overflow",
    "shared_read_out_of_bounds": "heap-buffer-overflow",
    "global_read_out_of_bounds": "heap-buffer-overflow",
    "global_write_out_of_bounds": "heap-buffer-overflow",
    "misaligned_vector": "misaligned address",
}
ALL = sorted({*ERRORS, *WRONG, *RACES, *SANITIZED})


@cache
def kernels(variant: str) -> Adapter:
    return Adapter(Path(__file__).parent / "adapters/faults.cpp", variant)


def run(name: str, planted: bool, variant: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """What the kernel computed, and what is right."""
    rng = np.random.default_rng(seed)
    call = kernels(variant).call
    if name.startswith("product"):
        a, b = rng.integers(-8, 9, (2, 64, 64)).astype(np.float32)
        image = np.concatenate([operand(_bits(m, torch.bfloat16), 128, False)[0] for m in (a, b)])
        d = np.full((128, 32), np.nan, np.float32)
        call(f"{name}_", planted, image, d, seed=seed)
        return accumulators(d), a @ b.T
    values = rng.standard_normal(128).astype(np.float32)
    out = np.full(128, np.nan, np.float32)
    more = []
    if name == "missing_release":
        more = [np.full(128, np.nan, np.float32), np.zeros(1, np.int32)]
    call(f"{name}_", planted, values, out, *more, seed=seed, resident=1 + seed % 2)
    return out, values[::-1]


@pytest.mark.parametrize("variant", ["default", "race"])
@pytest.mark.parametrize("name", ALL)
def test_the_correct_twin_passes(name: str, variant: str) -> None:
    for seed in SEEDS:
        got, right = run(name, False, default_variant() if variant == "default" else variant, seed)
        np.testing.assert_array_equal(got, right)


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_the_emulator_refuses(name: str) -> None:
    for seed in SEEDS:
        with pytest.raises(EmulatorError, match=ERRORS[name]):
            run(name, True, "plain", seed)


@pytest.mark.parametrize("name", sorted(WRONG))
def test_the_numbers_are_wrong(name: str) -> None:
    for seed in SEEDS:
        try:
            got, right = run(name, True, "plain", seed)
        except EmulatorError:
            pytest.fail("expected wrong numbers")
        assert not np.array_equal(got, right)


@pytest.mark.parametrize("name", sorted(RACES))
def test_the_race_check_finds(name: str) -> None:
    for seed in SEEDS:
        with pytest.raises(EmulatorError, match=RACES[name]):
            run(name, True, "race", seed)


@pytest.mark.parametrize("name", sorted(SANITIZED))
def test_the_sanitizers_find(name: str) -> None:
    code = f"from tests.emulator.test_faults import run; run({name!r}, True, 'sanitize')"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **preload()},
        capture_output=True,
        text=True,
    )
    assert result.returncode
    assert SANITIZED[name] in result.stderr
    assert "faults.cpp" in result.stderr
