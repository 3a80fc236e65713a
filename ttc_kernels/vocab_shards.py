"""Rows of logits whose vocabulary is spread over devices."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from ._check import require_dtype
from .verify import DESCRIPTOR_COLUMNS

__all__ = ["merge_descriptors"]

_UNFILTERED = torch.finfo(torch.float32).min  # the pivot that keeps all but -inf


def merge_descriptors(
    descs: Sequence[torch.Tensor], offsets: Sequence[int], empty: torch.Tensor | None = None
) -> torch.Tensor:
    """Descriptors of whole rows from those of their shards: nine floats a row and shard to gather.

    For rows without filters, and greedy ones. What top_k, top_p and min_p keep of a row is not
    known from what they keep of each shard; docs/speculation.md shows how the candidates of top_k
    are gathered instead. All columns have the bits of the whole row's own descriptor but ``z``,
    ``log_z`` and ``log_z_all``: sums were rounded in each shard, and agree to about 1e-6.
    `sample_tokens` and `verify_sampled` do not decide by them.

    Args:
        descs: of each shard, float32 ``[N, 9]`` by `row_descriptor`, all with the temperatures of
            the whole rows and no other filter than a bitmask.
        offsets: ``S + 1`` rising token ids from 0 to the vocabulary's size: shard ``s`` holds the
            tokens ``offsets[s]`` to ``offsets[s + 1]``.
        empty: bool ``[S, N]``: a bitmask allows nothing in this shard of the row, which is left
            aside. Any other shard without a distribution has a NaN or +inf, and the whole row then
            has no distribution either.

    Returns:
        float32 ``[N, 9]``, on the shards' device.

    Raises:
        TypeError: for a wrong dtype. ValueError: for a wrong shape, device or offset, temperatures
            that differ, or descriptors of filtered rows; values on a GPU are not looked at, that
            would wait for the GPU.

    >>> from ttc_kernels import row_descriptor
    >>> row = torch.tensor([[1.0, 3.0, 2.0, 3.0]])
    >>> shards = [row_descriptor(part, 1.0) for part in (row[:, :1], row[:, 1:])]
    >>> torch.allclose(merge_descriptors(shards, [0, 1, 4]), row_descriptor(row, 1.0))
    True
    """
    shards = _checked(descs, offsets, empty)
    column = dict(zip(DESCRIPTOR_COLUMNS, shards.unbind(2), strict=True))
    used = torch.ones_like(column["z"], dtype=torch.bool) if empty is None else ~empty
    usable = ((column["argmax"] >= 0) | ~used).all(0) & used.any(0)
    temperature = column["temperature"][0]
    greedy = temperature == 0

    maxima = torch.where(used, column["max"], -torch.inf)
    top = maxima.amax(0)
    first = (maxima == top).int().argmax(0, keepdim=True)  # the lower index on a tie
    starts = torch.tensor(offsets[:-1], dtype=torch.float32, device=shards.device)[:, None]
    argmax = (column["argmax"] + starts).gather(0, first)[0]
    # Each shard's exp((l - max) / T) has its own maximum. In fp64, so as to round only once more.
    scale = torch.exp((maxima.double() - top.double()) / temperature.double())
    z = torch.where(used, column["z"] * scale, 0.0).sum(0)
    count = torch.where(used, column["num_kept"], 0.0).sum(0)

    # Temperature, pivot, tie_end, log_z, argmax, max, num_kept, log_z_all, z.
    sampled: tuple[Any, ...] = (_UNFILTERED, offsets[-1], z.log(), argmax, top, count, z.log(), z)
    likeliest: tuple[Any, ...] = (top, argmax + 1, 0.0, argmax, top, 1.0, 0.0, 1.0)
    nothing = (torch.inf, 0.0, torch.nan, -1.0, torch.nan, 0.0, torch.nan, 0.0)
    merged = [temperature]
    for plain, only, none in zip(sampled, likeliest, nothing, strict=True):
        merged.append(torch.where(usable, torch.where(greedy, only, plain), none).float())
    return torch.stack(merged, 1)


def _checked(descs, offsets, empty) -> torch.Tensor:
    """The shards' descriptors ``[S, N, 9]``."""
    op = "merge_descriptors"
    if len(descs) == 0:
        raise ValueError(f"{op}: descs must hold one tensor for each shard, got none")
    for s, desc in enumerate(descs):
        require_dtype(op, f"descs[{s}]", desc, (torch.float32,))
        if desc.shape != (descs[0].shape[0], len(DESCRIPTOR_COLUMNS)):
            expected = [descs[0].shape[0], len(DESCRIPTOR_COLUMNS)]
            raise ValueError(f"{op}: descs[{s}] must be {expected}, got {list(desc.shape)}")
        if desc.device != descs[0].device:
            raise ValueError(f"{op}: descs[{s}] must be on {descs[0].device}, got {desc.device}")
    rising = all(a < b for a, b in pairwise(offsets))
    if len(offsets) != len(descs) + 1 or offsets[0] != 0 or not rising or offsets[-1] > 2**24:
        raise ValueError(
            f"{op}: offsets must be {len(descs) + 1} rising token ids from 0 to the vocabulary's "
            f"size, at most {2**24}, got {list(offsets)}"
        )
    shards = torch.stack(list(descs))
    if empty is not None:
        require_dtype(op, "empty", empty, (torch.bool,))
        if empty.shape != shards.shape[:2] or empty.device != shards.device:
            raise ValueError(
                f"{op}: empty must be {list(shards.shape[:2])} on {shards.device}, got "
                f"{list(empty.shape)} on {empty.device}"
            )
    if shards.device.type == "cpu":
        temperature, pivot = shards[:, :, 0], shards[:, :, 1]
        if (temperature != temperature[0]).any():
            raise ValueError(f"{op}: descs must have the same temperature of each row, got others")
        if ((temperature > 0) & (pivot > _UNFILTERED) & (pivot < torch.inf)).any():
            raise ValueError(f"{op}: descs must be of rows without top_k, top_p and min_p")
    return shards
