"""wgmma of the emulator against numpy: shapes, operand majors, swizzles, registers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.emulator.build import Adapter, EmulatorError
from tests.emulator.layouts import accumulators, operand
from tests.emulator.test_instructions import _bits, _pairs


@pytest.fixture(scope="module")
def kernels() -> Adapter:
    return Adapter(Path(__file__).parent / "adapters/tensor_core.cpp")


def _run(
    kernels: Adapter,
    n: int,
    k: int,
    spans: tuple[int, int],
    mn_major: tuple[bool, bool],
    dtype: torch.dtype = torch.bfloat16,
    registers: bool = False,
    wrong_swizzle: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """The product as the emulator and as numpy compute it."""
    rng = np.random.default_rng(n + k)
    a = rng.integers(-8, 9, (64, k)).astype(np.float32)
    b = rng.integers(-8, 9, (n, k)).astype(np.float32)
    image_a, layout_a = operand(_bits(a, dtype), spans[0], mn_major[0])
    image_b, layout_b = operand(_bits(b, dtype), spans[1], mn_major[1])
    if wrong_swizzle:
        layout_b[2] = 0
    thread = np.arange(128)
    group, within = thread % 32 // 4, thread % 4
    a_registers = None
    if registers:
        bits = _bits(a, dtype)
        steps = []
        for step in range(k // 16):
            row = 16 * (thread // 32) + group
            column = 16 * step + 2 * within
            steps.append(
                np.stack(
                    [
                        _pairs(bits[row + r, column + c], bits[row + r, column + c + 1])
                        for r, c in ((0, 0), (8, 0), (0, 8), (8, 8))
                    ],
                    1,
                )
            )
        a_registers = np.stack(steps).copy()
    d = np.full((128, n // 2), np.nan, np.float32)
    kernels.call(
        "run_product", dtype == torch.bfloat16, n, *mn_major, image_a, image_a.size, layout_a,
        image_b, image_b.size, layout_b, k // 16, a_registers, d, seed=n,
    )  # fmt: skip
    return accumulators(d), a @ b.T


@pytest.mark.parametrize("b_mn_major", [False, True])
@pytest.mark.parametrize("a_mn_major", [False, True])
@pytest.mark.parametrize("span", [0, 32, 64, 128])
def test_swizzles_and_majors(
    kernels: Adapter, span: int, a_mn_major: bool, b_mn_major: bool
) -> None:
    result, expected = _run(kernels, 64, 128, (span, span), (a_mn_major, b_mn_major))
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("n", [8, 32, 256])
@pytest.mark.parametrize("registers", [False, True])
def test_shapes(kernels: Adapter, n: int, registers: bool) -> None:
    mn_major = n != 8  # 8 columns fill no row of 128 bytes
    result, expected = _run(
        kernels, n, 64, (128, 64 if n == 32 else 128), (False, mn_major), registers=registers
    )
    np.testing.assert_array_equal(result, expected)


def test_fp16(kernels: Adapter) -> None:
    result, expected = _run(kernels, 64, 64, (128, 64), (True, False), dtype=torch.float16)
    np.testing.assert_array_equal(result, expected)


def test_wrong_swizzle_is_seen(kernels: Adapter) -> None:
    result, expected = _run(kernels, 64, 64, (128, 128), (False, False), wrong_swizzle=True)
    assert not np.array_equal(result, expected)


def test_operand_outside_shared_memory(kernels: Adapter) -> None:
    bits = np.zeros((64, 64), np.uint16)
    image, layout = operand(bits, 128, False)
    with pytest.raises(EmulatorError, match=r"wgmma of 16 bytes at byte .* of shared memory"):
        kernels.call(
            "run_product", 1, 64, 0, 0, image, image.size, layout, image[:4096], 4096, layout, 4,
            None, np.zeros((128, 32), np.float32),
        )  # fmt: skip
