"""Forests whose levels are uniform, as published benchmarks give them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from .forest import Forest


class Tree(Forest):
    """A forest in which all nodes of one level have the same number of tokens.

    Child j of level l hangs from parent floor(j * N[l-1] / N[l]). One query per leaf.

    Args:
        suite: where the shape comes from.
        nodes_per_level: N, nodes on each level, never fewer than on the level above.
        tokens_per_node: C, tokens of each node of a level.
        heads: query heads and KV heads that belong to the workload, if any.

    Raises:
        ValueError: if the two tuples disagree, or a level is empty or narrower than its parent.

    Example:
        >>> Tree("example", (1, 2), (8, 4)).name
        '1,2x8,4'
    """

    nodes_per_level: tuple[int, ...]
    tokens_per_node: tuple[int, ...]

    def __init__(
        self,
        suite: str,
        nodes_per_level: Sequence[int],
        tokens_per_node: Sequence[int],
        heads: tuple[int, int] | None = None,
    ) -> None:
        n, c = tuple(nodes_per_level), tuple(tokens_per_node)
        if not n or len(n) != len(c):
            raise ValueError(
                f"Tree: nodes_per_level and tokens_per_node must be of equal length >= 1, "
                f"got {n} and {c}"
            )
        if min(n) < 1 or min(c) < 1 or any(a > b for a, b in itertools.pairwise(n)):
            raise ValueError(
                f"Tree: counts must be >= 1 and levels must not get narrower, got {n} and {c}"
            )
        object.__setattr__(self, "nodes_per_level", n)
        object.__setattr__(self, "tokens_per_node", c)
        parents, begin = [-1] * n[0], 0
        for above, here in itertools.pairwise(n):
            parents += (begin + np.arange(here) * above // here).tolist()
            begin += above
        sizes = tuple(np.repeat(c, n).tolist())
        name = "x".join(",".join(map(str, x)) for x in (n, c))
        super().__init__(suite, name, tuple(parents), sizes, heads=heads)

    @property
    def depth(self) -> int:
        """Number of levels."""
        return len(self.nodes_per_level)

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
