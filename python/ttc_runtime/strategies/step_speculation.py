"""Step-level speculation: a small model writes steps, a large one rewrites the weak ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from ttc_runtime.sampling import SamplingParams
from ttc_runtime.search import Generate, Score, Search
from ttc_runtime.strategies.base import (
    SELECTS,
    Outcome,
    Work,
    check_choice,
    check_count,
    check_number,
)
from ttc_runtime.strategies.values import Rating, RewardValue, Value

JUDGES: Mapping[str, Value] = MappingProxyType({"reward": RewardValue("last"), "rating": Rating()})
"""Judges of a step by name: the reward model's score of it, or the large model's own rating."""


@dataclass(frozen=True)
class StepSpeculation:
    """A small model writes each step; where the judge values it too low, the large one writes it.

    Biased: unlike verified draft tokens, accepted steps are the small model's, and the text does
    not follow the large model's distribution.

    n: chains. judge: of a step, ``reward``, ``rating`` or a value of your own. threshold: least
    value of a step that stays. draft: the small model, one of the engine's policies by name, by
    default its only further one; the large one is the engine's first. max_steps: after so many the
    large model completes the chain alone. step_tokens: longest step. select: how chains vote; with
    ``weighted`` or ``naive`` they are scored. sampling: how both draw tokens. In the budget's
    samples a first step that is written twice counts twice.

    With ``reward`` the reward-guided method of Liao et al., "Reward-Guided Speculative Decoding",
    2025, its weight a step function at the threshold, 0.7 as there; with ``rating`` the self-scored
    one of Pan et al., "SpecReason", 2025, which keeps ratings of 7 to 9. Raises ValueError for
    other settings, and at its start where the engine lacks the policy or the reward model.

    >>> StepSpeculation(judge="rating", draft="small").threshold
    0.7
    """

    n: int = 1
    judge: str | Value = "reward"
    threshold: float = 0.7
    draft: str | None = None
    max_steps: int = 100
    step_tokens: int | None = None
    select: str = "majority"
    sampling: SamplingParams = SamplingParams()
    name: ClassVar[str] = "step_speculation"

    def __post_init__(self) -> None:
        for setting in ("n", "max_steps"):
            check_count("StepSpeculation", setting, getattr(self, setting))
        if isinstance(self.judge, str):
            check_choice("StepSpeculation", "judge", self.judge, tuple(JUDGES))
        check_number("StepSpeculation", "threshold", self.threshold, 0, 1)
        check_choice("StepSpeculation", "select", self.select, SELECTS)

    def run(self, search: Search) -> Work:
        names = [self.draft] if self.draft is not None else [*search.policy.peers]
        if len(names) != 1 or names[0] not in search.policy.peers:
            raise ValueError(
                f"StepSpeculation: draft must name one of the engine's further policies, which are "
                f"{[*search.policy.peers]}, got {self.draft!r}"
            )
        judge = JUDGES[self.judge] if isinstance(self.judge, str) else self.judge
        chains, counts = search.root.fork(self.n), Counter[str]()
        for _ in range(self.max_steps):
            growing = [i for i, chain in enumerate(chains) if not chain.finished]
            if not growing:
                break
            drafted = [chains[i].fork(1)[0] for i in growing]
            yield Generate(drafted, self.sampling, True, self.step_tokens, policy=names[0])
            values = yield from judge(search, drafted, self.sampling)
            steps = dict(zip(growing, drafted, strict=True))
            refused = [i for i, v in zip(growing, values, strict=True) if not v >= self.threshold]
            written = {i: chains[i].fork(1)[0] for i in refused}
            yield Generate([*written.values()], self.sampling, True, self.step_tokens)
            counts.update(steps=len(steps), accepted=len(steps) - len(written))
            counts.update(draft_tokens=_own(steps.values()), target_tokens=_own(written.values()))
            for i, branch in written.items():
                if _own([branch]):  # else the budget had nothing left for it
                    steps[i].free("rejected")
                    steps[i] = branch
            for i, branch in steps.items():
                chains[i].free()
                chains[i] = branch
        yield Generate(chains, self.sampling)
        if self.select != "majority":
            yield Score(chains)
        return Outcome(chains, self.select, dict(counts))


def _own(branches) -> int:
    """Tokens that branches did not get from the ones they were forked from."""
    return sum(len(b.sequence.tokens) - b.sequence.fork_len for b in branches)
