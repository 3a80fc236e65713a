"""Strategies: generators that yield work, one file each."""

from __future__ import annotations

from collections.abc import Callable

from ttc_runtime.sampling import SamplingParams
from ttc_runtime.strategies.base import Outcome, Strategy
from ttc_runtime.strategies.beam import BeamSearch
from ttc_runtime.strategies.best_of_n import BestOfN
from ttc_runtime.strategies.dvts import DVTS
from ttc_runtime.strategies.greedy import Greedy
from ttc_runtime.strategies.mcts import MCTS
from ttc_runtime.strategies.self_consistency import SelfConsistency
from ttc_runtime.strategies.values import Confidence, Lookahead, RewardValue, Rollouts
from ttc_runtime.strategies.voting import Votes, vote

__all__ = [
    "DVTS",
    "MCTS",
    "STRATEGIES",
    "BeamSearch",
    "BestOfN",
    "Confidence",
    "Greedy",
    "Lookahead",
    "Outcome",
    "RewardValue",
    "Rollouts",
    "SelfConsistency",
    "Strategy",
    "Votes",
    "make_strategy",
    "vote",
]

STRATEGIES: dict[str, Callable[..., Strategy]] = {
    kind.name: kind for kind in (Greedy, SelfConsistency, BestOfN, BeamSearch, DVTS, MCTS)
}
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
    return STRATEGIES[name](**settings)
