"""Self-consistency: sample N completions and let their answers vote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ttc_runtime.sampling import SamplingParams
from ttc_runtime.search import Generate, Search
from ttc_runtime.strategies.base import Outcome, Work, check_count


@dataclass(frozen=True)
class SelfConsistency:
    """`n` completions sampled from the prompt; the most frequent answer wins.

    n: completions. sampling: how tokens are drawn. Needs no reward model. Wang et al.,
    "Self-Consistency Improves Chain of Thought Reasoning in Language Models", 2023, who sample 40.
    Raises ValueError for n below 1.

    >>> SelfConsistency(8).n
    8
    """

    n: int = 16
    sampling: SamplingParams = SamplingParams()
    name: ClassVar[str] = "self_consistency"

    def __post_init__(self) -> None:
        check_count("SelfConsistency", "n", self.n)

    def run(self, search: Search) -> Work:
        branches = yield Generate(search.root.fork(self.n), self.sampling)
        return Outcome(branches, "majority")
