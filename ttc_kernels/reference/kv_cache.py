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
    k_scale: float | torch.Tensor = 1.0,
    v_scale: float | torch.Tensor = 1.0,
    *,
    positions: torch.Tensor | None = None,
    cos_sin: torch.Tensor | None = None,
    interleaved: bool = False,
) -> None:
    """As `ttc_kernels.write_kv`: ``cache[slot // page_size, slot % page_size] = token``.

    >>> cache = torch.zeros(2, 4, 1, 8)
    >>> write_kv(torch.ones(1, 1, 8), torch.ones(1, 1, 8), cache, cache.clone(), torch.tensor([5]))
    >>> cache[1, 1, 0, 0].item()
    1.0
    """
    if positions is not None and cos_sin is not None:
        k = rotate(k, cos_sin[positions], interleaved)
    if k_cache.dtype == torch.float8_e4m3fn:
        k, v = (
            (x.double() / torch.as_tensor(s).double().reshape(-1, 1)).clamp(-448, 448)
            for x, s in ((k, k_scale), (v, v_scale))
        )
    page_size = k_cache.shape[1]
    for t, slot in enumerate(slots.tolist()):
        if slot >= 0:
            k_cache[slot // page_size, slot % page_size] = k[t].to(k_cache.dtype)
            v_cache[slot // page_size, slot % page_size] = v[t].to(v_cache.dtype)


def rotate(x: torch.Tensor, cos_sin: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """``x [T, H, D]`` with its first R elements rotated, in float64 (Su et al., 2021).

    Args:
        cos_sin: ``[T, R]``, R / 2 cosines, then as many sines.
        interleaved: pairs are ``(2i, 2i + 1)``, else ``(i, i + R / 2)``.

    >>> rotate(torch.tensor([[[1.0, 0.0, 7.0]]]), torch.tensor([[0.0, 1.0]]), False).tolist()
    [[[0.0, 1.0, 7.0]]]
    """
    rope_dim = cos_sin.shape[1]
    pairs = (rope_dim // 2, 2) if interleaved else (2, rope_dim // 2)
    axis = -1 if interleaved else -2
    first, second = x[..., :rope_dim].double().unflatten(-1, pairs).unbind(axis)
    cos, sin = cos_sin.double().unsqueeze(1).chunk(2, dim=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat([torch.stack(turned, axis).flatten(-2), x[..., rope_dim:].double()], dim=-1)


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
