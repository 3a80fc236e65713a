"""The published trees, as node tables for the peers and as block tables for ttc_kernels."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

WORKLOADS_FILE = Path(__file__).with_name("workloads.json")


@dataclass(frozen=True)
class Pages:
    """A tree laid out in pages, as copy-on-write forks leave it.

    Attributes:
        block_tables: int32 [num_queries, max_pages], one row per leaf.
        kv_lens: int32 [num_queries], tokens on the leaf's path.
        page_tokens: int64 [num_pages, page_size], the unique token in each slot, -1 if unused.
    """

    block_tables: np.ndarray
    kv_lens: np.ndarray
    page_tokens: np.ndarray


@dataclass(frozen=True)
class Tree:
    """A forest in which all nodes of one level have the same number of tokens.

    Child j of level l hangs from parent floor(j * N[l-1] / N[l]), so the leaves below a node are
    consecutive. There is one query per leaf, and a leaf sees every token on its path. Unique
    tokens are numbered level by level, and node by node inside a level.

    Args:
        suite: where the shape comes from.
        nodes_per_level: N, nodes on each level, never fewer than on the level above.
        tokens_per_node: C, tokens of each node of a level.

    Raises:
        ValueError: if the two tuples disagree, or a level is empty or narrower than its parent.

    Example:
        >>> Tree("example", (1, 2), (8, 4)).unique_tokens
        16
    """

    suite: str
    nodes_per_level: tuple[int, ...]
    tokens_per_node: tuple[int, ...]

    def __post_init__(self) -> None:
        n, c = self.nodes_per_level, self.tokens_per_node
        if not n or len(n) != len(c):
            raise ValueError(
                f"Tree: nodes_per_level and tokens_per_node must be of equal length >= 1, "
                f"got {n} and {c}"
            )
        if min(n) < 1 or min(c) < 1 or any(a > b for a, b in itertools.pairwise(n)):
            raise ValueError(
                f"Tree: counts must be >= 1 and levels must not get narrower, got {n} and {c}"
            )

    @property
    def name(self) -> str:
        """The shape in words, in the form `parse_tree` reads."""
        n, c = (",".join(map(str, x)) for x in (self.nodes_per_level, self.tokens_per_node))
        return f"{n}x{c}"

    @property
    def depth(self) -> int:
        """Number of levels."""
        return len(self.nodes_per_level)

    @property
    def num_queries(self) -> int:
        """Number of leaves."""
        return self.nodes_per_level[-1]

    @property
    def unique_tokens(self) -> int:
        """Tokens of the whole tree, each counted once."""
        return sum(n * c for n, c in zip(self.nodes_per_level, self.tokens_per_node, strict=True))

    @property
    def path_tokens(self) -> int:
        """Tokens summed over the leaves' paths: what is read when nothing is shared."""
        return self.num_queries * sum(self.tokens_per_node)

    @cached_property
    def ancestors(self) -> np.ndarray:
        """int64 [depth, num_queries]: the node of each level that a leaf's path goes through."""
        rows = [np.arange(self.num_queries)]
        for level in range(self.depth - 1, 0, -1):
            parents, children = self.nodes_per_level[level - 1 : level + 1]
            rows.append(rows[-1] * parents // children)
        return np.stack(rows[::-1])

    def node_tokens(self, level: int) -> np.ndarray:
        """int64 [nodes, tokens]: the unique tokens of each node of a level."""
        sizes = [n * c for n, c in zip(self.nodes_per_level, self.tokens_per_node, strict=True)]
        start, shape = sum(sizes[:level]), (self.nodes_per_level[level], -1)
        return np.arange(start, start + sizes[level]).reshape(shape)

    def path_of_nodes(self, first: int, last: int) -> np.ndarray:
        """int64 [nodes of level `last`, tokens]: the paths from level `first` down to `last`."""
        nodes = np.arange(self.nodes_per_level[last])
        parts = []
        for level in range(last, first - 1, -1):
            parts.append(self.node_tokens(level)[nodes])
            nodes = nodes * self.nodes_per_level[level - 1] // self.nodes_per_level[level]
        return np.concatenate(parts[::-1], axis=1)

    @cached_property
    def leaf_ranges(self) -> np.ndarray:
        """int64 [2, unique_tokens]: first and one-past-last leaf that sees each token."""
        parts = []
        for level, tokens in enumerate(self.tokens_per_node):
            nodes = np.arange(self.nodes_per_level[level])
            first = np.searchsorted(self.ancestors[level], nodes, side="left")
            last = np.searchsorted(self.ancestors[level], nodes, side="right")
            parts.append(np.stack([first, last]).repeat(tokens, axis=1))
        return np.concatenate(parts, axis=1)

    def pages(self, page_size: int = 16, seed: int = 0) -> Pages:
        """Lay the tree out in pages, physical pages in random order as in a pool long in use.

        A child shares its parent's full pages and copies a partly filled one.

        Args:
            page_size: tokens in a page.
            seed: of the order of the physical pages.
        """
        contents: list[np.ndarray] = []
        tables = np.empty((1, 0), np.int64)
        length = 0
        for level, tokens in enumerate(self.tokens_per_node):
            nodes = np.arange(self.nodes_per_level[level])
            parents = nodes * len(tables) // len(nodes) if level else np.zeros_like(nodes)
            shared_pages = length // page_size
            length += tokens
            own_pages = -(-length // page_size) - shared_pages
            # What a node's own pages hold, the copied head of its first page included.
            held = self.path_of_nodes(0, level)[:, shared_pages * page_size :]
            padded = np.full((len(nodes), own_pages * page_size), -1)
            padded[:, : held.shape[1]] = held
            first_page = sum(map(len, contents))
            contents.append(padded.reshape(-1, page_size))
            own = first_page + np.arange(len(nodes) * own_pages).reshape(len(nodes), own_pages)
            tables = np.concatenate([tables[parents, :shared_pages], own], axis=1)
        page_tokens = np.concatenate(contents)
        where = np.random.default_rng(seed).permutation(len(page_tokens))
        shuffled = np.empty_like(page_tokens)
        shuffled[where] = page_tokens
        return Pages(
            block_tables=where[tables].astype(np.int32),
            kv_lens=np.full(self.num_queries, length, np.int32),
            page_tokens=shuffled,
        )


def published_trees() -> list[Tree]:
    """All trees of workloads.json, in its order."""
    rows = json.loads(WORKLOADS_FILE.read_text())["trees"]
    return [
        Tree(r["suite"], tuple(r["nodes_per_level"]), tuple(r["tokens_per_node"])) for r in rows
    ]


def beam_trees() -> list[Tree]:
    """The beam sweep: many beams with a short suffix over one prompt."""
    sweep = json.loads(WORKLOADS_FILE.read_text())["beam_sweep"]
    return [
        Tree("beam", (1, sweep["beams"]), (prefix, sweep["suffix"])) for prefix in sweep["prefix"]
    ]


def parse_tree(text: str) -> Tree:
    """Read a tree such as `1,2,64x8,256,32`: nodes per level, then tokens per node.

    Raises:
        ValueError: if the text does not have that form.
    """
    try:
        nodes, tokens = (tuple(int(x) for x in part.split(",")) for part in text.split("x"))
    except ValueError:
        raise ValueError(
            f"parse_tree: expected nodes per level x tokens per node, like 1,2,64x8,256,32, "
            f"got {text!r}"
        ) from None
    return Tree("given", nodes, tokens)


SUITES = {"published": published_trees, "beam": beam_trees}
