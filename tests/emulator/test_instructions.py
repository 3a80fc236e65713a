"""Warp-level instructions of the emulator against numpy, by the layouts the PTX manual gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.emulator.build import Adapter

LANES = np.arange(32)


@pytest.fixture(scope="module")
def kernels() -> Adapter:
    return Adapter(Path(__file__).parent / "adapters/instructions.cpp")


def _bits(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """16-bit patterns of values rounded to dtype."""
    rounded = torch.from_numpy(values.astype(np.float32)).to(dtype)
    return rounded.view(torch.int16).numpy().view(np.uint16)


def _pairs(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return low.astype(np.uint32) | high.astype(np.uint32) << 16


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix_and_stmatrix(kernels: Adapter, count: int, transposed: bool) -> None:
    rng = np.random.default_rng(count)
    image = rng.integers(0, 1 << 16, 32 * 8, dtype=np.uint16)
    rows = rng.permutation(32).astype(np.int32) * 16
    matrices = image.reshape(32, 8)[rows[: 8 * count] // 16].reshape(count, 8, 8)
    if transposed:
        matrices = matrices.transpose(0, 2, 1)
    # Thread T holds elements 2 (T % 4) and the next one of row T / 4.
    expected = _pairs(
        matrices[:, LANES // 4, LANES % 4 * 2], matrices[:, LANES // 4, LANES % 4 * 2 + 1]
    )

    registers = np.zeros((32, count), np.uint32)
    kernels.call("run_load_matrices", count, transposed, image, image.size, rows, registers)
    np.testing.assert_array_equal(registers.T, expected)

    stored = np.zeros_like(image)
    kernels.call("run_store_matrices", count, transposed, stored, image.size, rows, registers)
    written = rows[: 8 * count] // 16
    np.testing.assert_array_equal(stored.reshape(32, 8)[written], image.reshape(32, 8)[written])
    untouched = np.setdiff1d(np.arange(32), written)
    assert (stored.reshape(32, 8)[untouched] == 0xFFFF).all()  # uninitialised shared memory is NaN


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mma_fragments(kernels: Adapter, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(-8, 9, (16, 16)).astype(np.float32)
    b = rng.integers(-8, 9, (16, 8)).astype(np.float32)
    c = rng.integers(-99, 99, (16, 8)).astype(np.float32)
    group, thread = LANES // 4, LANES % 4

    # PTX ISA, fragments of m16n8k16 with 16-bit types: element i of a, b and c held by a thread.
    def a_at(i: int) -> tuple[np.ndarray, np.ndarray]:
        row = group if i < 2 or 4 <= i < 6 else group + 8
        return row, thread * 2 + (i & 1) + (8 if i >= 4 else 0)

    def b_at(i: int) -> tuple[np.ndarray, np.ndarray]:
        return thread * 2 + (i & 1) + (8 if i >= 2 else 0), group

    def c_at(i: int) -> tuple[np.ndarray, np.ndarray]:
        return (group if i < 2 else group + 8), thread * 2 + (i & 1)

    bits_a, bits_b = _bits(a, dtype), _bits(b, dtype)
    ra = np.stack([_pairs(bits_a[a_at(i)], bits_a[a_at(i + 1)]) for i in (0, 2, 4, 6)], 1).copy()
    rb = np.stack([_pairs(bits_b[b_at(i)], bits_b[b_at(i + 1)]) for i in (0, 2)], 1).copy()
    rd = np.stack([c[c_at(i)] for i in range(4)], 1).copy()
    kernels.call("run_multiply", dtype == torch.bfloat16, ra, rb, rd)
    result = np.empty((16, 8), np.float32)
    for i in range(4):
        result[c_at(i)] = rd[:, i]
    np.testing.assert_array_equal(result, a @ b + c)


@pytest.mark.parametrize("width", [32, 16, 8])
@pytest.mark.parametrize("argument", [0, 1, 5, 16])
def test_exchanges(kernels: Adapter, argument: int, width: int) -> None:
    rng = np.random.default_rng(argument)
    v = rng.integers(0, 12, 32).astype(np.int32)
    out = np.zeros((13, 32), np.int32)
    kernels.call("run_exchange", v, out, argument, width)
    segment = LANES // width * width

    def from_lane(source: np.ndarray) -> np.ndarray:
        inside = (source >= segment) & (source < segment + width)
        return v[np.where(inside, source, LANES)]

    np.testing.assert_array_equal(out[0], v[segment + argument % width])
    # A shuffle by xor may reach into lower segments (PTX: only the upper end is a bound).
    xor = LANES ^ argument
    np.testing.assert_array_equal(out[1], v[np.where(xor < segment + width, xor, LANES)])
    np.testing.assert_array_equal(out[2], from_lane(LANES - argument))
    np.testing.assert_array_equal(out[3], from_lane(LANES + argument))
    bits = np.uint32(1) << LANES.astype(np.uint32)
    assert (out[4].view(np.uint32) == bits[v % 2 == 1].sum()).all()
    assert (out[5] == 0).all() and (out[6] == 1).all()
    match = ((v[:, None] == v[None, :]) * bits[None, :]).sum(1).astype(np.uint32)
    np.testing.assert_array_equal(out[7].view(np.uint32), match)
    assert (out[8] == v.sum()).all() and (out[9] == v.max()).all() and (out[10] == v.min()).all()
    assert (out[11] == np.bitwise_xor.reduce(v)).all()
    np.testing.assert_array_equal(out[12], np.repeat([v[:16].sum(), 2 * v[16:].sum()], 16))


def test_last_arriver_in_every_order(kernels: Adapter) -> None:
    blocks, threads = 7, 96
    total, last = np.zeros(1, np.int32), np.zeros(1, np.int32)
    seen = set()
    for seed in range(12):
        partials, arrived = np.full(blocks, -(10**6), np.int32), np.zeros(1, np.int32)
        total[:] = 0
        kernels.call(
            "run_last_arriver",
            blocks,
            threads,
            partials,
            arrived,
            total,
            last,
            seed=seed,
            resident=1 + seed % 3,
        )
        assert total[0] == blocks * threads * (threads - 1) // 2 + blocks * (blocks - 1) // 2
        assert arrived[0] == 0
        seen.add(int(last[0]))
    assert len(seen) > 2  # the order of blocks follows the seed


def test_conversions(kernels: Adapter) -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate(
        [
            rng.standard_normal(4000) * 10.0 ** rng.integers(-10, 6, 4000),
            [0.0, -0.0, np.inf, -np.inf, 65504.0, 65519.0, 65520.0, 1.00390625, 1.01171875, 6e-8],
        ]
    ).astype(np.float32)
    halves, bf16s = np.zeros((2, values.size // 2), np.uint32)
    kernels.call("run_convert", values, values.size, halves, bf16s)
    np.testing.assert_array_equal(halves.view(np.uint16), _bits(values, torch.float16))
    np.testing.assert_array_equal(bf16s.view(np.uint16), _bits(values, torch.bfloat16))

    every = np.arange(256, dtype=np.uint8)
    halves, bf16s = np.zeros((2, 128), np.uint32)
    kernels.call("run_convert_fp8", every.view(np.uint16), 128, halves, bf16s)
    expected = torch.from_numpy(every).view(torch.float8_e4m3fn).float()
    for registers, dtype in ((halves, torch.float16), (bf16s, torch.bfloat16)):
        got = torch.from_numpy(registers.view(np.int16).copy()).view(dtype).float()
        torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)
