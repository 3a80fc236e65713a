"""The test kit: that it accepts what is right and, above all, refuses what is wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ttc_kernels import reference
from ttc_kernels.testing import (
    Workload,
    assert_bitwise_equal,
    assert_close_to_reference,
    from_nodes,
    many_branches,
    nan_outputs,
    no_sharing,
    pad_block_tables,
    poison_unused_slots,
    published_tree,
    random_forest,
)


def test_close_to_reference_is_relative_to_the_baseline() -> None:
    torch.manual_seed(0)
    want = torch.randn(5, 7, dtype=torch.float64)
    baseline = (want + 1e-3 * torch.rand_like(want)).float()
    assert_close_to_reference((want + 1.9e-3 * (want == want.max())).float(), want, baseline)
    wrong = want.float()
    wrong[3, 2] += 0.01
    with pytest.raises(AssertionError, match=r"error 0.01 at \(3, 2\) is more than"):
        assert_close_to_reference(wrong, want, baseline)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (torch.nan, 1.0),
        (1.0, torch.nan),
        (torch.inf, -torch.inf),
        (torch.inf, 1e30),
        (0.0, -torch.inf),
    ],
)
def test_close_to_reference_wants_the_same_infinities(value: float, expected: float) -> None:
    actual, want = torch.zeros(4), torch.zeros(4, dtype=torch.float64)
    actual[2], want[2] = value, expected
    with pytest.raises(AssertionError, match=r"elements differ in being .* first at \(2,\)"):
        assert_close_to_reference(actual, want, actual)
    actual[2] = expected
    assert_close_to_reference(actual, want, actual)


def test_bitwise_equal() -> None:
    a = torch.tensor([0.0, torch.nan, 1.0])
    assert_bitwise_equal(a, a.clone())
    b = a.clone()
    b[0] = -0.0
    with pytest.raises(AssertionError, match=r"1 of 3 elements differ, first at \(0,\)"):
        assert_bitwise_equal(b, a)
    with pytest.raises(AssertionError, match="expected"):
        assert_bitwise_equal(a, a.double())


WORKLOADS = [
    *(random_forest(seed, page_size=size, max_q_len=5) for seed in range(4) for size in (1, 8, 16)),
    many_branches(1000),
    published_tree([1, 4, 16], [100, 33, 7]),
    no_sharing(4, num_tokens=40),
    from_nodes("all empty", [(-1, 0), (-1, 0)]),
]


@pytest.mark.parametrize("load", WORKLOADS, ids=lambda load: load.name)
def test_workloads_are_consistent(load: Workload) -> None:
    owners: dict[tuple[int, int], int] = {}
    for pages, kv_len, q_len in zip(load.block_tables, load.kv_lens, load.q_lens, strict=True):
        assert len(pages) == -(-kv_len // load.page_size)
        assert 0 <= q_len <= kv_len and (q_len > 0 or kv_len == 0)
        assert ((pages >= 0) & (pages < load.num_pages)).all()
        for i, page in enumerate(pages.tolist()):
            assert owners.setdefault((page, 0), i) == i, "a page has one place in every path"
    assert (load.copies[:, :2] >= 0).all() and (load.copies[:, 2] < load.page_size).all()


def test_forests_are_ragged_and_fork_inside_pages() -> None:
    load = random_forest(1)
    assert len(load.copies) > 0 and (load.kv_lens == 0).any()
    assert len(set(load.kv_lens.tolist())) > 5
    pages = np.concatenate(load.block_tables)
    assert len(np.unique(pages)) < len(pages), "nothing is shared"


def test_published_tree_hangs_children_evenly() -> None:
    load = published_tree([2, 4, 8], [16, 16, 16])
    roots = [int(pages[0]) for pages in load.block_tables]
    middles = [int(pages[1]) for pages in load.block_tables]
    assert [roots.count(page) for page in dict.fromkeys(roots)] == [4, 4]
    assert [middles.count(page) for page in dict.fromkeys(middles)] == [2, 2, 2, 2]
    with pytest.raises(ValueError, match=r"parent of node 1 must be in \[-1, 1\), got 1"):
        from_nodes("bad", [(-1, 1), (1, 1)])


def test_poison_reaches_everything_but_the_rows() -> None:
    load = random_forest(2, page_size=8, max_q_len=3)
    k_cache, v_cache = torch.randn(2, load.num_pages + 3, 8, 1, 4).unbind()
    clean = [k_cache.clone(), v_cache.clone()]
    poison_unused_slots([k_cache, v_cache], load.block_tables, load.kv_lens)
    assert k_cache[-3:].isnan().all()
    q = torch.randn(int(load.q_lens.sum()), 2, 4)
    tables = pad_block_tables(load.block_tables)
    assert (tables[:, -1] == 2_147_480_000).all()
    poisoned = reference.tree_attention(q, k_cache, v_cache, tables, load.kv_lens, load.q_lens)
    expected = reference.tree_attention(q, *clean, load.block_tables, load.kv_lens, load.q_lens)
    assert_bitwise_equal(poisoned[0], expected[0])
    # A length that is one too long must be noticed.
    longer = load.kv_lens + (load.kv_lens > 0) * (load.kv_lens % 8 != 0)
    wrong, _ = reference.tree_attention(q, k_cache, v_cache, tables, longer, load.q_lens)
    assert wrong.isnan().any()
    assert all(output.isnan().all() for output in nan_outputs(q))
