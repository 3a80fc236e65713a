"""Strategies: generators that yield work, one file each."""

from __future__ import annotations

from ttc_runtime.strategies.adaptive import Adaptive
from ttc_runtime.strategies.base import Outcome, Strategy
from ttc_runtime.strategies.beam import BeamSearch
from ttc_runtime.strategies.best_of_n import BestOfN
from ttc_runtime.strategies.budget_forcing import BudgetForcing
from ttc_runtime.strategies.certainty import CertaintyProbes
from ttc_runtime.strategies.collective import Collective
from ttc_runtime.strategies.compute_optimal import ComputeOptimal
from ttc_runtime.strategies.decomposition import Decomposition
from ttc_runtime.strategies.difficulty import estimate_difficulty
from ttc_runtime.strategies.dvts import DVTS
from ttc_runtime.strategies.early_termination import EarlyTermination
from ttc_runtime.strategies.greedy import Greedy
from ttc_runtime.strategies.mcts import MCTS
from ttc_runtime.strategies.named import STRATEGIES, make_strategy, parse_strategy
from ttc_runtime.strategies.particle import ParticleFilter
from ttc_runtime.strategies.plan_compare import PlanCompare
from ttc_runtime.strategies.rebase import Rebase
from ttc_runtime.strategies.retrieval import Retrieval
from ttc_runtime.strategies.selection import AtLeast, Best, Softmax
from ttc_runtime.strategies.self_consistency import SelfConsistency
from ttc_runtime.strategies.speculative_rejection import SpeculativeRejection
from ttc_runtime.strategies.step_speculation import StepSpeculation
from ttc_runtime.strategies.steps import grow_steps, step_search
from ttc_runtime.strategies.thought_switching import ThoughtSwitching
from ttc_runtime.strategies.values import Confidence, Lookahead, Rating, RewardValue, Rollouts
from ttc_runtime.strategies.voting import Votes, vote

__all__ = [
    "DVTS",
    "MCTS",
    "STRATEGIES",
    "Adaptive",
    "AtLeast",
    "BeamSearch",
    "Best",
    "BestOfN",
    "BudgetForcing",
    "CertaintyProbes",
    "Collective",
    "ComputeOptimal",
    "Confidence",
    "Decomposition",
    "EarlyTermination",
    "Greedy",
    "Lookahead",
    "Outcome",
    "ParticleFilter",
    "PlanCompare",
    "Rating",
    "Rebase",
    "Retrieval",
    "RewardValue",
    "Rollouts",
    "SelfConsistency",
    "Softmax",
    "SpeculativeRejection",
    "StepSpeculation",
    "Strategy",
    "ThoughtSwitching",
    "Votes",
    "estimate_difficulty",
    "grow_steps",
    "make_strategy",
    "parse_strategy",
    "step_search",
    "vote",
]
