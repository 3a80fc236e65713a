"""What every strategy is and returns."""

from __future__ import annotations

import re
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, Protocol

from ttc_runtime.branch import Branch
from ttc_runtime.sampling import SamplingParams
from ttc_runtime.search import Call, Generate, Score, Search, Together


@dataclass(frozen=True)
class Outcome:
    """The end of a strategy.

    branches: the candidate solutions. select: how the answer is chosen among them: ``majority``,
    ``weighted`` or ``naive``, as `vote` reports them. info: what the strategy wants in the record,
    such as the route it chose; JSON values. scores: one a branch to choose by, by default its
    aggregated step scores. Raises ValueError for another ``select`` or number of scores.
    """

    branches: list[Branch] = field(default_factory=list)
    select: str = "majority"
    info: dict = field(default_factory=dict)
    scores: list[float] | None = None

    def __post_init__(self) -> None:
        check_choice("Outcome", "select", self.select, SELECTS)
        if self.scores is not None and len(self.scores) != len(self.branches):
            raise ValueError(
                f"Outcome: scores must be one for each of the {len(self.branches)} branches, got "
                f"{len(self.scores)}"
            )


Work = Generator[Generate | Score | Together | Call, Any, Outcome]
"""What `Strategy.run` is: it yields work, is sent what came of it, and returns an outcome."""

SELECTS = ("majority", "weighted", "naive")


class Strategy(Protocol):
    """A way to search. It holds settings only, so one object serves any number of problems.

    name: on the command line and in records. sampling: how tokens are drawn.
    """

    @property
    def name(self) -> str: ...

    @property
    def sampling(self) -> SamplingParams: ...

    def run(self, search: Search) -> Work:
        """Yield work for one problem and return what came of it."""
        ...


def check_count(strategy: str, name: str, value: int, least: int = 1) -> int:
    """A setting that must be an integer, of at least 1 by default. Raises ValueError naming it."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{strategy}: {name} must be an integer >= {least}, got {value!r}")
    return value


def check_number(strategy: str, name: str, value: float, low: float, high: float) -> float:
    """A setting that must be a number from `low` to `high`. Raises ValueError naming it."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"{strategy}: {name} must be a number in [{low}, {high}], got {value!r}")
    return value


def check_choice(strategy: str, name: str, value: str, choices: tuple[str, ...]) -> str:
    """A setting that must be one of some words. Raises ValueError naming it."""
    if value not in choices:
        raise ValueError(
            f"{strategy}: {name} must be {' or '.join(map(repr, choices))}, got {value!r}"
        )
    return value


def require_reward(strategy: str, search: Search) -> None:
    """Raises ValueError where a strategy needs a reward model and the engine has none."""
    if not search.scored:
        raise ValueError(f"{strategy}: the engine was made without a reward model")


def fill(template: str, **values: str) -> str:
    """A prompt with values in place of ``{name}``; other braces stay, as LaTeX has many.

    >>> fill("{problem} = {}", problem="1+1")
    '1+1 = {}'
    """
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), template)
