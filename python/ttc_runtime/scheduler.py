"""The scheduler drives the strategies of many problems and shares every step among them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ttc_kernels import OutOfPages

from ttc_runtime.generation import Policy
from ttc_runtime.scoring import Scorer
from ttc_runtime.search import Generate, Score, Search


@dataclass(eq=False)
class Task:
    """One problem under way.

    index: place in the caller's list. start: makes its search and the strategy's generator. outcome
    or error: what came out.
    """

    index: int
    start: Callable[[], tuple[Search, Iterator]]
    search: Search | None = None
    generator: Iterator | None = None
    work: Generate | Score | None = None
    outcome: object = None
    error: str | None = None


class Scheduler:
    """Runs tasks to their end on one policy and at most one reward model.

    policy, scorer: the lanes. max_batch: growing branches above which no further problem starts.
    """

    def __init__(self, policy: Policy, scorer: Scorer | None, max_batch: int) -> None:
        self.policy, self.scorer, self.max_batch = policy, scorer, max_batch
        self._active: list[Task] = []  # oldest first

    def run(self, tasks: Iterable[Task]) -> Iterator[Task]:
        """Yield each task when it is done, in whatever order they end."""
        queue = iter(tasks)
        more = True
        try:
            while True:
                done: list[Task] = []
                more = more and self._start(queue, done)
                for task in self._active[:]:
                    if self._advance(task):
                        self._retire(task, done)
                progress = self._step(self.policy, done)
                if self.scorer is not None:
                    progress |= self._step(self.scorer, done, idle=not progress)
                yield from done
                if not self._active and not more:
                    return
                if not (progress or done or more or self._can_advance() or self._resume()):
                    raise RuntimeError("scheduler: no task can go on")
        finally:
            for task in self._active:  # left early, by an error or by the caller
                self._drop(task)
            self._active = []

    def _start(self, queue: Iterator[Task], done: list[Task]) -> bool:
        """Start problems while there is room. Returns whether there may be more."""
        while (self.policy.num_growing < self.max_batch
               and not any(task.search.paused for task in self._active)):
            task = next(queue, None)
            if task is None:
                return False
            try:
                task.search, task.generator = task.start()
            except ValueError as error:
                task.error = str(error)
                done.append(task)
                continue
            self._active.append(task)
            if self._advance(task):
                self._retire(task, done)
        return True

    def _can_advance(self) -> bool:
        return any(not task.search.running for task in self._active)

    def _advance(self, task: Task) -> bool:
        """Hand a strategy what it waited for, until it waits again. True when it has ended."""
        while task.error is None and task.outcome is None and not task.search.running:
            work, task.work = task.work, None
            try:
                result = None
                if isinstance(work, Generate):
                    result = work.branches
                elif isinstance(work, Score):
                    result = [branch.step_scores for branch in work.branches]
                task.work = task.generator.send(result)
                self._submit(task)
            except StopIteration as end:
                task.outcome = end.value
                return True
            except ValueError as error:
                task.error = str(error)
                return True
        return False

    def _submit(self, task: Task) -> None:
        work = task.work
        if not isinstance(work, (Generate, Score)):
            raise TypeError(f"strategy: expected it to yield Generate or Score, got {work!r}")
        for branch in work.branches:
            if branch.freed:
                raise ValueError(f"{type(work).__name__}: branch {branch.path} was freed")
            if branch.search is not task.search:
                raise ValueError(f"{type(work).__name__}: branch {branch.path} belongs to "
                                 "another problem")
        if isinstance(work, Generate):
            self.policy.submit(work)
        elif self.scorer is None:
            raise ValueError("Score: the engine was made without a reward model")
        else:
            self.scorer.submit(work)

    def _step(self, lane: Policy | Scorer, done: list[Task], **arguments) -> bool:
        while True:
            try:
                return lane.step(**arguments)
            except OutOfPages as error:
                self._relieve(lane, error, done)

    def _relieve(self, user: Policy | Scorer, error: OutOfPages, done: list[Task]) -> None:
        """Free pages: cached prefixes first, then branches at rest, then the youngest problem."""
        user.lane.model.run_copies()
        if user.lane.cache.evict():
            return
        holding = [t for t in self._active if user.ledger(t.search).attached]
        active = user.active()
        for task in reversed(holding):
            attached = list(user.ledger(task.search).attached.values())
            resting = [s for s in attached if id(s) not in active and s.exclusive]
            if resting:
                user.lane.release_all(resting)
                return
        if len(holding) > 1:
            user.preempt(holding[-1].search)
            holding[-1].search.paused = True
            return
        pages = user.lane.model.pool.num_pages
        for task in holding or [t for t in self._active if t.search.running][:1]:
            task.error = (f"out of memory: the problem alone needs more than the {pages} pages of "
                          f"{user.lane.model.page_size} tokens there are ({error}); raise kv_memory "
                          "or lower n")
            self._retire(task, done)

    def _resume(self) -> bool:
        """Let the oldest problem that was held back go on."""
        for task in self._active:
            if task.search.paused:
                task.search.paused = False
                return True
        return False

    def _retire(self, task: Task, done: list[Task]) -> None:
        """A task has ended: free its pages at once, and let one that was held back go on."""
        self._drop(task)
        self._active.remove(task)
        self._resume()
        done.append(task)

    def _drop(self, task: Task) -> None:
        for lane in (self.policy, self.scorer):
            if lane is not None:
                lane.cancel(task.search)
        task.search.running.clear()
        task.generator.close()
        task.search.close()
