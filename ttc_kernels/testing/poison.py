"""Makes it visible when a kernel reads what it must not, or leaves an output unwritten."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

HUGE_PAGE = 2_147_480_000
"""A page number whose offset is far outside any cache."""


def poison_unused_slots(
    caches: Sequence[torch.Tensor], block_tables: Sequence[np.ndarray], kv_lens: np.ndarray
) -> None:
    """Fills every slot that no row owns, in unused pages and behind the last tokens, with NaN.

    Args:
        caches: each ``[num_pages, page_size, Hkv, D]``, a float dtype.
        block_tables: per row its pages. kv_lens: int32 ``[B]``.

    >>> cache = torch.zeros(2, 2, 1, 1)
    >>> poison_unused_slots([cache], [np.array([1])], np.array([1]))
    >>> cache.flatten().tolist()
    [nan, nan, 0.0, nan]
    """
    num_pages, page_size = caches[0].shape[:2]
    used = torch.zeros(num_pages, page_size, dtype=torch.bool)
    for pages, length in zip(block_tables, kv_lens, strict=True):
        for i in range(-(-int(length) // page_size)):
            used[int(pages[i]), : int(length) - i * page_size] = True
    for cache in caches:
        cache[~used.to(cache.device)] = torch.nan


def pad_block_tables(block_tables: Sequence[np.ndarray], extra: int = 1) -> np.ndarray:
    """int32 ``[B, max_pages + extra]``: the rows, followed by a huge page number.

    >>> pad_block_tables([np.array([3]), np.array([], int)]).tolist()[0]
    [3, 2147480000]
    """
    width = max((len(pages) for pages in block_tables), default=0) + extra
    padded = np.full((len(block_tables), width), HUGE_PAGE, np.int32)
    for row, pages in zip(padded, block_tables, strict=True):
        row[: len(pages)] = pages
    return padded


def nan_outputs(q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``out`` like ``q`` and ``lse`` float32 ``[T, Hq]``, all NaN, to find what is not written.

    >>> bool(nan_outputs(torch.zeros(1, 2, 4))[0].isnan().all())
    True
    """
    lse = torch.full(q.shape[:2], torch.nan, dtype=torch.float32, device=q.device)
    return torch.full_like(q, torch.nan, memory_format=torch.contiguous_format), lse
