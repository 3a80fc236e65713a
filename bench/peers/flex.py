"""FlexAttention, compiled for the shape, with a block mask made from the forest."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from ..devices import best_seconds
from .base import Problem, Run, Skip

# Rows of queries and of keys per block of the mask: small query blocks skip more of a bushy tree,
# large ones cost less to walk. The faster one is used. On a GPU the size must suit the kernel.
_BLOCK_SIZES = {"cpu": ((32, 128), (128, 128)), "cuda": ((128, 128),)}


def build_flex(problem: Problem) -> Run:
    """Compile for both block sizes and keep the faster; neither compiling nor masks are timed.

    Raises:
        Skip: if torch cannot compile it here, with the reason.
    """
    # Each shape is compiled anew; without the reset torch would give up after a few of them.
    torch._dynamo.reset()
    timed = []
    for block_size in _BLOCK_SIZES[problem.device.type]:
        run = _build(problem, block_size)
        try:
            run()
        except Exception as error:
            # torch.compile fails in many ways (no compiler, no headers); all are told alike.
            raise Skip(f"does not compile: {type(error).__name__}") from error
        timed.append((best_seconds(run, problem.device, 2), run))
    return min(timed, key=lambda item: item[0])[1]


def _build(problem: Problem, block_size: tuple[int, int]) -> Run:
    group = problem.group
    # [1, Hkv, num_queries * group, D]: with the group in the rows torch reads K and V once.
    q = problem.folded_queries().transpose(0, 1).flatten(1, 2)[None].contiguous()
    k, v = problem.k[None], problem.v[None]
    mask = _block_mask(problem, block_size)
    compiled = torch.compile(flex_attention, dynamic=False)

    def run() -> torch.Tensor:
        out = compiled(q, k, v, block_mask=mask)[0].unflatten(
            1, (problem.forest.num_queries, group)
        )
        return out.transpose(0, 1).flatten(1, 2)

    return run


def _block_mask(problem: Problem, block_size: tuple[int, int]) -> BlockMask:
    """The forest's mask, from the range of queries that see each token."""
    group, num_tokens = problem.group, problem.forest.unique_tokens
    num_rows = problem.forest.num_queries * group
    first, last = torch.from_numpy(problem.forest.query_ranges).to(problem.device) * group

    def visible(b: object, h: object, row: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        return (row >= first[token]) & (row < last[token])

    start = torch.arange(0, num_rows, block_size[0], device=problem.device)[:, None]
    end = (start + block_size[0]).clamp(max=num_rows)
    # Padding tokens count as seen by nobody, so a ragged last block is never full but masked.
    padding = (0, -num_tokens % block_size[1])
    some = F.pad((first < end) & (last > start), padding)
    full = F.pad((first <= start) & (last >= end), padding)
    some = some.unflatten(1, (-1, block_size[1])).any(-1)
    full = full.unflatten(1, (-1, block_size[1])).all(-1)
    return BlockMask.from_kv_blocks(
        *_listed(some & ~full),
        *_listed(full),
        BLOCK_SIZE=block_size,
        mask_mod=visible,
        seq_lengths=(num_rows, num_tokens),
    )


def _listed(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per row the number of set blocks, and their indices before those of the others."""
    counts = blocks.sum(1).int()
    indices = blocks.int().argsort(dim=1, descending=True, stable=True).int()
    return counts[None, None], indices[None, None]
