"""The plan: what is shared, what is refused, what an update keeps."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import ttc_kernels
from ttc_kernels.testing import (
    assert_bitwise_equal,
    from_nodes,
    many_branches,
    no_sharing,
    published_tree,
)

HEADS = {"num_q_heads": 4, "num_kv_heads": 2, "head_dim": 64, "dtype": torch.float32}


def plan_of(load, **options):
    merged = {**HEADS, "page_size": load.page_size, **options}
    return ttc_kernels.plan_tree_attention(load.block_tables, load.kv_lens, load.q_lens, **merged)


@pytest.mark.parametrize(
    "levels,tokens,unique,path",
    [
        ([1, 2, 64], [8, 256, 32], 2568, 18944),
        ([1, 256], [256, 32], 8448, 73728),
        ([1, 1024], [2048, 32], 34816, 2129920),
        ([256], [1024], 262144, 262144),
    ],
)
def test_published_counts(levels, tokens, unique, path):
    """At page size 1 nothing is copied at forks, so the counts are those of the publications."""
    stats = plan_of(published_tree(levels, tokens, page_size=1)).stats
    assert (stats["unique_kv_tokens"], stats["path_kv_tokens"]) == (unique, path)


def test_shared_prompt_is_read_once():
    load = many_branches(100, prompt_tokens=512)
    stats = plan_of(load).stats
    token_bytes = 2 * 2 * 64 * 4
    assert stats["kv_bytes"] <= 1.1 * stats["unique_kv_tokens"] * token_bytes
    assert stats["kv_bytes_read"] >= stats["kv_bytes"]


def test_tiny_nodes_are_absorbed():
    """A one-token node above two leaves costs more to merge than to read again."""
    load = from_nodes("tiny", [(-1, 1), (0, 200), (0, 200)], page_size=1)
    stats = plan_of(load).stats
    assert stats["partials"] == 0 and stats["work_items"] == 2


def test_no_sharing_says_so():
    stats = plan_of(no_sharing(4)).stats
    assert stats["kv_bytes"] == stats["unique_kv_tokens"] * 2 * 2 * 64 * 4
    assert "nothing to share" in stats["decision"]


def test_every_query_is_covered_once_in_path_order():
    load = published_tree([1, 4, 16], [40, 33, 50])
    for deterministic in (False, True):
        items = items_of(plan_of(load, deterministic=deterministic))
        for query in range(16):
            runs = sorted((k0, k1) for q0, n, k0, k1 in items if q0 <= query < q0 + n)
            assert runs[0][0] == 0 and runs[-1][1] >= 123
            assert all(a[1] == b[0] for a, b in itertools.pairwise(runs))
            if deterministic:
                assert all(k0 % 128 == 0 for k0, _ in runs)


def items_of(plan):
    """(first query, queries, first key, end key) of the work items, read from the buffer."""
    buffer = plan.buffer.numpy()
    count, at = int(buffer[4]), int(buffer[16])
    return [tuple(row[:4]) for row in buffer[at : at + 8 * count].reshape(count, 8).tolist()]


@pytest.mark.parametrize("deterministic", [False, True])
def test_update_inside_the_reserved_pages(deterministic):
    """An updated plan gives what a fresh one gives, on the same addresses."""
    load = from_nodes("grow", [(-1, 30), (0, 5), (0, 9)], page_size=16)
    tables = [np.append(t, 60 + i).astype(np.int32) for i, t in enumerate(load.block_tables)]
    g = torch.Generator().manual_seed(0)
    k, v = torch.randn(2, 64, 16, 2, 64, generator=g)
    q = torch.randn(2, 4, 64, generator=g)
    options = {**HEADS, "page_size": 16, "deterministic": deterministic}
    reserved = [64, 60]
    plan = ttc_kernels.plan_tree_attention(tables, load.kv_lens, reserved_lens=reserved, **options)
    before = plan.buffer.data_ptr()
    for grown in (load.kv_lens + 3, load.kv_lens + 20, np.array(reserved)):
        plan.update(torch.from_numpy(grown))
        got = ttc_kernels.tree_attention(q, k, v, plan)
        fresh = ttc_kernels.plan_tree_attention(tables, grown, reserved_lens=reserved, **options)
        expected = ttc_kernels.tree_attention(q, k, v, fresh)
        assert_bitwise_equal(got[0], expected[0])
        assert_bitwise_equal(got[1], expected[1])
        plain = ttc_kernels.plan_tree_attention(tables, grown, **options)
        torch.testing.assert_close(got[0], ttc_kernels.tree_attention(q, k, v, plain)[0])
        assert plan.buffer.data_ptr() == before


def test_an_empty_row_may_grow():
    g = torch.Generator().manual_seed(0)
    k, v = torch.randn(2, 4, 16, 2, 64, generator=g)
    q = torch.randn(2, 4, 64, generator=g)
    options = {**HEADS, "page_size": 16}
    plan = ttc_kernels.plan_tree_attention([[0], [1]], [0, 7], reserved_lens=[16, 16], **options)
    out, lse = ttc_kernels.tree_attention(q, k, v, plan)
    assert (out[0] == 0).all() and (lse[0] == -torch.inf).all() and (out[1] != 0).all()
    plan.update([2, 7])
    fresh = ttc_kernels.plan_tree_attention([[0], [1]], [2, 7], **options)
    assert_bitwise_equal(
        ttc_kernels.tree_attention(q, k, v, plan)[0], ttc_kernels.tree_attention(q, k, v, fresh)[0]
    )


@pytest.mark.parametrize(
    "lens,error,message",
    [
        ([19, 24], ValueError, r"kv_lens\[0\] must be in \[20, 32\], .* got 19; use plan.replan"),
        ([20, 33], ValueError, r"kv_lens\[1\] must be in \[24, 30\], .* got 33"),
        ([0, 24], ValueError, r"kv_lens\[0\] must be in"),
        ([20], ValueError, r"kv_lens must be int32 \[2\], got \[1\]"),
        ([20.5, 24], TypeError, "kv_lens must be an int32 vector, got float64"),
    ],
)
def test_update_refuses(lens, error, message):
    plan = ttc_kernels.plan_tree_attention(**GOOD, **HEADS, page_size=16, reserved_lens=[32, 30])
    kept = plan.buffer.clone()
    with pytest.raises(error, match=message):
        plan.update(lens)
    assert torch.equal(plan.buffer, kept)
    plan.update([21, 30])
    assert plan.buffer[32:34].tolist() == [21, 30]


def test_replan_keeps_addresses_and_capacity():
    capacity = ttc_kernels.PlanCapacity.for_batch(5, 128, page_size=16)
    plan = ttc_kernels.plan_tree_attention(
        [[0, 1], [0, 2]], [20, 24], page_size=16, capacity=capacity, **HEADS
    )
    before = plan.buffer.data_ptr()
    g = torch.Generator().manual_seed(0)
    k, v = torch.randn(2, 64, 16, 2, 64, generator=g)
    for seed, rows in ((1, 5), (2, 3), (3, 4)):
        rng = np.random.default_rng(seed)
        lens = rng.integers(1, 128, rows)
        tables = [rng.integers(0, 64, 8) for _ in lens]
        plan.replan(tables, lens)
        fresh = ttc_kernels.plan_tree_attention(tables, lens, page_size=16, **HEADS)
        size = fresh.buffer.numel()
        assert torch.equal(plan.buffer[:size], fresh.buffer)
        assert plan.buffer.data_ptr() == before and plan.buffer.numel() == capacity.ints
        q = torch.randn(rows, 4, 64, generator=g)
        got = ttc_kernels.tree_attention(q, k, v, plan)
        assert_bitwise_equal(got[0], ttc_kernels.tree_attention(q, k, v, fresh)[0])
    kept = plan.buffer.clone()
    with pytest.raises(ValueError, match=r"capacity.rows must be at least 6 here, got 5"):
        plan.replan([[0]] * 6, [3] * 6)
    with pytest.raises(ValueError, match=r"capacity.queries must be at least 6 here, got 5"):
        plan.replan([[0]], [9], [6])
    with pytest.raises(ValueError, match=r"capacity.ints must be at least \d+ here, got"):
        plan.replan([list(range(2000))], [32000])
    assert torch.equal(plan.buffer, kept)


GOOD = {"block_tables": [[0, 1], [0, 2]], "kv_lens": [20, 24], "q_lens": [1, 2]}


@pytest.mark.parametrize(
    "change,error,message",
    [
        ({"kv_lens": [20], "q_lens": None}, ValueError, "block_tables must be 1 rows"),
        ({"kv_lens": [20.0, 24.0]}, TypeError, "kv_lens must be an int32 vector, got float64"),
        ({"kv_lens": [20, 33]}, ValueError, r"block_tables\[1\] must hold 3 pages"),
        ({"kv_lens": [20, -1]}, ValueError, r"kv_lens\[1\] must be >= 0, got -1"),
        ({"kv_lens": [20, 1]}, ValueError, r"kv_lens\[1\] counts the row's own 2 query tokens"),
        ({"q_lens": [1]}, ValueError, "q_lens must be int32"),
        ({"q_lens": [1, -2]}, ValueError, r"q_lens\[1\] must be >= 0, got -2"),
        (
            {"block_tables": [[0, 1], [0, -3]]},
            ValueError,
            r"block_tables\[1\]\[1\] must be a page id",
        ),
        ({"block_tables": 3}, TypeError, "block_tables must be int32 .* got int"),
        ({"page_size": 0}, ValueError, "page_size must be at least 1"),
        ({"num_q_heads": 3}, ValueError, "num_q_heads must be a positive multiple"),
        ({"head_dim": 80}, ValueError, "head_dim must be 64, 96, 128 or 256, got 80"),
        ({"dtype": torch.float64}, TypeError, "dtype must be float32, float16 or bfloat16"),
        ({"window_left": -2}, ValueError, "window_left must be -1"),
        ({"device": "meta"}, ValueError, 'device must be "cpu" or "cuda", got meta'),
        ({"device": "gpu"}, ValueError, """device must be "cpu" or "cuda", got 'gpu'"""),
        ({"page_size": 16.5}, TypeError, "page_size must be an int, got 16.5"),
        ({"window_left": 2.0}, TypeError, "window_left must be an int, got 2.0"),
        ({"capacity": 3}, TypeError, "capacity must be a PlanCapacity, got int"),
        (
            {"block_tables": np.array([[0, 1], [0, 2**32]])},
            ValueError,
            r"block_tables must be within int32, got 0\.\.4294967296",
        ),
        ({"kv_dtype": torch.float16}, TypeError, "kv_dtype must be torch.float32, as q"),
        ({"reserved_lens": [20]}, ValueError, r"reserved_lens must be int32 \[2\], got \[1\]"),
        ({"reserved_lens": [20, 23]}, ValueError, r"reserved_lens\[1\] must be at least kv_lens"),
        ({"reserved_lens": [-1, 24]}, ValueError, r"reserved_lens\[0\] must be .* 20, got -1"),
        (
            {"reserved_lens": [33, 24]},
            ValueError,
            r"block_tables\[0\] must hold 3 pages for reserved_lens",
        ),
        (
            {"capacity": ttc_kernels.PlanCapacity(1, 9, 999, 9)},
            ValueError,
            "capacity.rows must be at least 2 here, got 1",
        ),
        ({"draft_parents": [None]}, ValueError, "draft_parents must be 2 entries"),
        ({"draft_parents": [None, [-1]]}, ValueError, r"draft_parents\[1\] must be int32 \[2\]"),
        (
            {"draft_parents": [None, [1, -1]]},
            ValueError,
            r"draft_parents\[1\]\[0\] must name an earlier",
        ),
        ({"draft_parents": [None, [-1, -2]]}, ValueError, r"draft_parents\[1\]\[1\] must name"),
    ],
)
def test_wrong_input(change, error, message):
    arguments = {**GOOD, **HEADS, "page_size": 16, **change}
    with pytest.raises(error, match=message):
        ttc_kernels.plan_tree_attention(**arguments)


def test_a_plan_for_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"device must be one .* 'cuda', but torch finds no CUDA"):
        ttc_kernels.plan_tree_attention(**GOOD, **HEADS, page_size=16, device="cuda")


def test_attention_refuses_before_it_writes():
    plan = ttc_kernels.plan_tree_attention(**GOOD, **HEADS, page_size=16)
    q, cache = torch.randn(3, 4, 64), torch.randn(3, 16, 2, 64)
    out = torch.full_like(q, 7.0)
    cases = [
        (
            (q[:2], cache, cache, plan),
            {},
            ValueError,
            r"q must be \[3, 4, 64\] float32 on cpu, got \[2, 4, 64\]",
        ),
        ((q.half(), cache, cache, plan), {}, TypeError, "q must be .* got .* float16"),
        (
            (q, cache[:2], cache, plan),
            {},
            ValueError,
            "k_cache must hold every planned page, the largest is 2",
        ),
        ((q, cache, cache[:, :8], plan), {}, ValueError, "v_cache must be"),
        ((q, cache, cache, "plan"), {}, TypeError, "plan must be a TreeAttentionPlan"),
        ((q, cache, cache, plan), {"sm_scale": -1.0}, ValueError, "sm_scale must be positive"),
        ((q, cache, cache, plan), {"logits_soft_cap": -1.0}, ValueError, "logits_soft_cap must be"),
        ((q, cache, cache, plan), {"backend": "gpu"}, ValueError, "backend must be one of"),
        ((q, cache, cache, plan), {"backend": "cuda"}, ValueError, "cuda. needs a plan on a GPU"),
        ((q, cache, cache, plan), {"lse": torch.zeros(3, 5)}, ValueError, "lse must be"),
    ]
    for arguments, options, error, message in cases:
        with pytest.raises(error, match=message):
            ttc_kernels.tree_attention(*arguments, out=out, **options)
        assert (out == 7).all()
    with pytest.raises(ValueError, match="plan must be the whole buffer"):
        torch.ops.ttc_kernels.tree_attention(
            q, cache, cache, plan.buffer[:-1], None, None, 1.0, 0.0, 1.0, None, None, out,
            torch.zeros(3, 4),
        )  # fmt: skip


def test_planning_is_fast_and_linear():
    """1,024 branches of 2k tokens; a bound loose enough for a loaded machine, and linear growth."""
    small = min(plan_of(many_branches(1024, prompt_tokens=2048)).stats["plan_us"] for _ in range(5))
    large = min(plan_of(many_branches(8192, prompt_tokens=2048)).stats["plan_us"] for _ in range(5))
    assert small < 2_000
    assert large < 8 * 4 * small
