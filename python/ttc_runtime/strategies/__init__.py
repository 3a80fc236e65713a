"""Strategies: generators that yield work, one file each."""

from __future__ import annotations

from collections.abc import Callable

from ttc_runtime.sampling import SamplingParams
from ttc_runtime.strategies.base import Outcome, Strategy
from ttc_runtime.strategies.best_of_n import BestOfN
from ttc_runtime.strategies.greedy import Greedy
from ttc_runtime.strategies.self_consistency import SelfConsistency
from ttc_runtime.strategies.voting import Votes, vote

__all__ = [
    "STRATEGIES",
    "BestOfN",
    "Greedy",
    "Outcome",
    "SelfConsistency",
    "Strategy",
    "Votes",
    "vote",
]

STRATEGIES: dict[str, Callable[[int, SamplingParams], Strategy]] = {
    "greedy": lambda n, sampling: Greedy(sampling),
    "self_consistency": lambda n, sampling: SelfConsistency(n, sampling),
    "best_of_n": lambda n, sampling: BestOfN(n, sampling=sampling),
}
"""By their names on the command line: functions of (n, sampling)."""
