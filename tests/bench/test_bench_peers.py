"""The index maths of peers that run on a GPU, and the clock's rules, without one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.devices import CpuClock
from bench.forest import Forest
from bench.peers import PEERS, Skip, levels, make_problem
from bench.peers.flashinfer import branch_pages, page_levels, root_masks
from bench.peers.levels import cut_levels
from bench.timing import in_turn
from bench.tree import parse_tree

_FORESTS = {
    "mid-page": parse_tree("1,2,4x9,17,3"),
    "small root": parse_tree("2,4,8x5,1,20"),
    "flat": parse_tree("3x10"),
    "empty": Forest("test", "empty", (-1, 0, 1, 1, 0), (19, 0, 5, 0, 20)),
    "extend": Forest("test", "extend", (-1, 0, 0, 2, 2), (9, 7, 16, 3, 30), (5, 3, 20)),
    "draft": Forest("test", "draft", (-1, -1, 0, 1), (9, 9, 4, 4), (4, 4), (-1, 0, 1, 0)),
}


def _seen(forest: Forest) -> np.ndarray:
    first, last = forest.query_ranges
    queries = np.arange(forest.num_queries)[:, None]
    return (queries >= first) & (queries < last)


@pytest.mark.parametrize("two_levels", [False, True])
@pytest.mark.parametrize("name", _FORESTS)
def test_levels_cover_every_pair_once(name: str, two_levels: bool):
    forest = _FORESTS[name]
    count = np.zeros((forest.num_queries, forest.unique_tokens), int)
    cut = cut_levels(forest, two_levels)
    for level in cut:
        taken = np.zeros(forest.num_queries, int)
        for part in level:
            rows = slice(part.q_begin, part.q_end)
            taken[rows] += 1
            covered = np.ones(part.shape, bool)
            if part.causal:
                covered = _seen(forest)[rows][:, part.tokens]
            count[rows, part.tokens] += covered
        assert taken.max() == 1, "parts of a level must not have a query in common"
    np.testing.assert_array_equal(count, _seen(forest))
    has_own = any(forest.query_counts > 1)
    assert not two_levels or len(cut) <= 2 + has_own


def _ragged(q, k, v, q_ptr, k_ptr, longest, causal=False):
    """What varlen_flash should compute, sequence by sequence."""
    out, lse = torch.empty_like(q), torch.empty(q.shape[:2])
    lens = []
    for i in range(len(q_ptr) - 1):
        rows, keys = slice(*q_ptr[i : i + 2].tolist()), slice(*k_ptr[i : i + 2].tolist())
        lens.append((rows.stop - rows.start, keys.stop - keys.start))
        kk, vv = (
            x[keys].float().repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(0, 1)
            for x in (k, v)
        )
        scores = q[rows].float().transpose(0, 1) @ kk.transpose(1, 2) / q.shape[2] ** 0.5
        if causal:
            n, m = lens[-1]
            scores = scores.masked_fill(torch.ones(n, m).triu(m - n + 1).bool(), -torch.inf)
        out[rows] = (scores.softmax(-1) @ vv).transpose(0, 1).to(q.dtype)
        lse[rows] = scores.logsumexp(-1).T
    assert longest == tuple(np.max(lens, axis=0))
    return out, lse


@pytest.mark.parametrize("two_levels", [False, True])
@pytest.mark.parametrize("name", _FORESTS)
def test_ragged_levels_of_a_gpu_agree(name: str, two_levels: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(levels, "varlen_flash", _ragged)
    # Here the CPU's way of a level stands for the GPU's.
    monkeypatch.setattr(levels, "_padded_level", levels._varlen_level)
    problem = make_problem(_FORESTS[name], (8, 2), 64, torch.bfloat16, 1 << 30)
    queries, expected = problem.definition(count=100)
    out = levels.build_levels(problem, two_levels)()
    torch.testing.assert_close(out[queries].double(), expected, rtol=0, atol=2e-2)


@pytest.mark.parametrize("page_size", [1, 4, 16])
@pytest.mark.parametrize("name", _FORESTS)
def test_page_levels_hold_every_path_in_order(name: str, page_size: int):
    forest = _FORESTS[name]
    pages = forest.pages(page_size)
    paths: list[list[int]] = [[] for _ in range(forest.num_rows)]
    for level in page_levels(forest, pages, page_size):
        bounds = level.qo_indptr.numpy()
        assert bounds[0] == 0 and bounds[-1] == forest.num_queries
        assert (np.diff(bounds) > 0).all() and len(level.kv_indices) > 0
        for group in range(len(bounds) - 1):
            begin, end = level.kv_indptr[group : group + 2].tolist()
            held = pages.page_tokens[level.kv_indices[begin:end].numpy()].ravel()
            if end > begin:
                held = held[: (end - begin - 1) * page_size + int(level.last_page_len[group])]
            rows = np.searchsorted(forest.query_ptr, bounds[group : group + 2])
            for row in range(*rows):
                paths[row] += held.tolist()
    for path, expected in zip(paths, forest.row_tokens, strict=True):
        np.testing.assert_array_equal(path, expected)


def test_branch_pages_are_the_block_tables():
    forest = _FORESTS["mid-page"]
    pages = forest.pages(16)
    rows = branch_pages(forest, pages, 16)
    assert rows.qo_indptr.tolist() == [0, 1, 2, 3, 4]
    assert rows.kv_indptr.tolist() == [0, 2, 4, 6, 8]  # 29 tokens each
    np.testing.assert_array_equal(rows.kv_indices.numpy(), pages.block_tables.ravel())
    assert rows.last_page_len.tolist() == [13] * 4


@pytest.mark.parametrize("name", _FORESTS)
def test_masks_of_roots_are_what_queries_see(name: str):
    forest = _FORESTS[name]
    qo_indptr, kv_indptr, tokens, mask = root_masks(forest)
    seen, at = np.zeros((forest.num_queries, forest.unique_tokens), bool), 0
    for root in range(len(qo_indptr) - 1):
        q = slice(*qo_indptr[root : root + 2].tolist())
        held = tokens[slice(*kv_indptr[root : root + 2].tolist())].numpy()
        size = (q.stop - q.start) * len(held)
        seen[q, held] = mask[at : at + size].reshape(-1, len(held)).numpy()
        at += size
    assert at == len(mask)
    np.testing.assert_array_equal(seen, _seen(forest))


@pytest.mark.parametrize("name", ["torch paged", "fi cascade", "fi batch", "fi masked"])
def test_gpu_peers_say_why_they_skip_here(name: str):
    problem = make_problem(parse_tree("1,2x16,16"), (4, 2), 64, torch.float32, 1 << 30)
    with pytest.raises(Skip, match=r"GPU only|no paged flash attention here"):
        PEERS["cuda"][name](problem)


class _GraphClock(CpuClock):
    """Pretends that one contender cannot be captured."""

    modes = ("graph", "eager")

    def prepare(self, fn, mode):
        if mode == "graph" and fn() == "sync":
            raise RuntimeError("synchronises")
        return fn


def test_contender_that_cannot_be_captured_is_left_out(capsys: pytest.CaptureFixture):
    contenders = {"fine": lambda: "fine", "host": lambda: "sync"}
    clock = _GraphClock()
    assert list(in_turn(contenders, 2, clock=clock, mode="graph")) == ["fine"]
    assert "host cannot be prepared for graph: synchronises" in capsys.readouterr().out
    assert list(in_turn(contenders, 2, clock=clock, mode="eager")) == ["fine", "host"]
