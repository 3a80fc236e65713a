"""The definition of tree attention, checked against torch on sequences written out in full."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ttc_kernels import reference


def _case(kv_len: int, q_len: int, seed: int = 0):
    torch.manual_seed(seed)
    page_size, pages = 4, torch.randperm(12)[: -(-kv_len // 4)].tolist()
    k_cache, v_cache = torch.randn(2, 12, page_size, 2, 8).double().unbind()
    q = torch.randn(q_len, 6, 8).double()
    keys, values = (
        cache[pages].flatten(0, 1)[:kv_len].repeat_interleave(3, dim=1).transpose(0, 1)
        for cache in (k_cache, v_cache)
    )
    return q, k_cache, v_cache, pages, keys, values


def _dense(q, keys, values, mask: torch.Tensor, soft_cap: float = 0.0) -> torch.Tensor:
    scores = q.transpose(0, 1) @ keys.transpose(1, 2) / 8**0.5
    if soft_cap > 0:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    return (scores.masked_fill(~mask, -torch.inf).softmax(-1) @ values).transpose(0, 1)


@pytest.mark.parametrize(("kv_len", "q_len"), [(1, 1), (9, 1), (9, 4), (16, 16)])
@pytest.mark.parametrize("window_left", [-1, 0, 3])
@pytest.mark.parametrize("soft_cap", [0.0, 2.0])
def test_a_chain_is_causal_attention(kv_len, q_len, window_left: int, soft_cap: float) -> None:
    q, k_cache, v_cache, pages, keys, values = _case(kv_len, q_len)
    at = torch.arange(kv_len)
    query_at = at[kv_len - q_len :, None]
    mask = at <= query_at
    if window_left >= 0:
        mask &= at >= query_at - window_left
    out, lse = reference.tree_attention(
        q, k_cache, v_cache, [pages], [kv_len], [q_len],
        window_left=window_left, logits_soft_cap=soft_cap,
    )  # fmt: skip
    torch.testing.assert_close(out, _dense(q, keys, values, mask, soft_cap))
    assert lse.isfinite().all()


def test_each_draft_path_is_its_own_sequence() -> None:
    prefix_len, parents = 5, [-1, 0, 0, 2, -1, 4]
    q, k_cache, v_cache, pages, keys, values = _case(prefix_len + len(parents), len(parents))
    for window in (-1, 2):
        out, _ = reference.tree_attention(
            q, k_cache, v_cache, [pages], [11], [6], draft_parents=[parents], window_left=window
        )
        for i in range(len(parents)):
            path, node = [], i
            while node >= 0:
                path.insert(0, prefix_len + node)
                node = parents[node]
            path = [*range(prefix_len), *path]
            path = path if window < 0 else path[-window - 1 :]
            mask = torch.ones(1, len(path), dtype=torch.bool)
            alone = _dense(q[i : i + 1], keys[:, path], values[:, path], mask)
            torch.testing.assert_close(out[i : i + 1], alone)


def test_several_rows_and_an_empty_one() -> None:
    q, k_cache, v_cache, _, _, _ = _case(4, 4)
    tables = np.array([[3, 4, 2_147_480_000], [9, 2_147_480_000, 0], [3, 5, 7]], np.int32)
    lens = np.array([7, 0, 12], np.int32)
    out, lse = reference.tree_attention(q, k_cache, v_cache, tables, lens, [1, 1, 2])
    alone, alone_lse = reference.tree_attention(q[2:], k_cache, v_cache, [[3, 5, 7]], [12], [2])
    assert torch.equal(out[2:], alone) and torch.equal(lse[2:], alone_lse)
    assert not out[1].any() and bool((lse[1] == -torch.inf).all())


def test_merging_two_halves_gives_the_whole() -> None:
    q, k_cache, v_cache, pages, _, _ = _case(16, 1)
    whole = reference.tree_attention(q, k_cache, v_cache, [pages], [16])
    parts = (pages[:2], pages[2:])
    halves = [reference.tree_attention(q, k_cache, v_cache, [part], [8]) for part in parts]
    merged = reference.merge_states(*(torch.stack(pair) for pair in zip(*halves, strict=True)))
    torch.testing.assert_close(merged, whole)
