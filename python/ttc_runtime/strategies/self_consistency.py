"""Self-consistency: sample N completions and let their answers vote."""

from __future__ import annotations

from ttc_runtime.sampling import SamplingParams
from ttc_runtime.search import Generate, Search
from ttc_runtime.strategies.base import Outcome, Work, check_count


class SelfConsistency:
    """`n` completions sampled from the prompt; the most frequent answer wins.

    n: completions. sampling: how tokens are drawn. Needs no reward model. Wang et al.,
    "Self-Consistency Improves Chain of Thought Reasoning in Language Models", 2023. Raises
    ValueError for n below 1.

    >>> SelfConsistency(8).n
    8
    """

    name = "self_consistency"

    def __init__(self, n: int, sampling: SamplingParams | None = None) -> None:
        self.n = check_count("SelfConsistency", "n", n)
        self.sampling = sampling or SamplingParams()

    def run(self, search: Search) -> Work:
        branches = yield Generate(search.root.fork(self.n), self.sampling)
        return Outcome(branches, "majority")
