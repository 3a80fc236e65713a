"""Diverse verifier tree search: independent subtrees, one survivor in each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ttc_runtime.sampling import SamplingParams
from ttc_runtime.search import Search, Together
from ttc_runtime.strategies.base import SELECTS, Outcome, Work, check_choice, check_count
from ttc_runtime.strategies.beam import check_beams
from ttc_runtime.strategies.selection import Best
from ttc_runtime.strategies.steps import step_search
from ttc_runtime.strategies.values import Lookahead, RewardValue, Value


@dataclass(frozen=True)
class DVTS:
    """`n / width` subtrees that share only the prompt; in each, the best of `width` steps goes on.

    n: completions in all. width: steps sampled at a time in a subtree, must divide n. lookahead,
    max_steps, step_tokens, value, select, sampling: as for `BeamSearch`. Subtrees run beside each
    other and do not wait for one another. The last steps of a subtree all count as candidates,
    finished ones only. Beeching, Tunstall, Rush, "Scaling test-time compute with open models",
    2024. Raises ValueError for other settings.

    >>> DVTS(16, 4).n
    16
    """

    n: int = 16
    width: int = 4
    lookahead: int = 0
    max_steps: int = 40
    step_tokens: int | None = None
    value: Value = RewardValue()
    select: str = "weighted"
    sampling: SamplingParams = SamplingParams()
    name: ClassVar[str] = "dvts"

    def __post_init__(self) -> None:
        check_beams("DVTS", self.n, self.width)
        check_count("DVTS", "lookahead", self.lookahead, 0)
        check_count("DVTS", "max_steps", self.max_steps)
        check_choice("DVTS", "select", self.select, SELECTS)

    def run(self, search: Search) -> Work:
        value = Lookahead(self.lookahead, self.value) if self.lookahead else self.value
        subtrees = [
            step_search(
                search,
                self.width,
                self.sampling,
                value,
                Best(self.width),
                max_steps=self.max_steps,
                step_tokens=self.step_tokens,
            )
            for _ in range(self.n // self.width)
        ]
        found = yield Together(subtrees)
        return Outcome([branch for subtree in found for branch in subtree], self.select)
