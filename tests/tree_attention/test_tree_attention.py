"""tree_attention on the CPU against the fp64 definition, everything unused being poison."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

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
    random_forest,
)

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
DRAFTS = [None, [-1, 0, 0, 1, 1, 2, 5], [-1, -1, 0, 1, 3]]


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("dtype", DTYPES)
def test_forest_every_dtype_and_head_dim(make_case, dtype, head_dim, deterministic):
    load = random_forest(1, num_nodes=25, max_tokens=90, max_q_len=5)
    make_case(load, dtype, head_dim).check(deterministic=deterministic)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("page_size", [1, 8, 16, 32, 64, 128])
def test_random_forests(make_case, page_size, seed):
    load = random_forest(
        seed,
        num_nodes=40,
        max_tokens=[3, 50, 300][seed % 3],
        page_size=page_size,
        max_q_len=1 + 4 * (seed % 2),
    )
    case = make_case(load, DTYPES[seed % 3], num_q_heads=[2, 6, 14][seed % 3], seed=seed)
    case.check(deterministic=seed % 2 == 1)


@pytest.mark.parametrize("heads", [(1, 1), (8, 8), (12, 2), (7, 1), (64, 1), (160, 1)])
def test_group_sizes(make_case, heads):
    make_case(random_forest(2), num_q_heads=heads[0], num_kv_heads=heads[1]).check()


@pytest.mark.parametrize("q_len", [1, 2, 17, 128, 300])
@pytest.mark.parametrize("dtype", DTYPES)
def test_query_lengths(make_case, dtype, q_len):
    """Decode, the extension of a step, and prefill (the row that is all query)."""
    load = from_nodes("extend", [(-1, 333), (0, 300), (0, 301), (-1, q_len)], max_q_len=1)
    load.q_lens[:] = [q_len, 1, q_len]
    make_case(load, dtype).check()


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("window_left,soft_cap", [(0, 0.0), (37, 0.0), (300, 20.0), (-1, 5.0)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_window_and_soft_cap(make_case, dtype, window_left, soft_cap, deterministic):
    load = random_forest(3, max_tokens=200, max_q_len=40)
    case = make_case(load, dtype, window_left=window_left, soft_cap=soft_cap)
    case.check(deterministic=deterministic)


@pytest.mark.parametrize("window_left", [-1, 0, 2, 40])
@pytest.mark.parametrize("dtype", DTYPES)
def test_draft_trees(make_case, dtype, window_left):
    load = from_nodes("drafts", [(-1, 70), (0, 50), (0, 9), (0, 12)])
    load.q_lens[:] = [4, 7, 5]
    make_case(load, dtype, draft_parents=DRAFTS, window_left=window_left).check()


def test_large_draft_tree(make_case):
    """200 draft tokens span tiles of queries and of keys; parents are random."""
    rng = np.random.default_rng(0)
    parents = [int(rng.integers(-1, j)) if j else -1 for j in range(200)]
    load = from_nodes("draft", [(-1, 500)])
    load.q_lens[:] = 200
    make_case(load, draft_parents=[parents]).check()
    make_case(load, draft_parents=[parents], window_left=5).check(deterministic=True)


def test_thousand_branches(make_case):
    case = make_case(many_branches(1000), num_q_heads=2, num_kv_heads=1)
    case.check()
    case.check(deterministic=True)


@pytest.mark.parametrize("deterministic", [False, True])
def test_chain_of_one_token_nodes(make_case, deterministic):
    """Every token is a fork: 60 levels, a leaf at each."""
    nodes = [(-1, 1)]
    for _ in range(60):
        trunk = len(nodes) - 1 if len(nodes) == 1 else len(nodes) - 2
        nodes += [(trunk, 1), (trunk, 1)]
    make_case(from_nodes("comb", nodes, page_size=1)).check(deterministic=deterministic)


def test_published_trees(make_case):
    make_case(published_tree([1, 2, 64], [8, 256, 32]), head_dim=128).check()
    make_case(
        published_tree([1, 2, 4, 8, 16, 64], [16, 16, 16, 16, 16, 16]), torch.bfloat16
    ).check()


def test_duplicate_and_inner_queries(make_case):
    """Rows with the same pages, and a row that ends where another goes on, share what they can."""
    load = from_nodes("inner", [(-1, 64), (0, 40)])
    table = load.block_tables[0]
    load = dataclasses.replace(
        load,
        block_tables=[table, table, table[:4], table],
        kv_lens=np.array([104, 104, 64, 90], np.int32),
        q_lens=np.array([1, 3, 2, 1], np.int32),
    )
    case = make_case(load)
    case.check()
    case.check(deterministic=True)
    assert case.plan().stats["unique_kv_tokens"] == 104


def test_long_lone_row_is_split(make_case):
    load = no_sharing(1, num_tokens=5000)
    case = make_case(load, num_q_heads=1, num_kv_heads=1)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        assert case.plan().stats["work_items"] > 1
        case.check()
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("deterministic", [False, True])
def test_empty_rows_and_no_rows(make_case, deterministic):
    load = from_nodes("empty", [(-1, 20), (-1, 0)])
    load.q_lens[:] = [1, 2]
    out, lse = make_case(load).run(deterministic=deterministic)
    assert (out[1:] == 0).all() and (lse[1:] == -torch.inf).all()
    assert out[0].isfinite().all() and lse[0].isfinite().all()
    no_pages = np.zeros((2, 0), np.int32)
    options = {"page_size": 16, "num_q_heads": 2, "num_kv_heads": 2, "head_dim": 64}
    plan = ttc_kernels.plan_tree_attention(no_pages, [0, 0], dtype=torch.float32, **options)
    assert plan.max_page == -1 and plan.num_queries == 2
    plan = ttc_kernels.plan_tree_attention(
        [], [], page_size=16, num_q_heads=2, num_kv_heads=2, head_dim=64, dtype=torch.float32
    )
    cache = torch.zeros(1, 16, 2, 64)
    out, lse = ttc_kernels.tree_attention(torch.zeros(0, 2, 64), cache, cache, plan)
    assert out.shape == (0, 2, 64) and lse.shape == (0, 2)


def test_nan_and_inf_reach_only_the_rows_that_see_them(make_case):
    load = from_nodes("nan", [(-1, 40), (0, 20), (0, 20)])
    case = make_case(load)
    last = int(load.block_tables[1][-1])
    case.k_cache[last, 0] = torch.nan
    out, lse = case.run()
    assert out[1].isnan().all() and lse[1].isnan().all()
    assert out[0].isfinite().all() and lse[0].isfinite().all()


def test_a_lone_nan_key_is_not_taken_for_an_empty_row(make_case):
    case = make_case(from_nodes("one", [(-1, 1)]))
    case.k_cache[:] = torch.nan
    out, lse = case.run()
    assert out.isnan().all() and lse.isnan().all()


def test_strided_inputs(make_case):
    """Caches as halves of one tensor, and q as a slice of a fused projection."""
    case = make_case(random_forest(4))
    both = torch.stack([case.k_cache, case.v_cache], dim=1)
    fused = torch.randn(case.q.shape[0], 3 * case.num_q_heads, case.head_dim)
    fused[:, 4:8] = case.q
    plan = case.plan()
    out, lse = ttc_kernels.tree_attention(fused[:, 4:8], both[:, 0], both[:, 1], plan)
    expected, expected_lse = ttc_kernels.tree_attention(case.q, case.k_cache, case.v_cache, plan)
    assert_bitwise_equal(out, expected)
    assert_bitwise_equal(lse, expected_lse)


@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
def test_lesser_instruction_sets(isa):
    """The same cases in a process that may only use lesser instructions."""
    keyword = "(test_forest_every_dtype_and_head_dim and (64 or 96)) or test_draft_trees"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        __file__,
        "-k",
        keyword,
    ]
    done = subprocess.run(
        command, env={**os.environ, "TTC_CPU_ISA": isa}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:]


def test_threads_do_not_change_bits(make_case):
    case = make_case(random_forest(5, max_tokens=300, max_q_len=20))
    plan = case.plan()
    threads = torch.get_num_threads()
    try:
        results = []
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(ttc_kernels.tree_attention(case.q, case.k_cache, case.v_cache, plan)[0])
    finally:
        torch.set_num_threads(threads)
    assert_bitwise_equal(results[0], results[1])
    assert_bitwise_equal(results[0], results[2])


@pytest.mark.parametrize("for_gpu", [False, True])
def test_opcheck(make_case, for_gpu):
    """With the workspace and counters that a GPU needs too: the schema is one."""
    case = make_case(random_forest(6, max_q_len=3))
    out, lse = torch.empty_like(case.q), torch.empty(case.q.shape[:2])
    args = (
        case.q,
        case.k_cache.nan_to_num(),
        case.v_cache.nan_to_num(),
        case.plan().buffer,
        *((torch.zeros(64), torch.zeros(64, dtype=torch.int32)) if for_gpu else (None, None)),
        *(0.125, 0.0, 1.0, None, None),
        out,
        lse,
    )
    torch.library.opcheck(torch.ops.ttc_kernels.tree_attention.default, args)


@pytest.mark.parametrize("for_gpu", [False, True])
def test_compiles_into_one_graph(make_case, for_gpu):
    case = make_case(random_forest(7))
    buffer = case.plan().buffer
    k, v = case.k_cache.nan_to_num(), case.v_cache.nan_to_num()
    room = (torch.zeros(64), torch.zeros(64, dtype=torch.int32)) if for_gpu else (None, None)

    def attend(q):
        out, lse = torch.empty_like(q), q.new_empty(q.shape[:2])
        torch.ops.ttc_kernels.tree_attention(
            q * 2, k, v, buffer, *room, 0.1, 0.0, 1.0, None, None, out, lse
        )
        return out + 1, lse

    expected = attend(case.q)
    got = torch.compile(attend, fullgraph=True, backend="aot_eager")(case.q)
    assert_bitwise_equal(got[0], expected[0])
    assert_bitwise_equal(got[1], expected[1])
