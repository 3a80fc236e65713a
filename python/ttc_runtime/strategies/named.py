"""Strategies by their names, as the command line and calibration tables write them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import MISSING, Field
from typing import Any

from ttc_runtime.sampling import SamplingParams
from ttc_runtime.strategies.adaptive import Adaptive
from ttc_runtime.strategies.base import Strategy
from ttc_runtime.strategies.beam import BeamSearch
from ttc_runtime.strategies.best_of_n import BestOfN
from ttc_runtime.strategies.budget_forcing import BudgetForcing
from ttc_runtime.strategies.certainty import CertaintyProbes
from ttc_runtime.strategies.collective import Collective
from ttc_runtime.strategies.compute_optimal import ComputeOptimal
from ttc_runtime.strategies.decomposition import Decomposition
from ttc_runtime.strategies.dvts import DVTS
from ttc_runtime.strategies.early_termination import EarlyTermination
from ttc_runtime.strategies.greedy import Greedy
from ttc_runtime.strategies.mcts import MCTS
from ttc_runtime.strategies.particle import ParticleFilter
from ttc_runtime.strategies.plan_compare import PlanCompare
from ttc_runtime.strategies.rebase import Rebase
from ttc_runtime.strategies.retrieval import Retrieval
from ttc_runtime.strategies.self_consistency import SelfConsistency
from ttc_runtime.strategies.speculative_rejection import SpeculativeRejection
from ttc_runtime.strategies.step_speculation import StepSpeculation
from ttc_runtime.strategies.thought_switching import ThoughtSwitching

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
    name: str, /, n: int | None = None, sampling: SamplingParams | None = None, **settings
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


def parse_strategy(
    text: str, n: int | None = None, sampling: SamplingParams | None = None
) -> Strategy:
    """A strategy from one word: its name, and after colons its settings.

    text: such as ``beam:n=8:width=2``. n, sampling: as for `make_strategy`. Raises ValueError for
    what that refuses, or a setting without ``=``.

    >>> parse_strategy("beam:n=8:width=2").width
    2
    """
    name, *settings = text.strip().split(":")
    return make_strategy(name, **{"n": n, "sampling": sampling, **parse_settings(settings, name)})


def parse_settings(settings: list[str], option: str = "--set") -> dict[str, Any]:
    """Settings such as ``width=4`` as a dict; values are JSON, or else words.

    Raises ValueError for one without ``=``, which names the option.

    >>> parse_settings(["width=4", "rule=uct", "bounds=[0.2, 0.6]"])
    {'width': 4, 'rule': 'uct', 'bounds': [0.2, 0.6]}
    """
    parsed = {}
    for text in settings:
        name, value = name_value(option, text)
        try:
            parsed[name] = json.loads(value)
        except ValueError:
            parsed[name] = value
    return parsed


def name_value(option: str, text: str) -> tuple[str, str]:
    """The two sides of ``NAME=VALUE``. Raises ValueError where either the name or = is missing."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ValueError(f"{option}: expected NAME=VALUE, got {text!r}")
    return name, value
