"""Strategies: generators that yield work, one file each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, Field

from ttc_runtime.sampling import SamplingParams
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
    "step_search",
    "vote",
]

_KINDS = (
    Greedy,
    SelfConsistency,
    BestOfN,
    BeamSearch,
    DVTS,
    Rebase,
    ParticleFilter,
    MCTS,
    Collective,
    BudgetForcing,
    ThoughtSwitching,
    SpeculativeRejection,
    StepSpeculation,
    EarlyTermination,
    CertaintyProbes,
    Adaptive,
    ComputeOptimal,
    Decomposition,
    PlanCompare,
    Retrieval,
)
STRATEGIES: dict[str, Callable[..., Strategy]] = {kind.name: kind for kind in _KINDS}
"""By their names on the command line."""


def make_strategy(
    name: str, n: int | None = None, sampling: SamplingParams | None = None, **settings
) -> Strategy:
    """A strategy by its name.

    name: one of `STRATEGIES`. n: completions, where it has that setting. sampling: how tokens are
    drawn. settings: more of its settings. Raises ValueError for an unknown name or setting, or a
    value that does not fit.

    >>> make_strategy("beam", 8, width=2).width
    2
    """
    if name not in STRATEGIES:
        raise ValueError(f"strategy: expected one of {', '.join(STRATEGIES)}, got {name!r}")
    known = STRATEGIES[name].__dataclass_fields__  # type: ignore[attr-defined]
    for setting in settings:
        if setting not in known:
            raise ValueError(f"{name}: settings are {', '.join(known)}, there is no {setting!r}")
    if n is not None and "n" in known:
        settings.setdefault("n", n)
    if sampling is not None:
        settings["sampling"] = sampling
    missing = {k for k, f in known.items() if _required(f)} - set(settings)
    if missing:
        raise ValueError(f"{name}: needs the settings {', '.join(sorted(missing))}")
    return STRATEGIES[name](**settings)


def _required(field: Field) -> bool:
    return field.default is MISSING and field.default_factory is MISSING
