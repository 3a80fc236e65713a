"""Best-of-N: sample N completions, keep the one the reward model likes most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ttc_runtime.sampling import SamplingParams
from ttc_runtime.search import Generate, Score, Search
from ttc_runtime.strategies.base import Outcome, Work, check_choice, check_count, require_reward


@dataclass(frozen=True)
class BestOfN:
    """`n` completions sampled from the prompt, scored by the reward model.

    n: completions. select: ``naive``, the answer of the best-scored completion, or ``weighted``,
    the answer whose completions have the largest sum of scores. sampling: how tokens are drawn.
    Cobbe et al., "Training Verifiers to Solve Math Word Problems", 2021; the weighted form is Li et
    al., "Making Language Models Better Reasoners with Step-Aware Verifier", 2023. Raises ValueError
    for other settings, and at its start where the engine has no reward model.

    >>> BestOfN(16).n
    16
    """

    n: int = 16
    select: str = "naive"
    sampling: SamplingParams = SamplingParams()
    name: ClassVar[str] = "best_of_n"

    def __post_init__(self) -> None:
        check_count("BestOfN", "n", self.n)
        check_choice("BestOfN", "select", self.select, ("naive", "weighted"))

    def run(self, search: Search) -> Work:
        require_reward("BestOfN", search)
        branches = yield Generate(search.root.fork(self.n), self.sampling)
        yield Score(branches)
        return Outcome(branches, self.select)
