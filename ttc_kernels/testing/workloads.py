"""Forests of branches to attend over, made with the page pool itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .._host import Branch, PagePool


@dataclass(frozen=True)
class Workload:
    """Rows of a forest, in pages.

    Forks share their full pages and copy the partial one, as copy on write does.
    """

    name: str
    page_size: int
    num_pages: int  # all pages of the tables are below it
    block_tables: list[np.ndarray]  # per row int32[ceil(kv_len / page_size)]
    kv_lens: np.ndarray  # int32[B], queries included
    q_lens: np.ndarray  # int32[B]
    copies: np.ndarray  # int32[C, 3], what the forks copied: src_page, dst_page, num_tokens


def from_nodes(
    name: str,
    nodes: Sequence[tuple[int, int]],
    *,
    page_size: int = 16,
    max_q_len: int = 1,
    seed: int = 0,
) -> Workload:
    """A forest given as nodes; each leaf is a row.

    Args:
        name: for messages.
        nodes: ``(parent, num_tokens)``; parents come first, -1 is a root. A node without tokens is
            allowed; a leaf without any on its path is an empty row, with no query.
        page_size: tokens in a page.
        max_q_len: a row gets a random number of queries in ``[1, max_q_len]``, at most its length.
        seed: of that choice.

    Raises:
        ValueError: if a parent does not come before its child.

    >>> load = from_nodes("fork", [(-1, 6), (0, 1), (0, 2)], page_size=4)
    >>> [pages.tolist() for pages in load.block_tables], load.kv_lens.tolist()
    ([[0, 2], [0, 1]], [7, 8])
    """
    rng = np.random.default_rng(seed)
    children: dict[int, list[int]] = {}
    for i, (parent, _) in enumerate(nodes):
        if not -1 <= parent < i:
            raise ValueError(f"from_nodes: parent of node {i} must be in [-1, {i}), got {parent}")
        children.setdefault(parent, []).append(i)
    bound = sum(tokens // page_size + 2 for _, tokens in nodes) + 1
    pool = PagePool(bound, page_size)
    branches: dict[int, Branch] = {}
    leaves = []
    for root in children.get(-1, []):
        branches[root] = pool.new_branch()
    for i, (_, tokens) in enumerate(nodes):
        branches[i].append(tokens)
        if i not in children:
            leaves.append(branches[i])
            continue
        # The node's own branch goes to its last child, as a search that keeps only leaves does.
        *forked, heir = children[i]
        branches.update(zip(forked, branches[i].fork(len(forked)), strict=True))
        branches[heir] = branches.pop(i)
    tables = [branch.pages for branch in leaves]
    kv_lens = np.array([branch.length for branch in leaves], np.int32)
    q_lens = np.minimum(rng.integers(1, max_q_len, len(leaves), endpoint=True), kv_lens)
    num_pages = 1 + max((int(pages.max()) for pages in tables if len(pages)), default=0)
    return Workload(
        name, page_size, num_pages, tables, kv_lens, q_lens.astype(np.int32), pool.take_copies()
    )


def published_tree(
    nodes_per_level: Sequence[int], tokens_per_level: Sequence[int], *, page_size: int = 16
) -> Workload:
    """A tree in the notation of published tree-attention benchmarks: level sizes N and lengths C.

    Child ``j`` of level ``l`` hangs from parent ``floor(j * N[l-1] / N[l])``.

    Args:
        nodes_per_level: N, the number of nodes of each level, starting with the roots.
        tokens_per_level: C, the tokens of each node of a level.

    >>> published_tree([1, 2, 4], [32, 16, 8]).kv_lens.tolist()
    [56, 56, 56, 56]
    """
    nodes: list[tuple[int, int]] = []
    above = 0  # index of the first node of the level above
    for level, (count, tokens) in enumerate(zip(nodes_per_level, tokens_per_level, strict=True)):
        first = len(nodes)
        for j in range(count):
            parent = -1 if level == 0 else above + j * nodes_per_level[level - 1] // count
            nodes.append((parent, tokens))
        above = first
    shape = ",".join(map(str, nodes_per_level)) + "/" + ",".join(map(str, tokens_per_level))
    return from_nodes(f"tree {shape}", nodes, page_size=page_size)


def random_forest(
    seed: int,
    *,
    num_nodes: int = 30,
    num_roots: int = 3,
    max_tokens: int = 50,
    page_size: int = 16,
    max_q_len: int = 1,
) -> Workload:
    """Ragged trees that fork anywhere in a page, with one-token nodes, long nodes and an empty row.

    >>> bool((random_forest(0).kv_lens == 0).any())
    True
    """
    rng = np.random.default_rng(seed)
    nodes = []
    for i in range(num_nodes):
        parent = -1 if i < num_roots else int(rng.integers(0, i))
        kind = rng.integers(0, 4)
        tokens = 1 if kind == 0 else int(rng.integers(1, max_tokens, endpoint=True))
        nodes.append((parent, tokens))
    nodes.append((-1, 0))
    return from_nodes(
        f"random forest {seed}", nodes, page_size=page_size, max_q_len=max_q_len, seed=seed
    )


def many_branches(
    num_branches: int = 1000,
    *,
    prompt_tokens: int = 256,
    max_tokens: int = 40,
    page_size: int = 16,
    seed: int = 0,
) -> Workload:
    """One prompt and many short branches of different lengths.

    >>> len(many_branches(1000).kv_lens)
    1000
    """
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, max_tokens, num_branches, endpoint=True)
    nodes = [(-1, prompt_tokens), *((0, int(tokens)) for tokens in lengths)]
    return from_nodes(f"{num_branches} branches", nodes, page_size=page_size)


def no_sharing(num_rows: int = 8, *, num_tokens: int = 512, page_size: int = 16) -> Workload:
    """Rows that share nothing: the control, where a tree kernel must not be slower than a flat one.

    >>> len(np.unique(np.concatenate(no_sharing(2, num_tokens=32).block_tables)))
    4
    """
    nodes = [(-1, num_tokens)] * num_rows
    return from_nodes(f"no sharing {num_rows}x{num_tokens}", nodes, page_size=page_size)
