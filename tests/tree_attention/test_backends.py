"""tree_attention on every backend; cases are small, for Triton's interpreter and the emulator."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ttc_kernels.testing import from_nodes, random_forest

pytestmark = pytest.mark.backends
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_and_head_dim(make_case, dtype, head_dim, deterministic):
    load = random_forest(1, num_nodes=8, max_tokens=60, max_q_len=5)
    make_case(load, dtype, head_dim, num_kv_heads=1).check(deterministic=deterministic)


@pytest.mark.parametrize("page_size", [1, 3, 8, 16, 32, 64, 128])
def test_page_sizes(make_case, page_size):
    load = random_forest(page_size, num_nodes=8, max_tokens=90, page_size=page_size, max_q_len=4)
    make_case(load, DTYPES[page_size % 2], num_q_heads=6).check(deterministic=page_size == 8)


@pytest.mark.parametrize("heads", [(1, 1), (4, 4), (7, 1), (64, 1), (160, 1)])
def test_group_sizes(make_case, heads):
    load = from_nodes("fork", [(-1, 40), (0, 20), (0, 3), (0, 30)], max_q_len=3)
    make_case(load, num_q_heads=heads[0], num_kv_heads=heads[1]).check()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("q_len", [2, 17, 128, 300])
def test_query_lengths(make_case, dtype, q_len):
    load = from_nodes("extend", [(-1, 333), (0, 300), (-1, q_len)])
    load.q_lens[:] = [q_len, q_len]
    make_case(load, dtype, num_q_heads=2, num_kv_heads=1).check()


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("window_left,soft_cap", [(0, 0.0), (37, 0.0), (90, 20.0), (-1, 5.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_window_and_soft_cap(make_case, dtype, window_left, soft_cap, deterministic):
    load = random_forest(3, num_nodes=6, max_tokens=120, max_q_len=20)
    case = make_case(load, dtype, window_left=window_left, soft_cap=soft_cap, num_kv_heads=1)
    case.check(deterministic=deterministic)


@pytest.mark.parametrize("window_left", [-1, 0, 2, 40])
@pytest.mark.parametrize("dtype", DTYPES)
def test_draft_trees(make_case, dtype, window_left):
    load = from_nodes("drafts", [(-1, 70), (0, 50), (0, 9), (0, 12)])
    load.q_lens[:] = [4, 7, 5]
    drafts = [None, [-1, 0, 0, 1, 1, 2, 5], [-1, -1, 0, 1, 3]]
    make_case(load, dtype, draft_parents=drafts, window_left=window_left).check()


@pytest.mark.parametrize("deterministic", [False, True])
def test_copies_of_a_row_with_other_drafts(make_case, deterministic):
    """Rows that name the same pages share an item whose keys each of them masks differently."""
    load = from_nodes("copies", [(-1, 90)])
    load = type(load)(
        "copies", load.page_size, load.num_pages, load.block_tables * 3,
        np.full(3, 90, np.int32), np.array([5, 1, 6], np.int32), load.copies,
    )  # fmt: skip
    drafts = [[-1, 0, 0, 1, 2], None, [-1, -1, 0, 1, 3, 0]]
    make_case(load, draft_parents=drafts).check(deterministic=deterministic)


def test_draft_tree_larger_than_a_tile(make_case):
    rng = np.random.default_rng(0)
    parents = [int(rng.integers(-1, j)) if j else -1 for j in range(150)]
    load = from_nodes("draft", [(-1, 400)])
    load.q_lens[:] = 150
    case = make_case(load, draft_parents=[parents], window_left=5, num_q_heads=1, num_kv_heads=1)
    case.check()


@pytest.mark.parametrize("deterministic", [False, True])
def test_chain_of_one_token_nodes(make_case, deterministic):
    nodes = [(-1, 1)]
    for _ in range(12):
        trunk = len(nodes) - 1 if len(nodes) == 1 else len(nodes) - 2
        nodes += [(trunk, 1), (trunk, 1)]
    load = from_nodes("comb", nodes, page_size=1)
    make_case(load, num_q_heads=1, num_kv_heads=1).check(deterministic=deterministic)


def test_duplicate_and_inner_queries(make_case):
    load = from_nodes("inner", [(-1, 64), (0, 40)])
    table = load.block_tables[0]
    load = type(load)(
        "inner", load.page_size, load.num_pages, [table, table, table[:4], table],
        np.array([104, 104, 64, 90], np.int32), np.array([1, 3, 2, 1], np.int32), load.copies,
    )  # fmt: skip
    make_case(load).check()


def test_empty_rows(make_case):
    load = from_nodes("empty", [(-1, 20), (-1, 0)])
    load.q_lens[:] = [1, 2]
    out, lse = make_case(load).run()
    assert (out[1:] == 0).all() and (lse[1:] == -torch.inf).all()
    assert out[0].isfinite().all() and lse[0].isfinite().all()


def test_nan_reaches_only_the_rows_that_see_it(make_case):
    load = from_nodes("nan", [(-1, 40), (0, 20), (0, 20)])
    case = make_case(load)
    case.k_cache[int(load.block_tables[1][-1]), 0] = torch.nan
    out, lse = case.run()
    assert out[1].isnan().all() and lse[1].isnan().all()
    assert out[0].isfinite().all() and lse[0].isfinite().all()
    case = make_case(from_nodes("one", [(-1, 1)]))
    case.k_cache[:] = torch.nan
    out, lse = case.run()
    assert out.isnan().all() and lse.isnan().all()


def test_lengths_are_read_where_the_kernel_runs(make_case):
    """plan.update changes what the next call sees, and nothing else was planned."""
    load = from_nodes("grow", [(-1, 64), (0, 10), (0, 3)])
    case = make_case(load)
    plan = case.plan(reserved_lens=load.kv_lens + 2)
    case.k_cache.nan_to_num_(), case.v_cache.nan_to_num_()
    plan.update(load.kv_lens + 2)
    out, _ = case.attend(plan)
    load.kv_lens[:] += 2
    expected, _ = case.run()
    torch.testing.assert_close(out, expected)
