"""Tensor loads against numpy: boxes, edges, swizzles, and what the encoder refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.emulator.build import Adapter, EmulatorError
from tests.emulator.layouts import swizzle_rows

BF16, UINT8 = 9, 0
SWIZZLE = {0: 0, 32: 1, 64: 2, 128: 3}


@pytest.fixture(scope="module")
def kernels() -> Adapter:
    return Adapter(Path(__file__).parent / "adapters/tensor_core.cpp")


def _load(
    kernels: Adapter,
    tensor: np.ndarray,
    box: tuple[int, ...],
    at: tuple[int, ...],
    span: int,
    **changes: Any,
) -> np.ndarray:
    """What lands in shared memory for a box (outermost first) at coordinates (outermost first)."""
    rank = tensor.ndim
    sizes = np.array(tensor.shape[::-1], np.uint64)
    strides = np.array((*tensor.strides[:-1][::-1], 0), np.uint64) + np.uint64(
        changes.get("skew", 0)
    )
    image = np.zeros(int(np.prod(box)) * tensor.itemsize, np.uint8)
    status = np.full(1, -1, np.int32)
    kernels.call(
        "run_load_box", tensor, BF16 if tensor.itemsize == 2 else UINT8, rank, sizes, strides,
        np.array(box[::-1], np.uint32), SWIZZLE[span], np.array(at[::-1], np.int32), image,
        image.size, status,
    )  # fmt: skip
    if status[0]:
        raise ValueError("the encoder refused")
    return image


CASES = [
    # tensor, box, at, swizzle span
    ((40, 64), (16, 64), (8, 0), 128),
    ((40, 64), (16, 32), (32, 32), 64),  # rows 40.. are outside
    ((40, 48), (8, 16), (-3, 40), 32),  # so are rows before 0 and columns from 48
    ((3, 16, 64), (1, 16, 64), (2, 0, 0), 128),
    ((5, 4, 3, 128), (1, 4, 1, 64), (4, 0, 2, 64), 128),
    ((2, 3, 4, 5, 16), (2, 1, 2, 5, 16), (1, 2, 3, 0, 0), 0),
]


@pytest.mark.parametrize(("shape", "box", "at", "span"), CASES)
def test_boxes(
    kernels: Adapter, shape: tuple[int, ...], box: tuple[int, ...], at: tuple[int, ...], span: int
) -> None:
    rng = np.random.default_rng(len(shape))
    tensor = rng.integers(0, 1 << 16, shape, dtype=np.uint16)
    # The tensor in the middle of zeros, so that a box at any place is a slice.
    padded = np.pad(tensor, [(b, b) for b in box])
    expected = padded[tuple(slice(i + b, i + 2 * b) for i, b in zip(at, box, strict=True))]
    rows = np.ascontiguousarray(expected).view(np.uint8).reshape(-1, box[-1] * 2)
    if span:
        rows = swizzle_rows(rows, span)
    image = _load(kernels, tensor, box, at, span)
    np.testing.assert_array_equal(image, rows.ravel())
    inside = [max(0, min(i + b, n) - max(i, 0)) for i, b, n in zip(at, box, shape, strict=True)]
    assert kernels.bytes_read(tensor) == 2 * np.prod(inside)


def test_strided_tensor(kernels: Adapter) -> None:
    whole = np.arange(6 * 3 * 64, dtype=np.uint16).reshape(6, 3, 64)
    head = whole[:, 1]
    image = _load(kernels, head, (4, 64), (1, 0), 0)
    np.testing.assert_array_equal(image.view(np.uint16).reshape(4, 64), head[1:5])


@pytest.mark.parametrize(
    ("shape", "box", "span", "skew"),
    [
        ((300, 64), (257, 64), 0, 0),  # a box of more than 256
        ((16, 64), (8, 64), 64, 0),  # rows longer than the swizzle
        ((16, 64), (8, 4), 0, 0),  # rows of 8 bytes
        ((16, 60), (8, 32), 0, 0),  # a stride of 120 bytes
        ((16, 64), (8, 64), 0, 8),  # a stride of 136 bytes
    ],
)
def test_the_encoder_refuses(
    kernels: Adapter, shape: tuple[int, ...], box: tuple[int, ...], span: int, skew: int
) -> None:
    with pytest.raises(ValueError, match="refused"):
        _load(kernels, np.zeros(shape, np.uint16), box, (0, 0), span, skew=skew)


def test_a_map_that_reaches_beyond_the_tensor(kernels: Adapter) -> None:
    tensor = np.zeros((16, 64), np.uint16)
    with pytest.raises(EmulatorError, match=r"tensor load of 16 bytes .* outside every registered"):
        _load(kernels, tensor, (8, 64), (8, 0), 0, skew=16)
