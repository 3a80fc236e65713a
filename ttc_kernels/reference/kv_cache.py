"""Moves of K and V, one token at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def write_kv(
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor,
) -> None:
    """As `ttc_kernels.write_kv`: ``cache[slot // page_size, slot % page_size] = token``.

    >>> cache = torch.zeros(2, 4, 1, 8)
    >>> write_kv(torch.ones(1, 1, 8), torch.ones(1, 1, 8), cache, cache.clone(), torch.tensor([5]))
    >>> cache[1, 1, 0, 0].item()
    1.0
    """
    page_size = k_cache.shape[1]
    for t, slot in enumerate(slots.tolist()):
        if slot >= 0:
            k_cache[slot // page_size, slot % page_size] = k[t]
            v_cache[slot // page_size, slot % page_size] = v[t]


def copy_pages(
    k_caches: Sequence[torch.Tensor], v_caches: Sequence[torch.Tensor], copies: torch.Tensor
) -> None:
    """As `ttc_kernels.copy_pages`: the copies one after the other, in every cache.

    >>> cache = torch.arange(3.0).reshape(3, 1, 1, 1)
    >>> copy_pages([cache], [cache.clone()], torch.tensor([[2, 0, 1]]))
    >>> cache.flatten().tolist()
    [2.0, 1.0, 2.0]
    """
    for cache in [*k_caches, *v_caches]:
        for src, dst, num_tokens in copies.tolist():
            cache[dst, :num_tokens] = cache[src, :num_tokens].clone()


def commit_kv(
    k_caches: Sequence[torch.Tensor],
    v_caches: Sequence[torch.Tensor],
    src_slots: torch.Tensor,
    dst_slots: torch.Tensor,
) -> None:
    """As `ttc_kernels.commit_kv`: all tokens are read, then all are written.

    >>> cache = torch.arange(3.0).reshape(3, 1, 1, 1)
    >>> commit_kv([cache], [cache.clone()], torch.tensor([2, -1]), torch.tensor([0, 1]))
    >>> cache.flatten().tolist()
    [2.0, 1.0, 2.0]
    """
    moved = [
        (src, dst)
        for src, dst in zip(src_slots.tolist(), dst_slots.tolist(), strict=True)
        if src >= 0 and dst >= 0
    ]
    for cache in [*k_caches, *v_caches]:
        tokens = cache.flatten(0, 1)
        before = tokens.clone()
        for src, dst in moved:
            tokens[dst] = before[src]
