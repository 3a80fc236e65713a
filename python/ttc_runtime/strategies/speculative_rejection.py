"""Speculative rejection: best-of-N that gives up unpromising completions on the way."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ttc_runtime.sampling import SamplingParams
from ttc_runtime.search import Generate, Search
from ttc_runtime.strategies.base import (
    SELECTS,
    Outcome,
    Work,
    check_choice,
    check_count,
    check_number,
)
from ttc_runtime.strategies.values import RewardValue, Value


@dataclass(frozen=True)
class SpeculativeRejection:
    """`n` completions; every `segment` tokens those with the lowest values are dropped.

    n: completions at the start. alpha: share of completions, finished ones counted, to drop each
    time. segment: tokens between rejections; the original rejects when memory is full, which would
    make results depend on the machine. value: of what there is so far, by default the reward
    model's on closed steps; a completion without one is kept. select, sampling: as for `BestOfN`.
    Sun et al., "Fast Best-of-N Decoding via Speculative Rejection", 2024, alpha = 0.5 as there.
    Raises ValueError for other settings.

    >>> SpeculativeRejection(64).alpha
    0.5
    """

    n: int = 16
    alpha: float = 0.5
    segment: int = 64
    value: Value = RewardValue()
    select: str = "naive"
    sampling: SamplingParams = SamplingParams()
    name: ClassVar[str] = "speculative_rejection"

    def __post_init__(self) -> None:
        check_count("SpeculativeRejection", "n", self.n)
        check_count("SpeculativeRejection", "segment", self.segment)
        check_number("SpeculativeRejection", "alpha", self.alpha, 0, 1)
        check_choice("SpeculativeRejection", "select", self.select, SELECTS)

    def run(self, search: Search) -> Work:
        kept = search.root.fork(self.n)
        while growing := [branch for branch in kept if not branch.finished]:
            yield Generate(growing, self.sampling, new_tokens=self.segment)
            values = yield from self.value(search, kept, self.sampling)
            known = sorted(v for v in values if v == v)
            cut = known[min(math.floor(self.alpha * len(known)), len(known) - 1)] if known else 0.0
            rejected = [b for b, v in zip(kept, values, strict=True) if v < cut and not b.finished]
            for branch in rejected:
                branch.free("rejected")
            kept = [branch for branch in kept if branch.end_reason is None]
        return Outcome(kept, self.select)
