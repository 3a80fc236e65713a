"""Shared-memory images of matrices, as tensor loads and wgmma lay them out, in numpy.

A swizzle of S bytes permutes the 16-byte chunks of each row of S bytes: chunk c of row r goes to
c ^ (r % 8) for S = 128, c ^ (r // 2 % 4) for 64 and c ^ (r // 4 % 2) for 32.
"""

from __future__ import annotations

import numpy as np

SWIZZLE_CODE = {0: 0, 128: 1, 64: 2, 32: 3}  # in a wgmma descriptor


def swizzle_rows(rows: np.ndarray, span: int) -> np.ndarray:
    """rows: uint8 [n, span]. The same bytes with the chunks of each row permuted."""
    n = rows.shape[0]
    shift = {128: 1, 64: 2, 32: 4}[span]
    chunks = rows.reshape(n, span // 16, 16)
    source = np.arange(span // 16)[None, :] ^ (np.arange(n)[:, None] // shift % (span // 16))
    return np.take_along_axis(chunks, source[:, :, None], 1).reshape(n, span)


def operand(bits: np.ndarray, span: int, mn_major: bool) -> tuple[np.ndarray, np.ndarray]:
    """Image and layout of one wgmma operand.

    bits: uint16 [m or n, k]. span: bytes of the swizzle, 0 for none. Returns the bytes, and int64
    (leading, stride, swizzle, step, steps in a block, block) as adapters/tensor_core.cpp has them.
    """
    rows, k = bits.shape
    code = SWIZZLE_CODE[span]
    if span == 0:
        # Core matrices of 8 rows of 16 bytes; those of the same k side by side.
        cores = bits.reshape(rows // 8, 8, k // 8, 8).transpose(2, 0, 1, 3)
        if mn_major:
            cores = cores.transpose(0, 1, 3, 2)  # a row of a core runs along m or n
        image = np.ascontiguousarray(cores).view(np.uint8).ravel()
        along_k, along_mn = rows * 16, 128
        return image, np.array([along_k, along_mn, code, 2 * along_k, 1 << 20, 0])
    width = span // 2
    if not mn_major:
        # Blocks of `width` columns of k, each [rows][span bytes].
        blocks = bits.reshape(rows, k // width, width).transpose(1, 0, 2)
        image = [swizzle_rows(np.ascontiguousarray(b).view(np.uint8), span) for b in blocks]
        return np.concatenate(image).ravel(), np.array(
            [0, 8 * span, code, 32, width // 16, rows * span]
        )
    # Blocks of `width` rows, each [k][span bytes].
    blocks = bits.T.reshape(k, rows // width, width).transpose(1, 0, 2)
    image = [swizzle_rows(np.ascontiguousarray(b).view(np.uint8), span) for b in blocks]
    return np.concatenate(image).ravel(), np.array(
        [k * span, 8 * span, code, 16 * span, 1 << 20, 0]
    )


def accumulators(d: np.ndarray) -> np.ndarray:
    """The matrix [64, n] that the registers d [128 threads, n / 2] of wgmma hold (PTX ISA)."""
    columns = 2 * d.shape[1]
    thread = np.arange(128)
    matrix = np.empty((64, columns), d.dtype)
    for i in range(columns // 2):
        row = 16 * (thread // 32) + thread % 32 // 4 + (8 if i % 4 >= 2 else 0)
        matrix[row, 8 * (i // 4) + 2 * (thread % 4) + i % 2] = d[:, i]
    return matrix
