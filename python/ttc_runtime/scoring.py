"""Incremental scoring: a branch's new steps run on top of its cached prefix, read at their ends."""

from __future__ import annotations

from ttc_runtime.branch import Branch
from ttc_runtime.lane import Lane
from ttc_runtime.rewards import RewardModel
from ttc_runtime.search import Score, Search
from ttc_runtime.sequence import Ledger, Sequence

_NAN = float("nan")
_PATIENCE = 8  # steps a small batch may wait for more work to fill a row block


class Scorer:
    """Scores the steps of many problems' branches in shared batches.

    reward: a reward model with its pages allocated.
    """

    def __init__(self, reward: RewardModel) -> None:
        self.reward, self.lane = reward, Lane(reward.model)
        self._jobs: list[Branch] = []
        self._owners: dict[int, Branch] = {}
        self._waited = 0

    def ledger(self, search: Search) -> Ledger:
        return search.reward_ledger

    def submit(self, work: Score) -> None:
        """Start scoring the branches' closed steps; they leave `search.running` when done."""
        for branch in work.branches:
            search = branch.search
            self._extend(branch, len(branch.steps))
            if search.remaining_seconds <= 0:
                search.budget_hit = True
            elif not _all_scored(branch):
                self._jobs.append(branch)
                search.running.add(branch)

    def _extend(self, branch: Branch, num_steps: int) -> None:
        """Bring the reward sequence of a branch, and of those it was forked from, to `num_steps`.

        Steps beyond the model's context or the budget stay without a score.
        """
        search, parent = branch.search, branch.parent
        tokenizer, spec = self.reward.tokenizer, self.reward.spec
        if branch.reward is None:
            if parent is None:
                prompt = spec.prompt_tokens(tokenizer, search.problem)
                branch.reward = Sequence(prompt, search.reward_ledger, owner=branch)
                branch.reward_ends = [len(prompt)]
            else:
                inherited = _inherited_steps(branch)
                self._extend(parent, inherited)
                branch.reward_ends = parent.reward_ends[: inherited + 1]
                tokens = _reward(parent).tokens[: branch.reward_ends[-1]]
                branch.reward = Sequence(tokens, search.reward_ledger, parent.reward, branch)
        branch.step_scores += [_NAN] * (num_steps - len(branch.step_scores))
        for step in branch.steps[len(branch.reward_ends) - 1 : num_steps]:
            ids = spec.step_tokens(tokenizer, step)
            end = branch.reward_ends[-1] + len(ids)
            if end > self.lane.model.max_positions or not self._affordable(search, len(ids)):
                break
            branch.reward.tokens += ids
            branch.reward_ends.append(end)
        self._owners[id(branch.reward)] = branch

    def _affordable(self, search: Search, tokens: int) -> bool:
        limit = search.budget.scored_tokens
        if limit is None:
            return True
        if search.scoring_committed == 0:
            search.scoring_committed = search.root.reward_ends[0]
        if search.scoring_committed + tokens > limit:
            search.budget_hit = True
            return False
        search.scoring_committed += tokens
        return True

    def step(self, *, idle: bool) -> bool:
        """Run one batch. Returns False if there was nothing to do.

        idle: nothing else can run, so that a batch need not wait until it fills a row block.
        Raises OutOfPages if nothing could run; calling again after pages were freed goes on.
        """
        for branch in [b for b in self._jobs if b.search.remaining_seconds <= 0]:
            branch.search.budget_hit = True
            self._finish(branch)
        jobs = [b for b in self._jobs if not b.search.paused]
        small = sum(_reward(b).pending for b in jobs) < self.lane.model.row_block
        if not jobs or (small and not idle and self._waited < _PATIENCE):
            self._waited += bool(jobs)
            return False
        self._waited = 0
        batch: dict[int, Sequence] = {}
        for branch in jobs:
            target = self.lane.prepare(_unscored(branch), sampled=False)
            if target is not None:
                batch[id(target)] = target
        wanted: list[tuple[Branch, int]] = []
        logits, _ = self.lane.run([], list(batch.values()), self._collector(wanted))
        for (branch, k), score in zip(wanted, self.reward.probabilities(logits), strict=True):
            branch.step_scores[k] = score
        for branch in jobs:
            if _all_scored(branch):
                self._finish(branch)
        return True

    def _collector(self, wanted: list[tuple[Branch, int]]):
        """A function for `Lane.run` that notes the step of each output it asks for."""

        def step_ends(sequence: Sequence, first: int, end: int) -> list[int]:
            branch = self._owners[id(sequence)]
            steps = [k for k, e in enumerate(branch.reward_ends[1:]) if first < e <= end]
            wanted.extend((branch, k) for k in steps)
            return [branch.reward_ends[k + 1] - 1 for k in steps]

        return step_ends

    def _finish(self, branch: Branch) -> None:
        self._jobs.remove(branch)
        branch.search.running.discard(branch)

    def active(self) -> set[int]:
        """Ids of the sequences being scored, or that one being scored continues."""
        sequences = [_reward(b) for b in self._jobs]
        return {id(s) for s in sequences} | {id(s.parent) for s in sequences if s.kv is None}

    def hold(self, search: Search) -> bool:
        """Give up pages of jobs under way but for the first. False if there are none."""
        first = next((_unscored(b) for b in self._jobs if b.search is search), None)
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
        self._owners = {k: b for k, b in self._owners.items() if b.search is not search}


def _reward(branch: Branch) -> Sequence:
    if branch.reward is None:
        raise RuntimeError(f"scorer: branch {branch.path} has not been submitted")
    return branch.reward


def _unscored(branch: Branch) -> Sequence:
    """The sequence to run: the branch's own, or, if it has no step of its own, its parent's."""
    while branch.parent and len(_reward(branch).tokens) == _reward(branch).fork_len:
        branch = branch.parent
    return _reward(branch)


def _all_scored(branch: Branch) -> bool:
    """Whether the steps that can be scored are; takes over the scores of steps forked from."""
    if branch.parent is not None and branch.reward_ends:
        inherited = _inherited_steps(branch)
        _all_scored(branch.parent)
        branch.step_scores[:inherited] = branch.parent.step_scores[:inherited]
    return not any(s != s for s in branch.step_scores[: len(branch.reward_ends) - 1])


def _inherited_steps(branch: Branch) -> int:
    """Number of steps that were closed before the branch was forked."""
    return sum(start <= branch.sequence.fork_len for start in branch.step_starts[1:])
