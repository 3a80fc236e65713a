"""Greedy decoding: one completion of likeliest tokens."""

from __future__ import annotations

from dataclasses import replace

from ttc_runtime.sampling import SamplingParams
from ttc_runtime.search import Generate, Search
from ttc_runtime.strategies.base import Outcome, Work


class Greedy:
    """One completion, each token the likeliest.

    sampling: for its max_tokens and stop strings; the temperature is 0 whatever it says.

    >>> Greedy().sampling.temperature
    0.0
    """

    name = "greedy"

    def __init__(self, sampling: SamplingParams | None = None) -> None:
        self.sampling = replace(sampling or SamplingParams(), temperature=0.0)

    def run(self, search: Search) -> Work:
        branches = yield Generate(search.root.fork(1), self.sampling)
        return Outcome(branches)
