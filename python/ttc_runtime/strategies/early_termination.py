"""Early termination: chains whose latest step scores too low are given up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ttc_runtime.sampling import SamplingParams
from ttc_runtime.search import Search
from ttc_runtime.strategies.base import (
    SELECTS,
    Outcome,
    Work,
    check_choice,
    check_count,
    check_number,
)
from ttc_runtime.strategies.selection import AtLeast
from ttc_runtime.strategies.steps import step_search
from ttc_runtime.strategies.values import RewardValue, Value


@dataclass(frozen=True)
class EarlyTermination:
    """Best-of-N whose chains end as soon as a step's score falls below a threshold.

    n: chains. threshold: of the value after each step; the best chain always goes on. max_steps,
    step_tokens, select, sampling: as for `BeamSearch`. value: by default the score of the latest
    step. The step-wise form of rejecting by a process reward model as in Liao et al.,
    "Reward-Guided Speculative Decoding", 2025, whose threshold is 0.7; a lower one here, as nothing
    replaces a step. Raises ValueError for other settings.

    >>> EarlyTermination(16).threshold
    0.3
    """

    n: int = 16
    threshold: float = 0.3
    max_steps: int = 40
    step_tokens: int | None = None
    value: Value = RewardValue("last")
    select: str = "weighted"
    sampling: SamplingParams = SamplingParams()
    name: ClassVar[str] = "early_termination"

    def __post_init__(self) -> None:
        check_count("EarlyTermination", "n", self.n)
        check_count("EarlyTermination", "max_steps", self.max_steps)
        check_number("EarlyTermination", "threshold", self.threshold, 0, 1)
        check_choice("EarlyTermination", "select", self.select, SELECTS)

    def run(self, search: Search) -> Work:
        branches = yield from step_search(
            search,
            self.n,
            self.sampling,
            self.value,
            AtLeast(self.threshold),
            max_steps=self.max_steps,
            step_tokens=self.step_tokens,
            reason="early_stop",
        )
        return Outcome(branches, self.select)
