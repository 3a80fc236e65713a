"""Difficulty routing: a cheap look at a problem decides how hard to search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

from ttc_runtime.sampling import SamplingParams
from ttc_runtime.search import Search
from ttc_runtime.strategies.base import (
    SELECTS,
    Strategy,
    Work,
    check_choice,
    check_count,
    check_number,
)
from ttc_runtime.strategies.difficulty import ESTIMATES, look_and_search


@dataclass(frozen=True)
class Adaptive:
    """A difficulty told from `samples` completions picks one of the routes.

    samples: completions, which also count as candidates. estimate: of the difficulty in [0, 1], see
    `estimate_difficulty`. bounds: increasing difficulties between the routes, one fewer than these.
    routes: strategies from the one for easy problems to that for the hardest, each as an object or
    as a word such as ``beam:n=8:width=2``, which gets this `sampling`; by default greedy,
    best-of-4, beam search (16, 4) and MCTS (50). Best-of-N counts the samples among its own.
    select: how the answer is chosen among all candidates, None for the route's own way. Snell et
    al., "Scaling LLM Test-Time Compute Optimally", 2024, have the idea, with difficulty from 2048
    samples. Raises ValueError for other settings.

    >>> [route.name for route in Adaptive().routes]
    ['greedy', 'best_of_n', 'beam', 'mcts']
    >>> Adaptive(bounds=(0.4,), routes=("greedy", "dvts:n=32")).routes[1].n
    32
    """

    samples: int = 4
    estimate: str = "reward"
    bounds: tuple[float, ...] = (0.25, 0.5, 0.75)
    routes: tuple[Strategy | str, ...] = ("greedy", "best_of_n:n=4", "beam:n=16:width=4", "mcts")
    select: str | None = "weighted"
    sampling: SamplingParams = SamplingParams()
    name: ClassVar[str] = "adaptive"

    def __post_init__(self) -> None:
        check_count("Adaptive", "samples", self.samples)
        check_choice("Adaptive", "estimate", self.estimate, ESTIMATES)
        if self.select is not None:
            check_choice("Adaptive", "select", self.select, SELECTS)
        for setting in ("bounds", "routes"):
            if not isinstance(getattr(self, setting), (list, tuple)):
                raise ValueError(
                    f"Adaptive: {setting} must be a list, got {getattr(self, setting)!r}"
                )
        object.__setattr__(self, "bounds", tuple(self.bounds))
        object.__setattr__(self, "routes", tuple(map(self._route, self.routes)))
        for bound in self.bounds:
            check_number("Adaptive", "each of bounds", bound, 0, 1)
        if list(self.bounds) != sorted(self.bounds) or len(self.routes) != len(self.bounds) + 1:
            raise ValueError(
                f"Adaptive: bounds must increase and be one fewer than the {len(self.routes)} "
                f"routes, got {self.bounds}"
            )

    def _route(self, route: Strategy | str) -> Strategy:
        from ttc_runtime.strategies.named import parse_strategy  # which names this class

        return parse_strategy(route, sampling=self.sampling) if isinstance(route, str) else route

    def run(self, search: Search) -> Work:
        routes = cast("tuple[Strategy, ...]", self.routes)  # as __post_init__ left them

        def choose(difficulty: float) -> tuple[str, Strategy]:
            route = routes[sum(difficulty >= bound for bound in self.bounds)]
            return route.name, route

        return look_and_search(
            search, self.samples, self.estimate, self.select, self.sampling, choose
        )
