"""Best-of-N: sample N completions, keep the one the reward model likes most."""

from __future__ import annotations

from ttc_runtime.sampling import SamplingParams
from ttc_runtime.search import Generate, Score, Search
from ttc_runtime.strategies.base import Outcome, Work, check_count


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

    name = "best_of_n"

    def __init__(
        self, n: int, select: str = "naive", sampling: SamplingParams | None = None
    ) -> None:
        if select not in ("naive", "weighted"):
            raise ValueError(f"BestOfN: select must be 'naive' or 'weighted', got {select!r}")
        self.n, self.select = check_count("BestOfN", "n", n), select
        self.sampling = sampling or SamplingParams()

    def run(self, search: Search) -> Work:
        if not search.scored:
            raise ValueError("BestOfN: the engine was made without a reward model")
        branches = yield Generate(search.root.fork(self.n), self.sampling)
        yield Score(branches)
        return Outcome(branches, self.select)
