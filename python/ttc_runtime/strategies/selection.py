"""Selection: how many children each branch gets.

A selection is a function of (values, places, random): the branches' values, NaN where nothing is
known, how many children there may be in all, and a random generator. It returns the number of
children of each branch, 0 for one that is dropped; together at most `places`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from ttc_runtime.branch import Branch
from ttc_runtime.search import Search
from ttc_runtime.strategies.base import check_count

Selection = Callable[[list[float], int, random.Random], list[int]]


@dataclass(frozen=True)
class Best:
    """The best branches get `width` children each, as far as the places go.

    Ties go to the branch that comes first. Raises ValueError for a width below 1.

    >>> Best(2)([0.1, 0.9, 0.5], 4, random.Random(0))
    [0, 2, 2]
    """

    width: int

    def __post_init__(self) -> None:
        check_count("Best", "width", self.width)

    def __call__(self, values: list[float], places: int, rng: random.Random) -> list[int]:
        counts = [0] * len(values)
        for i in ranking(values):
            counts[i] = min(self.width, places)
            places -= counts[i]
        return counts


@dataclass(frozen=True)
class Softmax:
    """Children in proportion to the softmax of the values: REBASE.

    From the best branch on, each gets its share of the places left, rounded up. temperature: of the
    softmax. Wu et al., "Inference Scaling Laws", 2024. Raises ValueError unless it is positive.

    >>> Softmax(0.2)([0.9, 0.5, 0.1], 8, random.Random(0))
    [7, 1, 0]
    """

    temperature: float = 0.2

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"Softmax: temperature must be positive, got {self.temperature!r}")

    def __call__(self, values: list[float], places: int, rng: random.Random) -> list[int]:
        top = max((v for v in values if v == v), default=0.0)
        weights = [math.exp((v - top) / self.temperature) if v == v else 0.0 for v in values]
        if not any(weights):
            weights = [1.0] * len(values)
        left, counts = math.fsum(weights), [0] * len(values)
        for i in ranking(values):
            share = places * weights[i] / left if left > 0 else 0.0
            counts[i] = min(places, math.ceil(share - 1e-9))
            places -= counts[i]
            left -= weights[i]
        return counts


@dataclass(frozen=True)
class AtLeast:
    """Every branch of at least some value goes on, the best one always.

    threshold: on the values' scale. NaN counts as below.

    >>> AtLeast(0.5)([0.6, 0.2, 0.7], 3, random.Random(0))
    [1, 0, 1]
    """

    threshold: float

    def __call__(self, values: list[float], places: int, rng: random.Random) -> list[int]:
        best = ranking(values)[0]
        return [int(v >= self.threshold or i == best) for i, v in enumerate(values)]


def ranking(values: list[float]) -> list[int]:
    """Places of the values from best to worst; NaN last, ties in order.

    >>> ranking([0.5, float("nan"), 0.9])
    [2, 0, 1]
    """
    return sorted(range(len(values)), key=lambda i: (values[i] != values[i], -values[i], i))


def spawn(branches: list[Branch], counts: list[int], reason: str = "pruned") -> list[Branch]:
    """What goes on after a selection: children of the branches, or, for a single child, the branch
    itself; branches without children are freed for `reason`."""
    growing = []
    for branch, count in zip(branches, counts, strict=True):
        if count == 0:
            branch.free(reason)
        else:
            growing += [branch] if count == 1 else branch.fork(count)
    return growing


def seeded(search: Search, purpose: str) -> random.Random:
    """A random generator that depends on the run's seed, the problem and a purpose alone."""
    return random.Random(f"{search.seed}/{purpose}/{search.problem}")
