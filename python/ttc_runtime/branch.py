"""Branches: the handles that strategies fork, extend, score and free."""

from __future__ import annotations

import hashlib
import sys
from bisect import bisect
from typing import TYPE_CHECKING

from ttc_runtime.sequence import Sequence

if TYPE_CHECKING:
    from ttc_runtime.search import Search

FINISHED = frozenset({"eos", "stop", "length", "context", "budget", "unscorable"})
"""Stop reasons after which a branch grows no further; the others are None, ``step``, ``pause``."""


Place = tuple[tuple[int, ...], int]
"""Of a branch among its siblings: the strand that forked it (`Account.place`), and its number among
the children that this strand forked there."""


def branch_seed(seed: int, problem: str, path: tuple[int | str, ...]) -> int:
    """Random seed of a branch: of the run, the problem's text and the path from the root alone.

    path: of each branch on the way its number, with the strand's place before it where the strategy
    itself did not fork it.

    >>> branch_seed(0, "1+1=", (3,)) == branch_seed(0, "1+1=", (3,))
    True
    """
    text = f"{seed}/{'.'.join(map(str, path))}/{problem}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


class Branch:
    """One path of a search tree.

    parent: the branch it was forked from, None for the root, which holds the prompt. places: of
    each branch on the way from the root its place among its siblings, in whose order `children`
    are: neither depends on which of several strands is faster. seed: its own random seed, told by
    these places. prompt_tokens: tokens of its prompt.
    stop_reason: None while it can grow, ``step`` at the end of a step, ``pause`` where `Generate`
    was told to stop, or ``eos``, ``stop`` (a stop string), ``length`` (max_tokens), ``context``
    (the model's longest input), ``budget``, ``unscorable`` (a step that the reward model cannot
    read: score_error says why, else it is None). steps: texts of its closed steps. step_scores: the
    reward model's score of each scored step. logprobs: of each generated token under the
    distribution it was drawn from.

    A strategy may note what its tree page is to show: visits: simulations that went through this
    branch. value: what the search thinks of it, higher is better; under memory pressure low values
    give way first (None: its last step's score counts). end_reason: why the search gave it up, such
    as ``pruned``; None where `stop_reason` says all.
    """

    __slots__ = (
        "children",
        "end_reason",
        "freed",
        "logprobs",
        "parent",
        "places",
        "prompt_tokens",
        "reward",
        "score_error",
        "search",
        "seed",
        "sequences",
        "step_scores",
        "step_starts",
        "steps",
        "stop_reason",
        "value",
        "visits",
    )

    def __init__(
        self,
        search: Search,
        tokens: list[int],
        parent: Branch | None = None,
        places: tuple[Place, ...] = (),
    ) -> None:
        """A child's `tokens` are some of the parent's from the first; the rest is left behind."""
        self.search, self.parent, self.places = search, parent, places
        self.prompt_tokens: int = parent.prompt_tokens if parent else len(tokens)
        path = (n if not at else f"{'.'.join(map(str, at))}:{n}" for at, n in places)
        self.seed = branch_seed(search.seed, search.problem, tuple(path))
        above = None if parent is None else parent.sequence
        self.sequences = {"": Sequence(tokens, search.policy_ledger, above, self)}
        self.stop_reason: str | None = None
        self.end_reason: str | None = None
        self.value: float | None = None
        self.visits = 0
        self.freed = False
        self.children: list[Branch] = []
        self.reward: Sequence | None = None
        self.score_error: str | None = None
        self.step_starts = [len(tokens)]
        self.steps: list[str] = []
        self.step_scores: list[float] = []
        self.logprobs: list[float] = []
        if parent is not None:
            self.step_starts = [start for start in parent.step_starts if start <= len(tokens)]
            self.steps = parent.steps[: len(self.step_starts) - 1]
            self.step_scores = parent.step_scores[: len(self.steps)]
            self.logprobs = parent.logprobs[: len(tokens) - self.prompt_tokens]

    @property
    def sequence(self) -> Sequence:
        """The tokens, prompt first, and what the engine's first policy has cached of them."""
        return self.sequences[""]

    def on(self, policy: str) -> Sequence:
        """The same tokens, and what another policy has cached of them."""
        if policy not in self.sequences:
            first, parent = self.sequence, self.parent
            above = parent.on(policy) if parent is not None and first.parent is not None else None
            other = Sequence(first.tokens, self.search.ledger(policy), above, self)
            other.fork_len = other.ran = first.fork_len
            self.sequences[policy] = other
        return self.sequences[policy]

    @property
    def path(self) -> tuple[int, ...]:
        """Child numbers from the root, as `children` are ordered."""
        if self.parent is None:
            return ()
        return (*self.parent.path, self.parent.children.index(self))

    @property
    def tokens(self) -> list[int]:
        """Generated token ids, the prompt's left out."""
        return self.sequence.tokens[self.prompt_tokens :]

    @property
    def text(self) -> str:
        """Generated text, without special tokens."""
        return self.search.policy.decode(self.tokens)

    @property
    def rank(self) -> float:
        """What pages are given up by: the value, else the last known step score, else 0."""
        if self.value is not None:
            return self.value
        return next((score for score in reversed(self.step_scores) if score == score), 0.0)

    @property
    def finished(self) -> bool:
        return self.stop_reason in FINISHED

    def fork(self, n: int, at: int | None = None) -> list[Branch]:
        """`n` children that continue this branch's text, each with a seed of its own.

        Shares all KV; a token of the parent that is still to be run is run once for all of them.
        at: generated tokens they keep, all by default. Raises ValueError for other numbers.
        """
        self._check_usable("fork")
        if not isinstance(n, int) or n < 1:
            raise ValueError(f"Branch.fork: n must be an integer >= 1, got {n!r}")
        generated = len(self.sequence.tokens) - self.prompt_tokens
        if at is not None and not 0 <= at <= generated:
            raise ValueError(f"Branch.fork: at must be 0 to {generated} tokens, got {at!r}")
        end = len(self.sequence.tokens) if at is None else self.prompt_tokens + at
        return [self._child(self.sequence.tokens[:end]) for _ in range(n)]

    def ask(self, prompt: str) -> Branch:
        """A child that answers a prompt of its own, and sees nothing of this branch's text.

        prompt: text, put through the chat template where there is one; its tokens count as prompt
        in `Usage`. Its steps are scored as steps of the problem. Raises ValueError for a prompt
        without tokens or too long for the policy.
        """
        self._check_usable("ask")
        tokens = self.search.policy.encode_prompt(prompt)
        longest = self.search.policy.lane.model.max_positions
        if not 0 < len(tokens) < longest:
            raise ValueError(
                f"Branch.ask: the prompt must have 1 to {longest - 1} tokens, got {len(tokens)}"
            )
        child = self._child([])
        child.sequences = {"": Sequence(tokens, self.search.policy_ledger, owner=child)}
        child.prompt_tokens, child.step_starts = len(tokens), [len(tokens)]
        child.steps, child.step_scores, child.logprobs = [], [], []
        self.search.usage.prompt += len(tokens)
        return child

    def _child(self, tokens: list[int]) -> Branch:
        strand = self.search.account.place
        end = bisect(self.children, (strand, sys.maxsize), key=lambda branch: branch.places[-1])
        place, number = self.children[end - 1].places[-1] if end else (strand, -1)
        number = number + 1 if place == strand else 0
        child = Branch(self.search, tokens, self, (*self.places, (strand, number)))
        self.children.insert(end, child)
        return child

    def extend(self, text: str) -> None:
        """Append given text, as if it had been generated; it reopens a finished branch, without
        text too.

        The text counts as prompt in `Usage`.
        """
        self._check_usable("extend")
        self.stop_reason = None
        tokens = self.search.policy.encode(text)
        if tokens:
            self.sequence.tokens += tokens
            self.logprobs += [0.0] * len(tokens)
            for sequence in self.sequences.values():
                sequence.logits = None
            self.search.usage.prompt += len(tokens)

    def free(self, reason: str | None = None) -> None:
        """Give up the pages. The text and scores stay readable; children are not affected.

        reason: why, for `end_reason`.
        """
        self._check_usable("free")
        self.end_reason = reason or self.end_reason
        self.search.release(self)
        self.freed = True

    def close_step(self, *, at_end: bool = False) -> bool:
        """Close the step that the tokens since the last one hold, if it is complete.

        at_end: whatever text is left is a step, since no more will come.
        """
        start = self.step_starts[-1]
        text = self.search.policy.decode(self.sequence.tokens[start:])
        body = text.lstrip()
        if not body or not (at_end or self.search.separator in body):
            return False
        self.steps.append(text)
        self.step_starts.append(len(self.sequence.tokens))
        return True

    def _check_usable(self, operation: str) -> None:
        if self.freed:
            raise ValueError(f"Branch.{operation}: branch {self.path} was freed")
        if self.search.is_running(self):
            raise ValueError(f"Branch.{operation}: branch {self.path} is being generated or scored")

    def __repr__(self) -> str:
        return (
            f"Branch(path={self.path}, tokens={len(self.tokens)}, steps={len(self.steps)}, "
            f"stop_reason={self.stop_reason!r})"
        )
