"""Strategies: generators that yield work, one file each."""

from __future__ import annotations

from ttc_runtime.strategies.base import Outcome, Strategy
from ttc_runtime.strategies.best_of_n import BestOfN
from ttc_runtime.strategies.greedy import Greedy
from ttc_runtime.strategies.self_consistency import SelfConsistency
from ttc_runtime.strategies.voting import Votes, vote

__all__ = ["STRATEGIES", "BestOfN", "Greedy", "Outcome", "SelfConsistency", "Strategy", "Votes",
           "vote"]

STRATEGIES: dict[str, type[Strategy]] = {
    "greedy": Greedy, "best_of_n": BestOfN, "self_consistency": SelfConsistency,
}
"""Strategies by their names on the command line."""
