"""A thin runtime for test-time search: strategies, budgets, and models that share every prefix."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ttc_runtime.branch import Branch
    from ttc_runtime.budget import Budget, Usage
    from ttc_runtime.engine import Engine
    from ttc_runtime.result import Result
    from ttc_runtime.rewards import RewardModel, RewardSpec
    from ttc_runtime.sampling import SamplingParams
    from ttc_runtime.search import Generate, Score, Search
    from ttc_runtime.speculation import Speculation
    from ttc_runtime.strategies import BestOfN, Greedy, Outcome, SelfConsistency, Strategy

_HOME = {
    "Branch": "branch",
    "Budget": "budget",
    "Usage": "budget",
    "Engine": "engine",
    "Result": "result",
    "RewardModel": "rewards",
    "RewardSpec": "rewards",
    "SamplingParams": "sampling",
    "Speculation": "speculation",
    "Generate": "search",
    "Score": "search",
    "Search": "search",
    "BestOfN": "strategies",
    "Greedy": "strategies",
    "Outcome": "strategies",
    "SelfConsistency": "strategies",
    "Strategy": "strategies",
}

__all__ = [
    "BestOfN",
    "Branch",
    "Budget",
    "Engine",
    "Generate",
    "Greedy",
    "Outcome",
    "Result",
    "RewardModel",
    "RewardSpec",
    "SamplingParams",
    "Score",
    "Search",
    "SelfConsistency",
    "Speculation",
    "Strategy",
    "Usage",
]


def __getattr__(name: str):
    """Import a public name when it is first used: torch and transformers take seconds."""
    if name not in _HOME:
        raise AttributeError(f"module 'ttc_runtime' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ttc_runtime.{_HOME[name]}"), name)
