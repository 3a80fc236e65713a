"""The published trees count as published, and their pages hold what their paths say."""

from __future__ import annotations

import numpy as np
import pytest

from bench.forest import Forest
from bench.tree import Tree, parse_tree
from bench.workloads import SUITES, beam_trees, preorder_draft, published_trees

# Ragged forests: a node without tokens, rows of several queries, a draft tree on two roots.
_RAGGED = {
    "empty": Forest("test", "empty", (-1, 0, 1, 1, 0), (19, 0, 5, 0, 20)),
    "extend": Forest("test", "extend", (-1, 0, 0, 2, 2), (9, 7, 16, 3, 30), (5, 3, 20)),
    "draft": Forest("test", "draft", (-1, -1, 0, 1), (9, 9, 4, 4), (4, 4), (-1, 0, 1, 0)),
}


def test_counts_of_a_published_tree():
    tree = published_trees()[0]
    assert tree.nodes_per_level == (1, 2, 64)
    assert tree.tokens_per_node == (8, 256, 32)
    assert (tree.unique_tokens, tree.path_tokens, tree.num_queries) == (2568, 18944, 64)


def test_all_published_trees_are_there():
    trees = published_trees()
    assert [sum(t.suite == s for t in trees) for s in ("fasttree", "pat")] == [15, 20]
    assert len(beam_trees()) == 7
    # The control without sharing: every token has one reader.
    control = trees[-2]
    assert control.unique_tokens == control.path_tokens == 256 * 1024


def test_every_suite_can_be_laid_out():
    for suite, make in SUITES.items():
        forests = make()
        assert forests and all(f.seen_pairs >= f.num_queries for f in forests), suite
        # The same again: generated suites are seeded.
        assert [f.parents for f in make()] == [f.parents for f in forests]
    lengths = [forest.sizes for forest in SUITES["adversarial"]()]
    assert max(map(max, lengths)) > 100_000
    assert min(map(min, lengths)) == 0
    ragged = SUITES["extend"]()[0].q_lens
    assert min(ragged) >= 20 and max(ragged) <= 256 and len(set(ragged)) > 5
    assert {len(f.draft_parents) for f in SUITES["draft"]()} == {32, 64, 96, 128, 256}


def test_child_hangs_from_the_floor_of_its_share():
    tree = Tree("uneven", (2, 3, 5), (1, 1, 1))
    assert [path[1] - 2 for path in tree.row_nodes] == [0, 0, 1, 1, 2]
    assert [path[0] for path in tree.row_nodes] == [0, 0, 0, 0, 1]
    np.testing.assert_array_equal(tree.path_of_nodes(0, 2)[4], [1, 4, 9])


@pytest.mark.parametrize("page_size", [1, 4, 16])
@pytest.mark.parametrize("shape", ["1,2,4x5,7,3", "2,3,5x3,9,16", "3x10", "1,1,6x4,4,1", *_RAGGED])
def test_pages_hold_every_path(shape: str, page_size: int):
    forest = _RAGGED.get(shape) or parse_tree(shape)
    pages = forest.pages(page_size)
    rows = zip(pages.block_tables, pages.kv_lens, forest.row_tokens, strict=True)
    for table, length, path in rows:
        held = pages.page_tokens[table[: -(-length // page_size)]].ravel()
        np.testing.assert_array_equal(held[:length], path)


@pytest.mark.parametrize("shape", ["1,2,4x5,7,3", "2,3,5x3,9,16"])
def test_paths_of_a_tree_are_its_levels_paths(shape: str):
    tree = parse_tree(shape)
    np.testing.assert_array_equal(tree.path_of_nodes(0, tree.depth - 1), tree.row_tokens)


def test_full_pages_are_shared_and_a_partial_one_is_copied():
    # A root of 20 tokens in pages of 16: one full page shared, 4 tokens copied by each child.
    pages = parse_tree("1,3x20,2").pages(16)
    assert len(set(pages.block_tables[:, 0])) == 1
    assert len(set(pages.block_tables[:, 1])) == 3
    held, counts = np.unique(pages.page_tokens[pages.page_tokens >= 0], return_counts=True)
    # The root keeps its own partial page as well.
    assert dict(zip(held[:20], counts[:20], strict=True)) == {
        token: 1 if token < 16 else 4 for token in range(20)
    }


@pytest.mark.parametrize("shape", ["1,2,4x5,7,3", "2,3,5x3,9,16", *_RAGGED])
def test_query_ranges_agree_with_the_paths(shape: str):
    forest = _RAGGED.get(shape) or parse_tree(shape)
    seen = np.zeros((forest.num_queries, forest.unique_tokens), bool)
    for row, path in enumerate(forest.row_tokens):
        count, begin = int(forest.query_counts[row]), int(forest.query_ptr[row])
        up = forest.draft_parents or range(-1, count - 1)
        for i in range(count):
            seen[begin + i, path[: len(path) - count]] = True
            at = i
            while at >= 0:
                seen[begin + i, path[len(path) - count + at]] = True
                at = up[at]
    first, last = forest.query_ranges
    queries = np.arange(forest.num_queries)[:, None]
    np.testing.assert_array_equal((queries >= first) & (queries < last), seen)
    assert forest.seen_pairs == seen.sum()


def test_draft_trees_are_numbered_in_preorder():
    # Two roots, three children and one grandchild: 0 has children 1 and 3, 1 has child 2.
    assert preorder_draft([2, 3, 1]) == [-1, 0, 1, 0, -1, 4]
    assert len(preorder_draft([1, 4, 8, 16, 3])) == 32
    with pytest.raises(ValueError, match="preorder"):
        # Node 3 hangs from 1, but node 2, a sibling of 1, comes between.
        _ = Forest("test", "order", (-1,), (4,), (4,), (-1, 0, 0, 1)).query_ranges


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((), ()), "at least one node"),
        (((-1, 2, 0), (1, 1, 1)), "parents must come before"),
        (((-1, 0), (4, 2), (3,)), "must hold the tokens of its queries"),
        (((-1, 0, 0), (4, 2, 2), (1,)), "a query and a token for each leaf"),
        (((-1,), (4,), (2,), (-1,)), "a draft parent for each query"),
    ],
)
def test_wrong_forests_are_refused(arguments: tuple, message: str):
    with pytest.raises(ValueError, match=message):
        Forest("test", "wrong", *arguments)


def test_leaves_out_of_order_are_refused():
    with pytest.raises(ValueError, match="depth-first"):
        _ = Forest("test", "order", (-1, -1, 0, 1, 0), (1, 1, 1, 1, 1)).node_rows


@pytest.mark.parametrize("text", ["", "1,2", "1,2x3", "2,1x3,3", "0x4", "1x0", "axb"])
def test_wrong_shapes_are_refused(text: str):
    with pytest.raises(ValueError, match=r"Tree: |parse_tree: "):
        parse_tree(text)
