"""REBASE: reward-balanced search, children in proportion to the softmax of the rewards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ttc_runtime.sampling import SamplingParams
from ttc_runtime.search import Search
from ttc_runtime.strategies.base import SELECTS, Outcome, Work, check_choice, check_count
from ttc_runtime.strategies.selection import Softmax
from ttc_runtime.strategies.steps import step_search
from ttc_runtime.strategies.values import RewardValue, Value


@dataclass(frozen=True)
class Rebase:
    """`n` branches; after each step the places left are shared out by the softmax of the values.

    n: branches, of which a finished one keeps its place. temperature: of the softmax; small ones
    favour the best. max_steps, step_tokens, value, select, sampling: as for `BeamSearch`. Wu et
    al., "Inference Scaling Laws: An Empirical Analysis of Compute-Optimal Inference", 2024;
    temperature 0.2 as in their code. Raises ValueError for other settings.

    >>> Rebase(16).temperature
    0.2
    """

    n: int = 16
    temperature: float = 0.2
    max_steps: int = 40
    step_tokens: int | None = None
    value: Value = RewardValue()
    select: str = "weighted"
    sampling: SamplingParams = SamplingParams()
    name: ClassVar[str] = "rebase"

    def __post_init__(self) -> None:
        check_count("Rebase", "n", self.n)
        check_count("Rebase", "max_steps", self.max_steps)
        check_choice("Rebase", "select", self.select, SELECTS)
        Softmax(self.temperature)

    def run(self, search: Search) -> Work:
        branches = yield from step_search(
            search,
            self.n,
            self.sampling,
            self.value,
            Softmax(self.temperature),
            max_steps=self.max_steps,
            step_tokens=self.step_tokens,
        )
        return Outcome(branches, self.select)
