"""Seeded lives of tree searches: who forks, who is dropped, who grows, step by decode step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .forest import Forest

# A branch by its child numbers from the prompt down; sorted paths are in depth-first order.
Path = tuple[int, ...]

# Children of one node below the prompt.
_MOST_CHILDREN = 10


@dataclass(frozen=True)
class Step:
    """What happens before a decode step, and who takes part in it.

    Attributes:
        dead: branches that are dropped.
        forks: branches that end and the number of children that go on from each.
        live: branches that then grow by one token, in depth-first order.
    """

    dead: list[Path]
    forks: list[tuple[Path, int]]
    live: list[Path]

    @property
    def is_new_topology(self) -> bool:
        """Whether the tree is not that of the step before."""
        return bool(self.dead or self.forks)


@dataclass(frozen=True)
class Search:
    """A tree search whose branches end their steps at different times.

    When a branch ends its step, a number of live branches is drawn, and the branch gets as many
    children as are missing, or is dropped if there are enough.

    Args:
        name: for tables.
        prompt: tokens of the prompt.
        steps: depth of the search, in steps of reasoning.
        live: least, usual and most live branches.
        step_tokens: least, usual and most tokens of a step.

    Example:
        >>> search = Search("tiny", prompt=9, steps=2, live=(2, 2, 2), step_tokens=(3, 3, 3))
        >>> [step.live for step in search.run(seed=0)][0]
        [(0,), (1,)]
    """

    name: str
    prompt: int
    steps: int
    live: tuple[int, int, int]
    step_tokens: tuple[int, int, int]

    def run(self, seed: int) -> Iterator[Step]:
        """The steps until the last branch has ended at full depth."""
        rng = np.random.default_rng(seed)
        left: dict[Path, int] = {(): 0}
        while left:
            dead: list[Path] = []
            forks: list[tuple[Path, int]] = []
            for path in sorted(path for path, tokens in left.items() if tokens == 0):
                del left[path]
                missing = _draw(rng, self.live) - len(left)
                count = 0 if len(path) == self.steps else max(missing, 0 if left else 1)
                count = min(count, _MOST_CHILDREN if path else count)
                if count == 0:
                    dead.append(path)
                    continue
                forks.append((path, count))
                for child in range(count):
                    birth = (*path, child)
                    left[birth] = _draw(rng, self.step_tokens)
            if left:
                yield Step(dead, forks, sorted(left))
            left = {path: tokens - 1 for path, tokens in left.items()}


def _draw(rng: np.random.Generator, spread: tuple[int, int, int]) -> int:
    low, usual, high = spread
    return low if low == high else round(rng.triangular(low, usual, high))


def forest_of(name: str, sizes: dict[Path, int], live: list[Path]) -> tuple[Forest, list[Path]]:
    """The tree below which the live branches are, a query for each.

    Args:
        name: for tables.
        sizes: tokens of every node that was ever begun, by its path.
        live: in depth-first order.

    Returns:
        (forest, first): and for every node of the forest the first live branch below it. Nodes
        with one live child are joined with it.
    """
    children: dict[Path, set[Path]] = {}
    for path in live:
        for depth in range(len(path)):
            children.setdefault(path[:depth], set()).add(path[: depth + 1])
    parents: list[int] = []
    counts: list[int] = []
    first: list[Path] = []
    live_set = set(live)

    def add(path: Path, parent: int) -> None:
        tokens = sizes[path]
        while len(children.get(path, ())) == 1 and path not in live_set:
            (path,) = children[path]
            tokens += sizes[path]
        node = len(parents)
        parents.append(parent)
        counts.append(tokens)
        below = path
        while below not in live_set:
            below = min(children[below])
        first.append(below)
        for child in sorted(children.get(path, ())):
            add(child, node)

    add((), -1)
    return Forest("replay", name, tuple(parents), tuple(counts)), first
