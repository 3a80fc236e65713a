"""Incremental scoring: a branch's new steps run on top of its cached prefix, read at their ends."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from ttc_runtime.branch import Branch
from ttc_runtime.budget import Account
from ttc_runtime.lane import Lane
from ttc_runtime.rewards import RewardModel
from ttc_runtime.rewards.format import Written, common_prefix
from ttc_runtime.search import Score, Search
from ttc_runtime.sequence import Ledger, Sequence

_NAN = float("nan")
_PATIENCE = 8  # steps a small batch may wait for more work to fill a row block


@dataclass(eq=False)
class _Node:
    """A problem and some of its steps, as the reward model reads them.

    Branches whose texts agree so far share it, so its tokens are run once and its score is known
    to all of them. sequence holds its tokens; ends in it are tokens up to a node. probe: what is
    appended to it on a scratch branch, and what a judge wrote there, while it is being scored.

        root ── node: step 1 ─┬─ node: step 2      one sequence as long as nothing forks
                              └─ node: step 2'     a sequence of its own, on the same pages
    """

    key: tuple[Account | None, bytes]
    text: Written
    sequence: Sequence
    score: float | None = None
    probe: Sequence | None = None
    critique: list[int] = field(default_factory=list)

    @property
    def end(self) -> int:
        return len(self.text.tokens)


@dataclass(eq=False)
class _Book:
    """What is known about one problem. nodes: by the strand that had them scored, None for the
    prompt's, and a digest of their tokens. paths: nodes of each branch, the prompt's first.
    waiting: nodes to be scored, by the sequence that holds them."""

    nodes: dict[tuple[Account | None, bytes], _Node] = field(default_factory=dict)
    paths: dict[Branch, list[_Node]] = field(default_factory=dict)
    waiting: dict[int, list[_Node]] = field(default_factory=dict)


class Scorer:
    """Scores the steps of many problems' branches in shared batches.

    reward: a reward model with its pages allocated.
    """

    def __init__(self, reward: RewardModel) -> None:
        self.reward, self.lane = reward, Lane(reward.model)
        self._jobs: list[Branch] = []
        self._books: dict[Search, _Book] = {}
        self._waited = 0

    def ledger(self, search: Search) -> Ledger:
        return search.reward_ledger

    def submit(self, work: Score) -> None:
        """Start scoring the branches' closed steps; they leave `search.running` when done."""
        for branch in work.branches:
            self.add(branch, branch.search.account)

    def add(self, branch: Branch, account: Account) -> None:
        """Start scoring one branch's closed steps, if there are new ones, for a strand."""
        search = branch.search
        self._extend(branch, account)
        if search.remaining_seconds <= 0:
            account.hit = True
        elif not self._take_scores(branch):
            self._jobs.append(branch)
            search.running.add(branch)

    def _extend(self, branch: Branch, account: Account) -> None:
        """Bring a branch's path to its closed steps.

        Steps beyond the model's context or the budget, and such as the format refuses, stay without
        a score; so do those behind them.
        """
        search = branch.search
        book = self._books.setdefault(search, _Book())
        path = book.paths.get(branch) or self._known_path(book, branch)
        fresh: list[_Node] = []
        for number in range(len(path), len(branch.steps) + 1):
            try:
                text = self.reward.format.extend(path[-1].text, branch.steps[number - 1])
                self.reward.check_length(text, number)
            except ValueError as error:
                branch.score_error = str(error)
                break
            key = account, _digest(text.tokens)
            node = book.nodes.get(key)
            if node is None:
                gap = 0 if fresh else self._gap(branch, path)
                if not self._affordable(account, path[-1], text, gap):
                    branch.score_error = "budget"
                    break
                node = _Node(key, text, path[-1].sequence)
                fresh.append(node)
            path.append(node)
        if branch.score_error not in (None, "budget") and not branch.finished:
            branch.stop_reason = "unscorable"
        book.paths[branch] = path
        branch.step_scores += [_NAN] * (len(branch.steps) - len(branch.step_scores))
        branch.reward = self._sequence(branch, path[: len(path) - len(fresh)], fresh)
        for node in fresh:
            node.sequence = branch.reward
            book.nodes[node.key] = node
            book.waiting.setdefault(id(branch.reward), []).append(node)

    def _known_path(self, book: _Book, branch: Branch) -> list[_Node]:
        """The nodes that a new branch shares with the one it was forked from."""
        if branch.parent is None:
            text = self.reward.format.prompt(branch.search.problem)
            self.reward.check_length(text, 0)
            sequence = Sequence(text.tokens, branch.search.reward_ledger, None, branch)
            root = _Node((None, _digest(text.tokens)), text, sequence)
            return [book.nodes.setdefault(root.key, root)]
        above = book.paths.get(branch.parent) or self._known_path(book, branch.parent)
        same = 0
        for mine, theirs in zip(branch.steps, branch.parent.steps, strict=False):
            if mine != theirs:
                break
            same += 1
        return above[: same + 1]

    def _sequence(self, branch: Branch, path: list[_Node], fresh: list[_Node]) -> Sequence:
        """The sequence of a branch whose known nodes are `path`, with the fresh ones in it."""
        sequence, known = branch.reward, path[-1]
        tokens = fresh[-1].text.tokens if fresh else known.text.tokens
        if sequence is not None and sequence.tokens in (tokens, tokens[: known.end]):
            sequence.tokens += tokens[len(sequence.tokens) :]
            return sequence
        held, end = self._holder(branch, path)
        # Where the tokenizer joins text to the last token, only what changed is run again.
        shared = min(end, common_prefix(known.text.tokens, tokens))
        branch.search.reward_ledger.recomputed += end - shared
        new = Sequence(tokens[:shared], branch.search.reward_ledger, held, branch)
        new.tokens += tokens[shared:]
        return new

    def _holder(self, branch: Branch, path: list[_Node]) -> tuple[Sequence, int]:
        """A sequence that has, or will have, the tokens of a path in the pool, and how many.

        The branch that was forked from is kept for its children; another one with the same text may
        have been given up by the search.
        """
        above = branch.parent.reward if branch.parent is not None else None
        if above is not None and above.tokens[: path[-1].end] == path[-1].text.tokens:
            return above, path[-1].end
        for node in reversed(path[1:]):
            # Not by what is in the pool: lack of memory must not change what the search costs.
            held = node.sequence
            if node.score is None or held.owner is None or not held.owner.freed or _holds(node):
                return held, node.end
        return path[0].sequence, path[0].end

    def _gap(self, branch: Branch, path: list[_Node]) -> int:
        """Tokens of known nodes that have to be run once more, as what held them was given up."""
        if branch.reward is not None and branch.reward.tokens == path[-1].text.tokens:
            return _missing(branch.reward, path[-1].end)
        held, end = self._holder(branch, path)
        return path[-1].end - end + _missing(held, end)

    def prompt_length(self, problem: str) -> int:
        """Tokens of a problem as the reward model reads it."""
        return len(self.reward.format.prompt(problem).tokens)

    def _affordable(self, account: Account, before: _Node, text: Written, gap: int) -> bool:
        if account.scored_tokens is None:
            return True
        tokens = gap + len(text.tokens) - common_prefix(before.text.tokens, text.tokens)
        tokens += len(self.reward.format.probe(text)[1])
        tokens += self.reward.verdict.longest if self.reward.verdict else 0
        if tokens > account.scored_tokens:
            account.hit = True
            return False
        account.scored_tokens -= tokens
        return True

    def step(self, *, idle: bool) -> bool:
        """Run one batch. Returns False if there was nothing to do.

        idle: nothing else can run, so that a batch need not wait until it fills a row block.
        Raises OutOfPages if nothing could run; calling again after pages were freed goes on.
        """
        for branch in [b for b in self._jobs if b.search.remaining_seconds <= 0]:
            branch.search.account.root.hit = True
            self._finish(branch)
        jobs = [b for b in self._jobs if not b.search.paused]
        wanted = {id(s): s for branch in jobs for s in self._next(branch)}
        small = sum(s.pending for s in wanted.values()) < self.lane.model.row_block
        if not jobs or (small and not idle and self._waited < _PATIENCE):
            self._waited += bool(jobs)
            return False
        self._waited = 0
        batch: dict[int, Sequence] = {}
        for sequence in wanted.values():
            target = self.lane.prepare(sequence, sampled=False)
            if target is not None:
                batch[id(target)] = target
        reads: list[_Node] = []
        nodes = {id(node.probe): node for branch in jobs for node in self._unscored(branch)}
        books = {id(s): self._books[s.owner.search] for s in batch.values() if s.owner is not None}

        def ends(sequence: Sequence, first: int, end: int) -> list[int]:
            probed = nodes.get(id(sequence))
            if probed is not None:
                reads.extend([probed] if end == len(sequence.tokens) else [])
                return [end - 1] if end == len(sequence.tokens) else []
            if self.reward.spec.probe is not None or id(sequence) not in books:
                return []
            waiting = books[id(sequence)].waiting.get(id(sequence), [])
            here = [n for n in waiting if n.score is None and first < n.end <= end]
            reads.extend(here)
            return [node.end - 1 for node in here]

        outputs, _ = self.lane.run([], list(batch.values()), ends)
        self._read(reads, outputs)
        for branch in jobs:
            if self._take_scores(branch):
                self._finish(branch)
        return True

    def _next(self, branch: Branch) -> list[Sequence]:
        """What has to be run next for a branch: a sequence, or scratch branches of its nodes."""
        nodes = self._unscored(branch)
        missing = [n for n in nodes if n.sequence.kv is None or n.sequence.length < n.end]
        if self.reward.spec.probe is None or missing:
            return [(missing or nodes)[0].sequence]
        for node in nodes:
            if node.probe is None:
                held, (keep, probe) = node.sequence, self.reward.format.probe(node.text)
                node.probe = Sequence(node.text.tokens[:keep], held.ledger, held, held.owner)
                node.probe.tokens += probe
        return [node.probe for node in nodes if node.probe is not None]

    def _read(self, nodes: list[_Node], outputs: Tensor) -> None:
        """Take the scores of nodes from the model's outputs, one row each."""
        verdict = self.reward.verdict
        if verdict is None:
            for node, score in zip(nodes, self.reward.probabilities(outputs), strict=True):
                self._settle(node, score)
            return
        for node, logits in zip(nodes, outputs, strict=True):
            found = verdict.advance(node.critique, logits)
            if isinstance(found, float):
                self._settle(node, found)
            elif node.probe is not None:
                node.critique += found
                node.probe.tokens += found

    def _settle(self, node: _Node, score: float) -> None:
        node.score = score
        if node.probe is not None:
            self.lane.release(node.probe)
            node.probe = None

    def _unscored(self, branch: Branch) -> list[_Node]:
        path = self._books[branch.search].paths[branch]
        return [node for node in path[1:] if node.score is None]

    def _take_scores(self, branch: Branch) -> bool:
        """Copy to a branch the scores its nodes have. True if none is missing."""
        path = self._books[branch.search].paths[branch]
        scores = [_NAN if node.score is None else node.score for node in path[1:]]
        branch.step_scores[: len(scores)] = scores
        return all(node.score is not None for node in path[1:])

    def _finish(self, branch: Branch) -> None:
        self._jobs.remove(branch)
        branch.search.running.discard(branch)
        reward, book = branch.reward, self._books[branch.search]
        if reward is None:
            return
        waiting = [node for node in book.waiting.get(id(reward), []) if node.score is None]
        book.waiting[id(reward)] = waiting
        above = reward.parent
        if reward.kv is None and above and above.kv and above.length >= reward.fork_len:
            self.lane.prepare(reward, sampled=False)  # holds shared pages when a twin gives up its

    def ahead(self, search: Search) -> int:
        """Tokens still to be run for a problem: what the policy will write is not known here."""
        return sum(s.pending for b in self._jobs if b.search is search for s in self._next(b))

    def active(self) -> set[int]:
        """Ids of the sequences being scored, or that one being scored continues."""
        busy = [s for b in self._jobs for s in [*self._next(b), b.reward] if s is not None]
        return {id(s) for s in busy} | {id(s.parent) for s in busy if s.kv is None}

    def hold(self, search: Search) -> bool:
        """Give up pages of jobs under way but for the first. False if there are none."""
        first = next((self._next(b)[0] for b in self._jobs if b.search is search), None)
        kept = set()
        while first is not None:
            kept.add(id(first))
            first = first.parent
        others = [s for s in search.reward_ledger.attached.values() if id(s) not in kept]
        others = [s for s in others if s.exclusive]
        self.lane.release_all(others)
        return bool(others)

    def preempt(self, search: Search) -> None:
        """Give up all of a problem's pages; its work starts again from the tokens."""
        self.lane.release_all(list(search.reward_ledger.attached.values()))

    def cancel(self, search: Search) -> None:
        """Forget a problem and its work."""
        self._jobs = [b for b in self._jobs if b.search is not search]
        self._books.pop(search, None)


def _holds(node: _Node) -> bool:
    return node.sequence.kv is not None and node.sequence.length >= node.end


def _missing(sequence: Sequence, end: int) -> int:
    """Of the first `end` tokens of a sequence, those that are not in the pool."""
    if sequence.kv is not None:
        return max(0, end - sequence.length)
    if sequence.parent is None:
        return 0  # the prompt, which is counted by itself
    shared = min(end, sequence.fork_len)
    return end - shared + _missing(sequence.parent, shared)


def _digest(tokens: list[int]) -> bytes:
    return hashlib.blake2b(np.array(tokens, np.int64).tobytes(), digest_size=16).digest()
