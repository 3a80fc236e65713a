"""Difficulty routing: a cheap look at a problem decides how hard to search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ttc_runtime.sampling import SamplingParams
from ttc_runtime.search import Search
from ttc_runtime.strategies.base import (
    SELECTS,
    Outcome,
    Strategy,
    Work,
    check_choice,
    check_count,
    check_number,
)
from ttc_runtime.strategies.beam import BeamSearch
from ttc_runtime.strategies.best_of_n import BestOfN
from ttc_runtime.strategies.difficulty import ESTIMATES, estimate_difficulty, search_further
from ttc_runtime.strategies.greedy import Greedy
from ttc_runtime.strategies.mcts import MCTS


@dataclass(frozen=True)
class Adaptive:
    """A difficulty told from `samples` completions picks one of the routes.

    samples: completions, which also count as candidates. estimate: of the difficulty in [0, 1], see
    `estimate_difficulty`. bounds: increasing difficulties between the routes, one fewer than these.
    routes: strategies from the one for easy problems to that for the hardest; by default greedy,
    best-of-4, beam search (16, 4) and MCTS (50), with this `sampling`. select: how the answer is
    chosen among all candidates. Snell et al., "Scaling LLM Test-Time Compute Optimally", 2024, have
    the idea, with difficulty from 2048 samples. Raises ValueError for other settings.

    >>> [route.name for route in Adaptive().routes]
    ['greedy', 'best_of_n', 'beam', 'mcts']
    """

    samples: int = 4
    estimate: str = "reward"
    bounds: tuple[float, ...] = (0.25, 0.5, 0.75)
    routes: tuple[Strategy, ...] = ()
    select: str = "weighted"
    sampling: SamplingParams = SamplingParams()
    name: ClassVar[str] = "adaptive"

    def __post_init__(self) -> None:
        check_count("Adaptive", "samples", self.samples)
        check_choice("Adaptive", "estimate", self.estimate, ESTIMATES)
        check_choice("Adaptive", "select", self.select, SELECTS)
        object.__setattr__(self, "bounds", tuple(self.bounds))
        s = self.sampling
        default = (
            Greedy(s),
            BestOfN(4, sampling=s),
            BeamSearch(16, 4, sampling=s),
            MCTS(50, sampling=s),
        )
        object.__setattr__(self, "routes", tuple(self.routes) or default)
        for bound in self.bounds:
            check_number("Adaptive", "each of bounds", bound, 0, 1)
        if list(self.bounds) != sorted(self.bounds) or len(self.routes) != len(self.bounds) + 1:
            raise ValueError(
                f"Adaptive: bounds must increase and be one fewer than the {len(self.routes)} "
                f"routes, got {self.bounds}"
            )

    def run(self, search: Search) -> Work:
        difficulty, samples = yield from estimate_difficulty(
            search, self.samples, self.sampling, self.estimate
        )
        route = self.routes[sum(difficulty >= bound for bound in self.bounds)]
        found = yield from search_further(search, route)
        info = {"difficulty": round(difficulty, 6), "route": route.name, **found.info}
        return Outcome([*samples, *found.branches], self.select, info)
