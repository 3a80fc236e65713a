"""The published trees count as published, and their pages hold what their paths say."""

from __future__ import annotations

import numpy as np
import pytest

from bench.workloads import Tree, beam_trees, parse_tree, published_trees


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


def test_child_hangs_from_the_floor_of_its_share():
    tree = Tree("uneven", (2, 3, 5), (1, 1, 1))
    np.testing.assert_array_equal(tree.ancestors[1], [0, 0, 1, 1, 2])
    np.testing.assert_array_equal(tree.ancestors[0], [0, 0, 0, 0, 1])
    np.testing.assert_array_equal(tree.path_of_nodes(0, 2)[4], [1, 4, 9])


@pytest.mark.parametrize("page_size", [1, 4, 16])
@pytest.mark.parametrize("shape", ["1,2,4x5,7,3", "2,3,5x3,9,16", "3x10", "1,1,6x4,4,1"])
def test_pages_hold_every_path(shape: str, page_size: int):
    tree = parse_tree(shape)
    pages = tree.pages(page_size)
    paths = tree.path_of_nodes(0, tree.depth - 1)
    for table, length, path in zip(pages.block_tables, pages.kv_lens, paths, strict=True):
        np.testing.assert_array_equal(pages.page_tokens[table].ravel()[:length], path)


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


@pytest.mark.parametrize("shape", ["1,2,4x5,7,3", "2,3,5x3,9,16"])
def test_leaf_ranges_agree_with_the_paths(shape: str):
    tree = parse_tree(shape)
    first, last = tree.leaf_ranges
    leaves = np.arange(tree.num_queries)[:, None]
    seen = np.zeros((tree.num_queries, tree.unique_tokens), bool)
    seen[leaves, tree.path_of_nodes(0, tree.depth - 1)] = True
    np.testing.assert_array_equal((leaves >= first) & (leaves < last), seen)


@pytest.mark.parametrize("text", ["", "1,2", "1,2x3", "2,1x3,3", "0x4", "1x0", "axb"])
def test_wrong_shapes_are_refused(text: str):
    with pytest.raises(ValueError, match=r"Tree: |parse_tree: "):
        parse_tree(text)
