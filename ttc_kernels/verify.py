"""Filtered distributions over the vocabulary from logits, and tokens drawn from them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from . import _load  # noqa: F401  (registers the ops)
from ._check import require_dtype

__all__ = ["DESCRIPTOR_COLUMNS", "row_descriptor", "sample_tokens"]

DESCRIPTOR_COLUMNS = (
    "temperature",
    "pivot",
    "tie_end",
    "log_z",
    "argmax",
    "max",
    "num_kept",
    "log_z_all",
)
"""The columns of a row descriptor; `row_descriptor` says what they mean."""

_PerRow = float | int | np.ndarray | torch.Tensor


def row_descriptor(
    logits: torch.Tensor,
    temperature: _PerRow,
    top_k: _PerRow | None = None,
    top_p: _PerRow | None = None,
    min_p: _PerRow | None = None,
) -> torch.Tensor:
    """Temperature and filters of every row, boiled down to a few floats.

    The filters apply in the order temperature, top_k, top_p (the shortest list of most probable
    tokens that has at least this share of what top_k left), min_p (relative to the largest
    probability). Each keeps the larger logits; among equal ones top_k and top_p keep those of lower
    index. Sums are exact integers, so that the cut is the same on every machine.

    Args:
        logits: ``[N, V]`` float32, float16 or bfloat16, a dense last dimension, ``V <= 2**24``.
        temperature: one number or ``[N]``; 0 is greedy: the largest logit, lowest index on a tie.
        top_k: one number or ``[N]``, ``>= 0``; 0 or None is off.
        top_p: one number or ``[N]`` in ``(0, 1]``; 1 or None is off.
        min_p: one number or ``[N]`` in ``[0, 1]``; 0 or None is off.

    Returns:
        float32 ``[N, 8]``, columns as `DESCRIPTOR_COLUMNS`: token ``i`` with logit ``l`` is kept if
        ``l > pivot``, or ``l == pivot`` and ``i < tie_end``; its probability is then
        ``exp((l - max) / temperature - log_z)``. ``num_kept`` counts the kept tokens, ``log_z_all``
        is ``log_z`` without filters. A row with a NaN, a +inf, or nothing above -inf has no
        distribution: its ``argmax`` is -1 and nothing is kept.

    Raises:
        TypeError: for a wrong dtype. ValueError: for a wrong shape, device or parameter; parameters
            in a tensor on a GPU are not looked at, that would wait for the GPU.

    >>> desc = row_descriptor(torch.tensor([[1.0, 3.0, 2.0]]), temperature=1.0, top_k=2)
    >>> dict(zip(DESCRIPTOR_COLUMNS, desc[0].tolist()))["pivot"]
    2.0
    """
    op = "row_descriptor"
    _check_logits(op, logits)
    columns = (
        _per_row(op, "temperature", temperature, torch.float32, logits),
        _per_row(op, "top_k", 0 if top_k is None else top_k, torch.int32, logits),
        _per_row(op, "top_p", 1.0 if top_p is None else top_p, torch.float32, logits),
        _per_row(op, "min_p", 0.0 if min_p is None else min_p, torch.float32, logits),
    )
    return torch.ops.ttc_kernels.row_descriptor(logits, *columns)


def sample_tokens(
    logits: torch.Tensor, desc: torch.Tensor, seeds: _PerRow, positions: _PerRow
) -> torch.Tensor:
    """Draws one token per row: the kept token with the largest ``(l - max) / temperature + noise``.

    The Gumbel noise of a token is a function of (seed, position, token) alone, from Philox4x32-10
    in its domain for target tokens, by a formula that has the same bits on every machine: equal
    logits give equal tokens whatever the batch, the order of rows or the padding.

    Args:
        logits: ``[N, V]``, the logits that ``desc`` was made from.
        desc: float32 ``[N, 8]`` from `row_descriptor`.
        seeds: one number or int64 ``[N]``, the seed of each row's request.
        positions: one number or int64 ``[N]`` in ``[0, 2**56)``: the absolute position of the token
            to be drawn. No two draws of a request may share one.

    Returns:
        int32 ``[N]``; -1 for a row without a distribution.

    Raises:
        TypeError: for a wrong dtype. ValueError: for a wrong shape, device or position; a tensor on
            a GPU is not looked at, that would wait for the GPU.

    >>> logits = torch.tensor([[1.0, 3.0, 2.0]])
    >>> sample_tokens(logits, row_descriptor(logits, temperature=0.0), seeds=0, positions=7).item()
    1
    """
    op = "sample_tokens"
    _check_logits(op, logits)
    require_dtype(op, "desc", desc, (torch.float32,))
    return torch.ops.ttc_kernels.sample_tokens(
        logits,
        desc,
        _per_row(op, "seeds", seeds, torch.int64, logits),
        _per_row(op, "positions", positions, torch.int64, logits),
    )


def _check_logits(op: str, logits: torch.Tensor) -> None:
    require_dtype(op, "logits", logits)
    if logits.dim() != 2:
        raise ValueError(f"{op}: logits must be [N, V], got {list(logits.shape)}")


# Where each parameter may lie; the op says it again for the CPU.
_RANGES: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "temperature": (
        lambda t: (t == 0) | ((t >= torch.finfo(torch.float32).tiny) & (t < float("inf"))),
        "0 (greedy) or positive and finite",
    ),
    "top_k": (lambda k: k >= 0, ">= 0 (0 = off)"),
    "top_p": (lambda p: (p > 0) & (p <= 1), "in (0, 1] (1 = off)"),
    "min_p": (lambda p: (p >= 0) & (p <= 1), "in [0, 1] (0 = off)"),
    "positions": (lambda p: (p >= 0) & (p < 2**56), "in [0, 2^56)"),
}


def _per_row(
    op: str, name: str, value: _PerRow, dtype: torch.dtype, logits: torch.Tensor
) -> torch.Tensor:
    """One number, or one per row, as a dense tensor of the op's dtype."""
    given = torch.as_tensor(value)
    if given.dtype == torch.bool or (given.dtype.is_floating_point and not dtype.is_floating_point):
        raise TypeError(f"{op}: {name} must be {dtype}, got {given.dtype}")
    if given.dim() > 1 or given.numel() not in (1, logits.shape[0]):
        raise ValueError(
            f"{op}: {name} must be one number or [{logits.shape[0]}], got {list(given.shape)}"
        )
    # Clamped, or a large top_k from a config would wrap around to a negative one.
    if dtype == torch.int32:
        given = given.clamp(-1, 2**31 - 1)
    if name in _RANGES and given.device.type == "cpu" and logits.device.type != "cpu":
        in_range, expected = _RANGES[name]
        bad = (~in_range(given.reshape(-1).to(dtype))).nonzero()
        if len(bad):
            at = int(bad[0])
            raise ValueError(f"{op}: {name}[{at}] must be {expected}, got {given.reshape(-1)[at]}")
    if given.numel() == 1 and given.device.type == "cpu":  # a fill needs no copy to a GPU
        return torch.full((logits.shape[0],), given.item(), dtype=dtype, device=logits.device)
    given = given.to(device=logits.device, dtype=dtype, non_blocking=True)
    return given.expand(logits.shape[0]).contiguous()


@torch.library.register_fake("ttc_kernels::row_descriptor")
def _row_descriptor_fake(logits, temperature, top_k, top_p, min_p):
    return logits.new_empty((logits.shape[0], len(DESCRIPTOR_COLUMNS)), dtype=torch.float32)


@torch.library.register_fake("ttc_kernels::sample_tokens")
def _sample_tokens_fake(logits, desc, seeds, positions):
    return logits.new_empty((logits.shape[0],), dtype=torch.int32)


@torch.library.impl("ttc_kernels::row_descriptor", "CUDA")
def _row_descriptor_cuda(logits, temperature, top_k, top_p, min_p):
    columns = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    dtypes = (torch.float32, torch.int32, torch.float32, torch.float32)
    _check_device_arguments("row_descriptor", logits, columns, dtypes)
    from .triton.row_descriptor import row_descriptor

    return row_descriptor(logits, temperature, top_k, top_p, min_p)


@torch.library.impl("ttc_kernels::sample_tokens", "CUDA")
def _sample_tokens_cuda(logits, desc, seeds, positions):
    op, n = "sample_tokens", logits.shape[0]
    columns = {"seeds": seeds, "positions": positions}
    _check_device_arguments(op, logits, columns, (torch.int64, torch.int64))
    if desc.shape != (n, len(DESCRIPTOR_COLUMNS)) or not desc.is_contiguous():
        raise ValueError(f"{op}: desc must be a contiguous [{n}, 8], got {list(desc.shape)}")
    if desc.device != logits.device:
        raise ValueError(f"{op}: desc must be on {logits.device}, got {desc.device}")
    from .triton.sample_tokens import sample_tokens

    return sample_tokens(logits, desc, seeds, positions)


def _check_device_arguments(op: str, logits: torch.Tensor, columns: dict, dtypes: tuple) -> None:
    """What the op of the CPU checks, as far as it can be known without waiting for a GPU."""
    _check_logits(op, logits)
    n, vocab_size = logits.shape
    if not 1 <= vocab_size <= 2**24 or (vocab_size > 1 and logits.stride(1) != 1):
        raise ValueError(
            f"{op}: logits must be [N, V] with a dense last dimension and V in [1, {2**24}], "
            f"got {list(logits.shape)} with strides {logits.stride()}"
        )
    for (name, column), dtype in zip(columns.items(), dtypes, strict=True):
        require_dtype(op, name, column, (dtype,))
        if column.shape != (n,) or not column.is_contiguous() or column.device != logits.device:
            raise ValueError(
                f"{op}: {name} must be a contiguous [{n}] on {logits.device}, "
                f"got {list(column.shape)} on {column.device}"
            )
