"""Attention of query tokens over their own path through paged caches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

Rows = Sequence[int] | np.ndarray | torch.Tensor


def tree_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_tables: Sequence[Rows] | np.ndarray | torch.Tensor,
    kv_lens: Rows,
    q_lens: Rows | None = None,
    draft_parents: Sequence[Rows | None] | None = None,
    window_left: int = -1,
    sm_scale: float | None = None,
    logits_soft_cap: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition of `ttc_kernels.tree_attention`: a loop over rows, in fp64.

    The queries of a row are its last ``q_len`` tokens; the tokens before them are its prefix. A
    query sees the prefix, its ancestors among the queries, and itself. Without ``draft_parents``
    the queries are a chain. The logical position of a query is the prefix length plus its depth;
    a window ``w`` lets position ``p`` see the positions ``>= p - w``.

    Args:
        q: ``[T, Hq, D]``, the queries of all rows, row after row.
        k_cache, v_cache: ``[num_pages, page_size, Hkv, D]``; query head ``h`` reads KV head
            ``h // (Hq // Hkv)``.
        block_tables: per row the pages of its tokens; entries past the length are not read.
        kv_lens: per row its number of tokens, queries included.
        q_lens: per row its number of queries, default 1 each.
        draft_parents: per row None or ``[q_len]``: the parent of each query among the queries, -1
            for the prefix; a parent comes before its children.
        window_left: -1 for no window.
        sm_scale: factor of the scores, default ``1 / sqrt(D)``.
        logits_soft_cap: scores become ``cap * tanh(score / cap)``; 0 is off.

    Returns:
        out fp64 ``[T, Hq, D]`` and lse fp64 ``[T, Hq]``, natural log. A query that sees nothing, as
        in a row with ``kv_len == 0``, has out 0 and lse -inf.

    >>> cache = torch.ones(1, 4, 1, 8)
    >>> out, lse = tree_attention(torch.zeros(1, 2, 8), cache, cache, [[0]], [3])
    >>> out[0, 0, 0].item(), round(lse[0, 0].item(), 4)
    (1.0, 1.0986)
    """
    num_tokens, num_q_heads, head_dim = q.shape
    page_size, num_kv_heads = k_cache.shape[1:3]
    scale = 1.0 / math.sqrt(head_dim) if sm_scale is None else sm_scale
    out = torch.zeros(num_tokens, num_q_heads, head_dim, dtype=torch.float64, device=q.device)
    lse = torch.full((num_tokens, num_q_heads), -torch.inf, dtype=torch.float64, device=q.device)
    lens = _ints(kv_lens)
    query_lens = [1] * len(lens) if q_lens is None else _ints(q_lens)
    first = 0
    for row, (kv_len, q_len) in enumerate(zip(lens, query_lens, strict=True)):
        queries = slice(first, first + q_len)
        first += q_len
        if kv_len == 0 or q_len == 0:
            continue
        pages = torch.tensor(_ints(block_tables[row])[: -(-kv_len // page_size)], device=q.device)
        keys = k_cache[pages].flatten(0, 1)[:kv_len].double()
        values = v_cache[pages].flatten(0, 1)[:kv_len].double()
        group = num_q_heads // num_kv_heads
        keys, values = (x.repeat_interleave(group, dim=1) for x in (keys, values))

        scores = torch.einsum("thd,khd->htk", q[queries].double(), keys) * scale
        if logits_soft_cap > 0:
            scores = logits_soft_cap * torch.tanh(scores / logits_soft_cap)
        parents = None if draft_parents is None else draft_parents[row]
        visible = _visible(kv_len, q_len, parents, window_left).to(q.device)
        scores = scores.masked_fill(~visible, -torch.inf)
        row_lse = torch.logsumexp(scores, dim=-1, keepdim=True)
        weights = torch.where(visible, torch.exp(scores - row_lse), 0.0)
        out[queries] = torch.einsum("htk,khd->thd", weights, values)
        lse[queries] = row_lse.squeeze(-1).T
    return out, lse


def _visible(kv_len: int, q_len: int, parents: Rows | None, window_left: int) -> torch.Tensor:
    """bool[q_len, kv_len]: which tokens of its row each query sees."""
    prefix_len = kv_len - q_len
    parent = list(range(-1, q_len - 1)) if parents is None else _ints(parents)
    position = list(range(prefix_len)) + [0] * q_len
    visible = torch.zeros(q_len, kv_len, dtype=torch.bool)
    for i, above in enumerate(parent):
        if above < 0:
            visible[i, :prefix_len] = True
            position[prefix_len + i] = prefix_len
        else:
            visible[i] = visible[above]
            position[prefix_len + i] = position[prefix_len + above] + 1
        visible[i, prefix_len + i] = True
    if window_left >= 0:
        at = torch.tensor(position)
        visible &= at[None, :] >= at[prefix_len:, None] - window_left
    return visible


def _ints(values: Rows) -> list[int]:
    return [int(value) for value in values]
