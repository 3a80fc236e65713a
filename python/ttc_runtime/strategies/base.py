"""What every strategy is and returns."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Protocol

from ttc_runtime.branch import Branch
from ttc_runtime.sampling import SamplingParams
from ttc_runtime.search import Generate, Score, Search


@dataclass(frozen=True)
class Outcome:
    """The end of a strategy.

    branches: the candidate solutions. select: how the answer is chosen among them: ``majority``,
    ``weighted`` or ``naive``, as `vote` reports them. info: what the strategy wants in the record,
    such as the route it chose; JSON values.
    """

    branches: list[Branch] = field(default_factory=list)
    select: str = "majority"
    info: dict = field(default_factory=dict)


Work = Generator[Generate | Score, list, Outcome]
"""What `Strategy.run` is: it yields work, is sent what came of it, and returns an outcome."""


class Strategy(Protocol):
    """A way to search. It holds settings only, so one object serves any number of problems.

    name: on the command line and in records. sampling: how tokens are drawn.
    """

    name: str
    sampling: SamplingParams

    def run(self, search: Search) -> Work:
        """Yield work for one problem and return what came of it."""
        ...


def check_count(strategy: str, name: str, value: int) -> int:
    """A setting that must be an integer of at least 1. Raises ValueError naming it otherwise."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{strategy}: {name} must be an integer >= 1, got {value!r}")
    return value
