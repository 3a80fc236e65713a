"""A thin runtime for test-time search: strategies, budgets, and models that share every prefix."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ttc_runtime.branch import Branch
    from ttc_runtime.budget import Budget, Usage
    from ttc_runtime.calibration import Calibration, calibrate
    from ttc_runtime.engine import Engine
    from ttc_runtime.result import Result
    from ttc_runtime.rewards import RewardModel, RewardSpec
    from ttc_runtime.sampling import SamplingParams
    from ttc_runtime.search import Call, Generate, Score, Search, Together
    from ttc_runtime.speculation import Speculation
    from ttc_runtime.strategies import (
        DVTS,
        MCTS,
        Adaptive,
        BeamSearch,
        BestOfN,
        BudgetForcing,
        CertaintyProbes,
        Collective,
        ComputeOptimal,
        Decomposition,
        EarlyTermination,
        Greedy,
        Outcome,
        ParticleFilter,
        PlanCompare,
        Rebase,
        Retrieval,
        SelfConsistency,
        SpeculativeRejection,
        StepSpeculation,
        Strategy,
        ThoughtSwitching,
        make_strategy,
    )

_HOME = {
    "Branch": "branch",
    "Budget": "budget",
    "Usage": "budget",
    "Calibration": "calibration",
    "calibrate": "calibration",
    "Engine": "engine",
    "Result": "result",
    "RewardModel": "rewards",
    "RewardSpec": "rewards",
    "SamplingParams": "sampling",
    "Call": "search",
    "Generate": "search",
    "Score": "search",
    "Search": "search",
    "Together": "search",
    "Speculation": "speculation",
    "Adaptive": "strategies",
    "BeamSearch": "strategies",
    "BestOfN": "strategies",
    "BudgetForcing": "strategies",
    "CertaintyProbes": "strategies",
    "Collective": "strategies",
    "ComputeOptimal": "strategies",
    "DVTS": "strategies",
    "Decomposition": "strategies",
    "EarlyTermination": "strategies",
    "Greedy": "strategies",
    "MCTS": "strategies",
    "Outcome": "strategies",
    "ParticleFilter": "strategies",
    "PlanCompare": "strategies",
    "Rebase": "strategies",
    "Retrieval": "strategies",
    "SelfConsistency": "strategies",
    "SpeculativeRejection": "strategies",
    "StepSpeculation": "strategies",
    "Strategy": "strategies",
    "ThoughtSwitching": "strategies",
    "make_strategy": "strategies",
}

__all__ = [
    "DVTS",
    "MCTS",
    "Adaptive",
    "BeamSearch",
    "BestOfN",
    "Branch",
    "Budget",
    "BudgetForcing",
    "Calibration",
    "Call",
    "CertaintyProbes",
    "Collective",
    "ComputeOptimal",
    "Decomposition",
    "EarlyTermination",
    "Engine",
    "Generate",
    "Greedy",
    "Outcome",
    "ParticleFilter",
    "PlanCompare",
    "Rebase",
    "Result",
    "Retrieval",
    "RewardModel",
    "RewardSpec",
    "SamplingParams",
    "Score",
    "Search",
    "SelfConsistency",
    "Speculation",
    "SpeculativeRejection",
    "StepSpeculation",
    "Strategy",
    "ThoughtSwitching",
    "Together",
    "Usage",
    "calibrate",
    "make_strategy",
]


def __getattr__(name: str):
    """Import a public name when it is first used: torch and transformers take seconds."""
    if name not in _HOME:
        raise AttributeError(f"module 'ttc_runtime' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ttc_runtime.{_HOME[name]}"), name)
