"""Greedy decoding: one completion of likeliest tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ttc_runtime.sampling import SamplingParams
from ttc_runtime.search import Generate, Search
from ttc_runtime.strategies.base import Outcome, Work


@dataclass(frozen=True)
class Greedy:
    """One completion, each token the likeliest.

    sampling: for its max_tokens and stop strings; the temperature is 0 whatever it says.

    >>> Greedy().sampling.temperature
    0.0
    """

    sampling: SamplingParams = SamplingParams()
    name: ClassVar[str] = "greedy"

    def __post_init__(self) -> None:
        object.__setattr__(self, "sampling", replace(self.sampling, temperature=0.0))

    def run(self, search: Search) -> Work:
        branches = yield Generate(search.root.fork(1), self.sampling)
        return Outcome(branches)
