"""Particle filtering: branches resampled by their rewards after each step."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from ttc_runtime.branch import Branch
from ttc_runtime.sampling import SamplingParams
from ttc_runtime.search import Generate, Search
from ttc_runtime.strategies.base import SELECTS, Outcome, Work, check_choice, check_count
from ttc_runtime.strategies.selection import seeded, spawn
from ttc_runtime.strategies.steps import grow_steps
from ttc_runtime.strategies.values import RewardValue, Value

_EDGE = 1e-7


@dataclass(frozen=True)
class ParticleFilter:
    """`n` particles; after each step as many are drawn anew, with odds given by the reward model.

    A particle of value r has the weight ``r / (1 - r)``, its r kept within 1e-7 of 0 and 1. Those
    drawn several times are forked, those not drawn are dropped; finished ones take part too. n:
    particles. max_steps, step_tokens, value, select, sampling: as for `BeamSearch`. Puri et al.,
    "A Probabilistic Inference Approach to Inference-Time Scaling of LLMs using Particle-Based Monte
    Carlo Methods", 2025. Raises ValueError for other settings.

    >>> ParticleFilter(8).select
    'naive'
    """

    n: int = 16
    max_steps: int = 40
    step_tokens: int | None = None
    value: Value = RewardValue()
    select: str = "naive"
    sampling: SamplingParams = SamplingParams()
    name: ClassVar[str] = "particle"

    def __post_init__(self) -> None:
        check_count("ParticleFilter", "n", self.n)
        check_count("ParticleFilter", "max_steps", self.max_steps)
        check_choice("ParticleFilter", "select", self.select, SELECTS)

    def run(self, search: Search) -> Work:
        rng, parents = seeded(search, "particles"), list[Branch]()
        particles = search.root.fork(self.n)  # a finished one is listed as often as it was drawn
        weight: dict[Branch, float] = {}
        for _ in range(self.max_steps):
            growing = [p for p in particles if not p.finished]
            if not growing:
                break
            yield from grow_steps(growing, self.sampling, self.step_tokens)
            values = yield from self.value(search, growing, self.sampling)
            for parent in parents:
                parent.free()
            weight |= {p: odds(v) for p, v in zip(growing, values, strict=True)}
            if all(p.finished for p in particles):
                break
            drawn = Counter(rng.choices(particles, [weight[p] for p in particles], k=self.n))
            unique = list(dict.fromkeys(particles))
            done = [p for p in unique if p.finished]
            rest = [p for p in unique if not p.finished]
            for branch in done:
                branch.end_reason = None if drawn[branch] else "resampled"
            parents = [p for p in rest if drawn[p] > 1]
            particles = [p for p in done for _ in range(drawn[p])]
            particles += spawn(rest, [drawn[p] for p in rest], "resampled")
        growing = [p for p in particles if not p.finished]
        if growing:
            yield Generate(growing, self.sampling)
            yield from self.value(search, growing, self.sampling)
        return Outcome(particles, self.select)


def odds(value: float) -> float:
    """``r / (1 - r)`` of a value, kept within 1e-7 of 0 and 1; NaN counts as 0.

    >>> round(odds(0.75), 6)
    3.0
    """
    r = min(max(value if not math.isnan(value) else 0.0, _EDGE), 1 - _EDGE)
    return r / (1 - r)
