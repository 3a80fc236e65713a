"""The scheduler drives the strategies of many problems and shares every step among them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ttc_kernels import OutOfPages
from ttc_runtime.generation import Policy
from ttc_runtime.scoring import Scorer
from ttc_runtime.search import Generate, Score, Search
from ttc_runtime.strands import Strands
from ttc_runtime.strategies.base import Outcome, Work

_CALL_POLL = 0.001  # seconds between looks at a tool's thread when nothing else is to be done


@dataclass(eq=False)
class Task:
    """One problem to solve.

    index: place in the caller's list. start: makes its search and the strategy's generator. search:
    None until it was started. outcome or error: what came out. exception: what the strategy raised,
    if that was the error.
    """

    index: int
    start: Callable[[], tuple[Search, Work]]
    search: Search | None = None
    outcome: Outcome | None = None
    error: str | None = None
    exception: Exception | None = None

    def fail(self, exception: Exception) -> None:
        """Record what the problem's own code raised; a ValueError's text speaks for itself."""
        kind = "" if isinstance(exception, ValueError) else f"{type(exception).__name__}: "
        self.error, self.exception = f"{kind}{exception}", exception


@dataclass(eq=False)
class _Active:
    """A task under way and its strategy's generators."""

    task: Task
    search: Search
    strands: Strands


class Scheduler:
    """Runs tasks to their end on one policy and at most one reward model.

    policy, scorer: the lanes. max_batch: growing branches above which no further problem starts.
    """

    def __init__(self, policy: Policy, scorer: Scorer | None, max_batch: int) -> None:
        self.policy, self.scorer, self.max_batch = policy, scorer, max_batch
        self._policies = [policy, *policy.peers.values()]
        self._users: list[Policy | Scorer] = [*self._policies]
        if scorer is not None:
            self._users.append(scorer)
        self._expected: dict[Policy | Scorer, float] = {}  # pages that a problem takes
        self._active: list[_Active] = []  # oldest first

    def run(self, tasks: Iterable[Task]) -> Iterator[Task]:
        """Yield each task when it is done, in whatever order they end."""
        queue = iter(tasks)
        more = True
        try:
            while True:
                done: list[Task] = []
                more = more and self._start(queue, done)
                for active in self._active[:]:
                    if self._advance(active):
                        self._retire(active, done)
                progress = False
                for policy in self._policies:
                    progress |= self._step(policy, done)
                if self.scorer is not None:
                    progress |= self._step(self.scorer, done, idle=not progress)
                for active in [a for a in self._active if a.search.failure is not None]:
                    active.task.error = active.search.failure
                    self._retire(active, done)
                yield from done
                if not self._active and not more:
                    return
                if not progress and any(active.strands.calling for active in self._active):
                    time.sleep(_CALL_POLL)
                    continue
                ready = any(active.strands.ready(active.search) for active in self._active)
                if not (progress or done or more or ready or self._resume()):
                    raise RuntimeError("scheduler: no task can go on")
        finally:
            for active in self._active:  # left early, by an error or by the caller
                self._drop(active)
            self._active = []

    def _start(self, queue: Iterator[Task], done: list[Task]) -> bool:
        """Start problems while there is room. Returns whether there may be more."""
        while (
            sum(policy.num_growing for policy in self._policies) < self.max_batch
            and not any(active.search.paused or active.search.held for active in self._active)
            and all(self._fits_another(user) for user in self._users)
        ):
            task = next(queue, None)
            if task is None:
                return False
            try:
                task.search, generator = task.start()
            except Exception as error:  # whatever it is, the other problems go on
                task.fail(error)
                done.append(task)
                continue
            active = _Active(
                task, task.search, Strands(generator, task.search.account, self._submit)
            )
            self._active.append(active)
            if self._advance(active):
                self._retire(active, done)
        return True

    def _fits_another(self, user: Policy | Scorer) -> bool:
        """Whether there is memory for one more problem, all of them as large as those before.

        Until one has ended, what its branches may still take at most stands for that. One problem
        always fits: whether it does is seen when it runs.
        """
        if not self._active:
            return True
        pool = user.lane.model.pool
        pages = [user.ledger(a.search).pages(pool.page_size) for a in self._active]
        expected = self._expected.get(user)
        if expected is None:
            ahead = [user.ahead(a.search) // pool.page_size for a in self._active]
            expected = max(n + more for n, more in zip(pages, ahead, strict=True))
        return sum(max(n, expected) for n in pages) + expected <= pool.num_pages

    def _advance(self, active: _Active) -> bool:
        """Let a strategy go on as far as its work is done. True when it has ended."""
        try:
            if not active.strands.advance(active.search):
                return False
            outcome = active.strands.outcome
            if not isinstance(outcome, Outcome):
                kind = type(outcome).__name__
                raise TypeError(f"strategy: expected its run to return an Outcome, got {kind}")
            active.task.outcome = outcome
        except Exception as error:  # the strategy's, or for its work: the other problems go on
            active.task.fail(error)
        return True

    def _submit(self, search: Search, work: Generate | Score) -> None:
        if not isinstance(work, (Generate, Score)):
            raise TypeError(
                f"strategy: expected it to yield Generate, Score, Together or Call, got {work!r}"
            )
        kind = type(work).__name__
        for branch in work.branches:
            if branch.freed:
                raise ValueError(f"{kind}: branch {branch.path} was freed")
            if branch.search is not search:
                raise ValueError(f"{kind}: branch {branch.path} belongs to another problem")
        if len(set(work.branches)) < len(work.branches):
            raise ValueError(f"{kind}: a branch was given twice; fork it instead")
        if isinstance(work, Generate):
            names = {policy.name: policy for policy in self._policies}
            if work.policy not in names:
                raise ValueError(
                    f"Generate: policy must be one of {sorted(names)}, got {work.policy!r}"
                )
            names[work.policy].submit(work)
        elif self.scorer is None:
            raise ValueError("Score: the engine was made without a reward model")
        else:
            self.scorer.submit(work)

    def _step(self, user: Policy | Scorer, done: list[Task], **arguments) -> bool:
        swept = False
        while True:
            try:
                with user.lane.model.threads():
                    return user.step(**arguments)
            except OutOfPages as error:
                swept |= self._relieve(user, error, done, swept)

    def _relieve(
        self, user: Policy | Scorer, error: OutOfPages, done: list[Task], swept: bool
    ) -> bool:
        """Free pages: cached prefixes first, then branches at rest, then growing ones.

        The youngest problem gives way first, and in it what is worth least; the oldest one's best
        branch always goes on, so that every problem ends. At the very last go sequences that share
        all their tokens with others: they hold a half-full page at most. Returns whether that was
        done; once in a step, since whatever needs them attaches them again.
        """
        user.lane.model.run_copies()
        if user.lane.cache.evict():
            return False
        holding = [a for a in self._active if user.ledger(a.search).attached]
        busy = user.active()
        for active in reversed(holding):
            attached = list(user.ledger(active.search).attached.values())
            resting = [s for s in attached if id(s) not in busy and s.exclusive]
            if resting:
                user.lane.release(min(resting, key=lambda s: s.dispensable))
                return False
        if holding and user.hold(holding[-1].search):
            return False
        if len(holding) > 1:
            user.preempt(holding[-1].search)
            holding[-1].search.paused = True
            return False
        if holding and not swept:
            attached = list(user.ledger(holding[0].search).attached.values())
            user.lane.release_all([s for s in attached if id(s) not in busy])
            return True
        pages = user.lane.model.pool.num_pages
        for active in holding or [a for a in self._active if a.search.running][:1]:
            active.task.error = (
                f"out of memory: the problem alone needs more than the {pages} pages of "
                f"{user.lane.model.page_size} tokens there are ({error}); raise kv_memory or "
                "lower n"
            )
            self._retire(active, done)
        return False

    def _resume(self) -> bool:
        """Let the oldest problem that was held back go on, or else its branches that were."""
        for active in self._active:
            if active.search.paused:
                active.search.paused = False
                return True
        held = next((a.search for a in self._active if a.search.held), None)
        while held is not None and any(policy.let_go(held) for policy in self._policies):
            pass
        return held is not None

    def _retire(self, active: _Active, done: list[Task]) -> None:
        """A task has ended: free its pages at once, and let one that was held back go on."""
        for user in self._users:
            pages = user.ledger(active.search).pages(user.lane.model.page_size)
            # The largest one counts, less and less with every smaller one after it.
            self._expected[user] = max(pages, 0.9 * self._expected.get(user, 0) + 0.1 * pages)
        self._drop(active)
        self._active.remove(active)
        self._resume()
        done.append(active.task)

    def _drop(self, active: _Active) -> None:
        for user in self._users:
            user.cancel(active.search)
        active.search.running.clear()
        active.strands.close()
        active.search.close()
