"""Forests to attend over: which nodes, which queries, which pages, which query sees which token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

# In block tables behind a row's last page: nothing may look there.
_NO_PAGE = np.iinfo(np.int32).max


@dataclass(frozen=True)
class Pages:
    """A forest laid out in pages, as copy-on-write forks leave it.

    Attributes:
        block_tables: int32 [num_rows, max_pages], one row per leaf.
        kv_lens: int32 [num_rows], tokens on the leaf's path.
        page_tokens: int64 [num_pages, page_size], the unique token in each slot, -1 if unused.
    """

    block_tables: np.ndarray
    kv_lens: np.ndarray
    page_tokens: np.ndarray


@dataclass(frozen=True)
class Forest:
    """Nodes of tokens; every leaf is a row, whose last tokens are its queries.

    Leaves must come in depth-first order, so that the leaves below a node are consecutive. Unique
    tokens are numbered node by node. A query sees the tokens of its path up to itself, or in a
    draft tree up to its ancestors; draft nodes are numbered in preorder, so that the queries that
    see a token are always consecutive.

    Args:
        suite: where the workload comes from.
        name: in words, for tables.
        parents: of each node; parents first, -1 is a root.
        sizes: tokens of each node, the queries' own tokens included.
        q_lens: query tokens of each leaf; default one each. More than one must fit in the leaf.
        draft_parents: of the queries of every leaf, -1 = child of what precedes them; default a
            causal chain.
        heads: query heads and KV heads that belong to the workload, if any.

    Raises:
        ValueError: naming what does not fit together.

    Example:
        >>> Forest("example", "fork", (-1, 0, 0), (8, 4, 4)).unique_tokens
        16
    """

    suite: str
    name: str
    parents: tuple[int, ...]
    sizes: tuple[int, ...]
    q_lens: tuple[int, ...] | None = None
    draft_parents: tuple[int, ...] | None = None
    heads: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not self.parents or len(self.parents) != len(self.sizes) or min(self.sizes) < 0:
            raise ValueError(f"Forest {self.name}: one size >= 0 per node, and at least one node")
        if any(not -1 <= parent < node for node, parent in enumerate(self.parents)):
            raise ValueError(f"Forest {self.name}: parents must come before their children")
        lens = self.query_counts
        if len(lens) != len(self.leaves) or lens.min() < 1 or self.kv_lens.min() < 1:
            raise ValueError(f"Forest {self.name}: a query and a token for each leaf at least")
        if any(q > max(1, self.sizes[leaf]) for q, leaf in zip(lens, self.leaves, strict=True)):
            raise ValueError(f"Forest {self.name}: a leaf must hold the tokens of its queries")
        if self.draft_parents is not None and set(lens) != {len(self.draft_parents)}:
            raise ValueError(f"Forest {self.name}: a draft parent for each query of a leaf")

    @property
    def num_rows(self) -> int:
        """Number of leaves."""
        return len(self.leaves)

    @property
    def num_queries(self) -> int:
        """Query tokens of all rows."""
        return int(self.query_counts.sum())

    @property
    def unique_tokens(self) -> int:
        """Tokens of the whole forest, each counted once."""
        return sum(self.sizes)

    @property
    def path_tokens(self) -> int:
        """Tokens summed over the leaves' paths: what is read when nothing is shared."""
        return int(self.kv_lens.sum())

    @property
    def seen_pairs(self) -> int:
        """Pairs of a query and a token that it sees: what must be multiplied."""
        return int((self.query_ranges[1] - self.query_ranges[0]).sum())

    @cached_property
    def leaves(self) -> tuple[int, ...]:
        """Nodes without children, in order."""
        inner = set(self.parents)
        return tuple(node for node in range(len(self.parents)) if node not in inner)

    @cached_property
    def query_counts(self) -> np.ndarray:
        """int64 [num_rows]: queries of each row."""
        return np.array(self.q_lens or [1] * self.num_rows, np.int64)

    @cached_property
    def query_ptr(self) -> np.ndarray:
        """int64 [num_rows + 1]: where each row's queries begin."""
        return np.concatenate([[0], self.query_counts.cumsum()])

    @cached_property
    def token_ptr(self) -> np.ndarray:
        """int64 [num_nodes + 1]: where each node's unique tokens begin."""
        return np.concatenate([[0], np.cumsum(self.sizes)])

    @cached_property
    def ends(self) -> np.ndarray:
        """int64 [num_nodes]: tokens from the root to the node's end."""
        ends: list[int] = []
        for parent, size in zip(self.parents, self.sizes, strict=True):
            ends.append(size + (ends[parent] if parent >= 0 else 0))
        return np.array(ends)

    @cached_property
    def kv_lens(self) -> np.ndarray:
        """int64 [num_rows]: tokens on each row's path."""
        return self.ends[list(self.leaves)]

    @cached_property
    def row_nodes(self) -> list[list[int]]:
        """The nodes on each row's path, root first."""
        paths = []
        for leaf in self.leaves:
            path = [leaf]
            while self.parents[path[-1]] >= 0:
                path.append(self.parents[path[-1]])
            paths.append(path[::-1])
        return paths

    @cached_property
    def row_tokens(self) -> list[np.ndarray]:
        """The unique tokens on each row's path, int64 [kv_len]."""
        ptr = self.token_ptr
        return [
            np.concatenate([np.arange(ptr[node], ptr[node + 1]) for node in path])
            for path in self.row_nodes
        ]

    @cached_property
    def node_rows(self) -> np.ndarray:
        """int64 [2, num_nodes]: first and one-past-last row below each node."""
        first, last = np.full(len(self.sizes), self.num_rows), np.zeros(len(self.sizes), int)
        count = np.zeros(len(self.sizes), int)
        for row, path in enumerate(self.row_nodes):
            for node in path:
                first[node], last[node] = min(first[node], row), row + 1
                count[node] += 1
        if (last - first != count).any():
            raise ValueError(f"Forest {self.name}: leaves must come in depth-first order")
        return np.stack([first, last])

    @cached_property
    def query_ranges(self) -> np.ndarray:
        """int64 [2, unique_tokens]: first and one-past-last query that sees each token."""
        ranges = self.query_ptr[self.node_rows].repeat(self.sizes, axis=1)
        spans = None if self.draft_parents is None else _subtree_sizes(self.draft_parents)
        for row, count in enumerate(self.query_counts):
            if count > 1:
                own = slice(self.token_ptr[self.leaves[row] + 1] - count, None)
                ranges[0, own][:count] = self.query_ptr[row] + np.arange(count)
                if spans is not None:
                    ranges[1, own][:count] = ranges[0, own][:count] + spans
        return ranges

    def pages(self, page_size: int = 16, seed: int = 0) -> Pages:
        """Lay the forest out in pages, physical pages in random order as in a pool long in use.

        A child shares its parent's full pages and copies a partly filled one.

        Args:
            page_size: tokens in a page.
            seed: of the order of the physical pages.
        """
        contents: list[np.ndarray] = []
        tables: list[np.ndarray] = []
        tails: list[np.ndarray] = []  # what a node's last, partly filled page holds
        num_pages = 0
        nothing = np.empty(0, np.int64)
        for node, parent in enumerate(self.parents):
            above, tail = (tables[parent], tails[parent]) if parent >= 0 else (nothing, nothing)
            if self.sizes[node]:
                held = np.concatenate([tail, np.arange(*self.token_ptr[node : node + 2])])
                own = -(-len(held) // page_size)
                padded = np.full(own * page_size, -1)
                padded[: len(held)] = held
                contents.append(padded.reshape(own, page_size))
                shared = above[: len(above) - (len(tail) > 0)]
                above = np.concatenate([shared, num_pages + np.arange(own)])
                tail = held[len(held) // page_size * page_size :]
                num_pages += own
            tables.append(above)
            tails.append(tail)
        page_tokens = np.concatenate(contents)
        where = np.random.default_rng(seed).permutation(num_pages)
        shuffled = np.empty_like(page_tokens)
        shuffled[where] = page_tokens
        rows = [where[tables[leaf]] for leaf in self.leaves]
        block_tables = np.full((len(rows), max(map(len, rows))), _NO_PAGE, np.int32)
        for table, row in zip(block_tables, rows, strict=True):
            table[: len(row)] = row
        return Pages(block_tables, self.kv_lens.astype(np.int32), shuffled)


def _subtree_sizes(parents: Sequence[int]) -> np.ndarray:
    """int64 [n]: nodes below each draft node, itself included; refuses another order."""
    sizes = np.ones(len(parents), np.int64)
    for node in range(len(parents) - 1, -1, -1):
        parent = parents[node]
        if not -1 <= parent < node:
            raise ValueError(f"Forest: draft parents must come first, got {parent} for {node}")
        if parent >= 0:
            sizes[parent] += sizes[node]
    ends = np.arange(len(parents)) + sizes
    # In preorder a node lies within its parent's span, and siblings follow one another.
    open_nodes: list[int] = []
    for node, parent in enumerate(parents):
        while open_nodes and ends[open_nodes[-1]] <= node:
            open_nodes.pop()
        if parent != (open_nodes[-1] if open_nodes else -1):
            raise ValueError("Forest: draft nodes must be numbered in preorder")
        open_nodes.append(node)
    return sizes
