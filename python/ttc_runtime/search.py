"""One problem's search tree, and the work a strategy can ask for."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ttc_runtime.answers import extract_answer, stated_answer
from ttc_runtime.branch import Branch
from ttc_runtime.budget import Account, Budget, Usage
from ttc_runtime.sampling import SamplingParams
from ttc_runtime.sequence import Ledger, Sequence

if TYPE_CHECKING:
    from ttc_runtime.generation import Policy
    from ttc_runtime.scoring import Scorer


@dataclass(frozen=True)
class Generate:
    """Work: grow branches until each is finished, or with `until_step` until its step closes.

    Yielding it from a strategy gives back the branches. Those already finished are left alone.
    new_tokens: at most so many each; a branch that they end is closed as a step with `until_step`,
    and stops with ``pause`` otherwise. bias: function of a branch that gives token ids and what to
    add to their logits before the next token is drawn, or None. score: score each branch's closed
    steps as soon as it stops, while the others go on; the work ends when all are scored. policy:
    name of another of the engine's policies, instead of its first.
    """

    branches: list[Branch]
    sampling: SamplingParams
    until_step: bool = False
    new_tokens: int | None = None
    bias: Callable[[Branch], tuple[list[int], float] | None] | None = None
    score: bool = False
    policy: str = ""

    def __post_init__(self) -> None:
        if self.new_tokens is not None and self.new_tokens < 1:
            raise ValueError(f"Generate: new_tokens must be >= 1 or None, got {self.new_tokens!r}")


@dataclass(frozen=True)
class Score:
    """Work: score the closed steps of branches, of which only new ones are run.

    Yielding it gives back each branch's ``step_scores``. A score is NaN where the budget or the
    reward model's context ended first; ``branch.score_error`` says why.
    """

    branches: list[Branch]


@dataclass(frozen=True)
class Together:
    """Work: run generators beside each other, none waiting for another's branches.

    Each yields work as a strategy does. Yielding it gives back what each returned, in order.
    """

    generators: Collection[Generator[Any, Any, Any]]


class Call:
    """Work: run a Python function beside the search, such as a tool; yielding it gives it back.

    function, arguments: what to call. seconds: how long to wait; the problem's own limit ends the
    wait earlier. value: what the function returned. error: why there is none: what was raised, or
    that nothing came in time; a function that never returns keeps its thread, which does not keep
    the process alive.
    """

    def __init__(self, function: Callable, *arguments, seconds: float) -> None:
        if not seconds > 0:
            raise ValueError(f"Call: seconds must be positive, got {seconds!r}")
        self.function, self.arguments, self.seconds = function, arguments, seconds
        self.value: Any = None
        self.error: str | None = None
        self._result: tuple[Any, str | None] | None = None
        self._deadline, self._ended = 0.0, False

    def start(self, at_most: float) -> None:
        self.seconds = min(self.seconds, max(0.0, at_most))
        self._deadline = time.monotonic() + self.seconds
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            self._result = self.function(*self.arguments), None
        except BaseException as error:  # whatever a user's function may raise is its result
            self._result = None, f"{type(error).__name__}: {error}"

    def poll(self) -> bool:
        """Whether the result is there or the time is over; `value` and `error` are set then."""
        if not self._ended:
            if self._result is not None:
                (self.value, self.error), self._ended = self._result, True
            elif time.monotonic() >= self._deadline:
                self.error, self._ended = f"no answer within {self.seconds:g} s", True
        return self._ended


class Search:
    """What a strategy sees of one problem.

    problem: its text. root: the branch that holds the prompt. scored: whether there is a reward
    model. usage, budget: spent so far and at most. account: what the strand whose code is running
    may still spend. extract: function that gives the answer of a
    solution's text, or None. Raises ValueError for a prompt that leaves no
    room to generate.
    """

    def __init__(
        self,
        problem: str,
        policy: Policy,
        scorer: Scorer | None,
        budget: Budget,
        seed: int,
        extract: Callable[[str], str | None] = extract_answer,
    ) -> None:
        self.problem, self.policy, self.scorer = problem, policy, scorer
        self.budget, self.seed, self.separator = budget, seed, policy.separator
        self.usage, self.extract = Usage(), extract
        self.policy_ledger, self.reward_ledger = Ledger(), Ledger()
        self.ledgers = {"": self.policy_ledger}  # by policy
        self.sample_seconds = self.draft_seconds = self.draft_flops = 0.0
        self.running: set[Branch] = set()
        self.paused = False
        self.held = 0  # growing branches that wait for memory
        self.failure: str | None = None  # why this problem cannot go on
        scored = budget.scored_tokens
        if scored is not None and scorer is not None:
            scored = max(0, scored - scorer.prompt_length(problem))
        self.account = Account(budget.tokens, budget.samples, scored)
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
    def aggregation(self) -> str:
        """How step scores become one score, as the reward model's format has it."""
        return self.scorer.reward.spec.aggregation if self.scorer is not None else "last"

    def states_answer(self, text: str) -> bool:
        """Whether a text declares an answer; a last number, which is but a guess, does not."""
        states = stated_answer if self.extract is extract_answer else self.extract
        return states(text) is not None

    @property
    def out_of_budget(self) -> bool:
        """Whether no more tokens may be generated."""
        return self.account.exhausted or self.remaining_seconds <= 0

    @property
    def budget_hit(self) -> bool:
        """Whether some limit cut work short."""
        return self.account.hit

    @property
    def remaining_seconds(self) -> float:
        if self.budget.seconds is None:
            return float("inf")
        return self.budget.seconds - (time.monotonic() - self.started)

    def ledger(self, policy: str) -> Ledger:
        """What the problem did on one of the policies."""
        return self.ledgers.setdefault(policy, Ledger())

    def is_running(self, branch: Branch) -> bool:
        return branch in self.running

    def release(self, branch: Branch) -> None:
        """Give up the pages of one branch, on both models, save those that children still await."""
        for name, sequence in branch.sequences.items():
            if not _awaited(branch, functools.partial(_sequence_on, name)):
                self._policy(name).lane.release(sequence)
        if self.scorer is None or branch.reward is None:
            return
        if not _awaited(branch, lambda b: b.reward):
            self.scorer.lane.release(branch.reward)

    def _policy(self, name: str) -> Policy:
        return self.policy.peers[name] if name else self.policy

    def close(self) -> Usage:
        """Give up all pages and return the final usage."""
        reward, usage = self.reward_ledger, self.usage
        for name, ledger in self.ledgers.items():
            lane = self._policy(name).lane
            lane.release_all(list(ledger.attached.values()))
            usage.run += ledger.needed
            usage.peak_kv_tokens += ledger.peak
            usage.flops += 2 * lane.model.num_weights * ledger.needed
            for phase, seconds in ledger.seconds.items():
                usage.seconds[phase] = usage.seconds.get(phase, 0.0) + seconds
        for ledger in (*self.ledgers.values(), reward):
            usage.reused += ledger.reused
            usage.recomputed += ledger.recomputed
        usage.prompt += self.prompt_tokens
        usage.scored = reward.needed
        usage.peak_reward_kv_tokens = reward.peak
        if self.scorer is not None:
            self.scorer.lane.release_all(list(reward.attached.values()))
            usage.reward_flops = 2 * self.scorer.lane.model.num_weights * reward.needed
            usage.flops += usage.reward_flops
        usage.flops += round(self.draft_flops)
        usage.seconds |= {
            "draft": self.draft_seconds,
            "sample": self.sample_seconds,
            "score": sum(reward.seconds.values()),
            "total": time.monotonic() - self.started,
        }
        return usage


def _sequence_on(policy: str, branch: Branch) -> Sequence | None:
    return branch.sequences.get(policy)


def _awaited(branch: Branch, sequence_of: Callable[[Branch], Sequence | None]) -> bool:
    """Whether a branch forked from this one has yet to take over its pages."""
    for child in branch.children:
        sequence = sequence_of(child)
        attached = sequence is not None and sequence.kv is not None
        if not attached and (not child.freed or _awaited(child, sequence_of)):
            return True
    return False
