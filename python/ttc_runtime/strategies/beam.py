"""Step beam search: keep the best beams after each step and branch them again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ttc_runtime.sampling import SamplingParams
from ttc_runtime.search import Search
from ttc_runtime.strategies.base import SELECTS, Outcome, Work, check_choice, check_count
from ttc_runtime.strategies.selection import Best
from ttc_runtime.strategies.steps import step_search
from ttc_runtime.strategies.values import Lookahead, RewardValue, Value


@dataclass(frozen=True)
class BeamSearch:
    """`n` beams; after each step the best `n / width` go on with `width` children each.

    n: beams. width: children of a beam, must divide n. lookahead: greedy steps past the new one
    before it is scored. max_steps: rounds of selection. step_tokens: longest step. value: of a
    beam, by default the reward model's. select: how the answer is chosen in the end. sampling: how
    tokens are drawn. A finished beam keeps its place. Snell et al., "Scaling LLM Test-Time Compute
    Optimally can be More Effective than Scaling Model Parameters", 2024; width 4, 40 rounds and no
    lookahead as in Hugging Face's search-and-learn, whose n is 4. Raises ValueError for other
    settings.

    >>> BeamSearch(16, 4).width
    4
    """

    n: int = 16
    width: int = 4
    lookahead: int = 0
    max_steps: int = 40
    step_tokens: int | None = None
    value: Value = RewardValue()
    select: str = "weighted"
    sampling: SamplingParams = SamplingParams()
    name: ClassVar[str] = "beam"

    def __post_init__(self) -> None:
        check_beams("BeamSearch", self.n, self.width)
        check_count("BeamSearch", "lookahead", self.lookahead, 0)
        check_count("BeamSearch", "max_steps", self.max_steps)
        check_choice("BeamSearch", "select", self.select, SELECTS)

    def run(self, search: Search) -> Work:
        value = Lookahead(self.lookahead, self.value) if self.lookahead else self.value
        beams = yield from step_search(
            search,
            self.n,
            self.sampling,
            value,
            Best(self.width),
            max_steps=self.max_steps,
            step_tokens=self.step_tokens,
        )
        return Outcome(beams, self.select)


def check_beams(strategy: str, n: int, width: int) -> None:
    """Raises ValueError unless `n` is a multiple of `width`, both at least 1."""
    check_count(strategy, "n", n)
    check_count(strategy, "width", width)
    if n % width:
        raise ValueError(f"{strategy}: width must divide n = {n}, got {width}")
