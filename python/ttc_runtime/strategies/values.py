"""Values: what a search thinks of its branches.

A value is a function of (search, branches, sampling), a generator that yields work and returns a
number for each branch, higher for better, NaN where nothing is known.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Any

from ttc_runtime.branch import Branch
from ttc_runtime.rewards import AGGREGATIONS, aggregate
from ttc_runtime.sampling import SamplingParams
from ttc_runtime.search import Generate, Score, Search
from ttc_runtime.strategies.base import check_choice, check_count, require_reward

Valuing = Generator[Any, Any, list[float]]
Value = Callable[[Search, list[Branch], SamplingParams], Valuing]


@dataclass(frozen=True)
class RewardValue:
    """The reward model's scores of a branch's steps, made one number.

    aggregation: ``min``, ``prod``, ``mean`` or ``last``; by default the reward model's own. Raises
    ValueError for another word, and where the engine has no reward model.

    >>> RewardValue("min").aggregation
    'min'
    """

    aggregation: str | None = None

    def __post_init__(self) -> None:
        if self.aggregation is not None:
            check_choice("RewardValue", "aggregation", self.aggregation, AGGREGATIONS)

    def __call__(self, search: Search, branches: list[Branch], sampling: SamplingParams) -> Valuing:
        require_reward("RewardValue", search)
        yield Score(branches)
        how = self.aggregation or search.aggregation
        return note(branches, [aggregate(b.step_scores, how) for b in branches])


@dataclass(frozen=True)
class Confidence:
    """The policy's own confidence: the geometric mean probability of a branch's tokens.

    Needs no reward model; meaningless at temperature 0, where every draw is certain.

    >>> Confidence() == Confidence()
    True
    """

    def __call__(self, search: Search, branches: list[Branch], sampling: SamplingParams) -> Valuing:
        yield from ()
        means = [math.fsum(b.logprobs) / max(1, len(b.logprobs)) for b in branches]
        return note(branches, [math.exp(mean) for mean in means])


@dataclass(frozen=True)
class Rating:
    """A policy's own rating of each branch's last step, a digit from 0 to 9, as a number to 1.

    prompt: what is appended to a fork of the branch, after which the likeliest token must be the
    digit; NaN where it is not. policy: as for `Generate`. Pan et al., "SpecReason", 2025.
    Raises ValueError for an empty prompt.

    >>> Rating(policy="large").policy
    'large'
    """

    prompt: str = (
        "\n\nEvaluate the last step above: is it correct, and does it bring the solution forward? "
        "Rate it from 0 to 9.\nRating: "
    )
    policy: str = ""

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("Rating: prompt must be a non-empty text")

    def __call__(self, search: Search, branches: list[Branch], sampling: SamplingParams) -> Valuing:
        probes = [branch.fork(1)[0] for branch in branches]
        for probe in probes:
            probe.extend(self.prompt)
        longest = max((len(probe.tokens) for probe in probes), default=0) + 1
        greedy = SamplingParams(temperature=0.0, max_tokens=longest)
        yield Generate(probes, greedy, new_tokens=1, policy=self.policy)
        ratings = []
        for probe in probes:
            said = search.policy.decode(probe.tokens[-1:]).strip()
            ratings.append(int(said) / 9 if re.fullmatch("[0-9]", said) else math.nan)
            probe.free("probe")
        return note(branches, ratings)


@dataclass(frozen=True)
class Lookahead:
    """The value of where greedy decoding leads in `steps` more steps, which are thrown away.

    value: of what is reached. Snell et al., "Scaling LLM Test-Time Compute Optimally", 2024.
    Raises ValueError for steps below 1.

    >>> Lookahead(2).steps
    2
    """

    steps: int = 1
    value: Value = RewardValue()

    def __post_init__(self) -> None:
        check_count("Lookahead", "steps", self.steps)

    def __call__(self, search: Search, branches: list[Branch], sampling: SamplingParams) -> Valuing:
        ahead = {b: b.fork(1)[0] for b in branches if not b.finished}
        greedy = replace(sampling, temperature=0.0)
        for _ in range(self.steps):
            growing = [b for b in ahead.values() if not b.finished]
            if growing:
                yield Generate(growing, greedy, until_step=True)
        values = yield from self.value(search, [ahead.get(b, b) for b in branches], sampling)
        for branch in ahead.values():
            branch.free("lookahead")
        return note(branches, values)


@dataclass(frozen=True)
class Rollouts:
    """The mean value of `n` completions sampled from each branch.

    value: of a completion. The completions stay in the tree as finished children, so a search may
    take them as candidates. A branch that is finished is its own completion. Raises ValueError for
    n below 1.

    >>> Rollouts(4).n
    4
    """

    n: int = 1
    value: Value = RewardValue()

    def __post_init__(self) -> None:
        check_count("Rollouts", "n", self.n)

    def __call__(self, search: Search, branches: list[Branch], sampling: SamplingParams) -> Valuing:
        ends = [[b] if b.finished else b.fork(self.n) for b in branches]
        every = [end for some in ends for end in some]
        yield Generate(every, sampling)
        found = yield from self.value(search, every, sampling)
        value = dict(zip(every, found, strict=True))
        for branch, some in zip(branches, ends, strict=True):
            for end in some:
                if end is not branch:
                    end.free("rollout")
        return note(branches, [_mean([value[end] for end in some]) for some in ends])


def note(branches: list[Branch], values: list[float]) -> list[float]:
    """Write values on their branches, where records and eviction look for them; returns them."""
    for branch, value in zip(branches, values, strict=True):
        branch.value = value if value == value else None
    return values


def _mean(values: list[float]) -> float:
    known = [v for v in values if v == v]
    return sum(known) / len(known) if known else math.nan
