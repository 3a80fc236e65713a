"""One problem's search tree, and the work a strategy can ask for."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ttc_runtime.branch import Branch
from ttc_runtime.budget import Budget, Usage
from ttc_runtime.sampling import SamplingParams
from ttc_runtime.sequence import Ledger, Sequence

if TYPE_CHECKING:
    from ttc_runtime.generation import Policy
    from ttc_runtime.scoring import Scorer


@dataclass(frozen=True)
class Generate:
    """Work: grow branches until each is finished, or with `until_step` until its step closes.

    Yielding it from a strategy gives back the branches. Those already finished are left alone.
    """

    branches: list[Branch]
    sampling: SamplingParams
    until_step: bool = False


@dataclass(frozen=True)
class Score:
    """Work: score the closed steps of branches, of which only new ones are run.

    Yielding it gives back each branch's ``step_scores``. A score is NaN where the budget or the
    reward model's context ended first.
    """

    branches: list[Branch]


class Search:
    """What a strategy sees of one problem.

    problem: its text. root: the branch that holds the prompt. scored: whether there is a reward
    model. usage, budget: spent so far and at most. Raises ValueError for a prompt that leaves no
    room to generate.
    """

    def __init__(
        self, problem: str, policy: Policy, scorer: Scorer | None, budget: Budget, seed: int
    ) -> None:
        self.problem, self.policy, self.scorer = problem, policy, scorer
        self.budget, self.seed, self.separator = budget, seed, policy.separator
        self.usage = Usage()
        self.policy_ledger, self.reward_ledger = Ledger(), Ledger()
        self.sample_seconds = 0.0
        self.running: set[Branch] = set()
        self.paused = False
        self.held = 0  # growing branches that wait for memory
        self.failure: str | None = None  # why this problem cannot go on
        self.out_of_budget = False  # no more tokens may be generated
        self.budget_hit = False  # some limit cut work short
        self.scoring_committed = 0
        self.started = time.monotonic()
        tokens = policy.encode_prompt(problem)
        if not tokens:
            raise ValueError("problem: the prompt has no tokens")
        longest = policy.lane.model.max_positions
        if len(tokens) >= longest:
            raise ValueError(
                f"problem: the prompt has {len(tokens)} tokens, which leaves no room "
                f"in the policy's context of {longest}"
            )
        self.prompt_tokens = len(tokens)
        self.root = Branch(self, tokens)

    @property
    def scored(self) -> bool:
        return self.scorer is not None

    @property
    def remaining_seconds(self) -> float:
        if self.budget.seconds is None:
            return float("inf")
        return self.budget.seconds - (time.monotonic() - self.started)

    def is_running(self, branch: Branch) -> bool:
        return branch in self.running

    def release(self, branch: Branch) -> None:
        """Give up the pages of one branch, on both models, save those that children still await."""
        if not _awaited(branch, lambda b: b.sequence):
            self.policy.lane.release(branch.sequence)
        if self.scorer is None or branch.reward is None:
            return
        if not _awaited(branch, lambda b: b.reward):
            self.scorer.lane.release(branch.reward)

    def close(self) -> Usage:
        """Give up all pages and return the final usage."""
        self.policy.lane.release_all(list(self.policy_ledger.attached.values()))
        if self.scorer is not None:
            self.scorer.lane.release_all(list(self.reward_ledger.attached.values()))
        policy, reward, usage = self.policy_ledger, self.reward_ledger, self.usage
        usage.run, usage.scored = policy.run, reward.run
        usage.reused = policy.reused + reward.reused
        usage.recomputed = policy.recomputed + reward.recomputed
        usage.peak_kv_tokens, usage.peak_reward_kv_tokens = policy.peak, reward.peak
        usage.prompt += self.prompt_tokens - policy.reused
        usage.flops = 2 * self.policy.lane.model.num_weights * policy.run
        if self.scorer is not None:
            usage.flops += 2 * self.scorer.lane.model.num_weights * reward.run
        usage.seconds = {
            **policy.seconds,
            "sample": self.sample_seconds,
            "score": sum(reward.seconds.values()),
            "total": time.monotonic() - self.started,
        }
        return usage


def _awaited(branch: Branch, sequence_of: Callable[[Branch], Sequence | None]) -> bool:
    """Whether a branch forked from this one has yet to take over its pages."""
    for child in branch.children:
        sequence = sequence_of(child)
        attached = sequence is not None and sequence.kv is not None
        if not attached and (not child.freed or _awaited(child, sequence_of)):
            return True
    return False
