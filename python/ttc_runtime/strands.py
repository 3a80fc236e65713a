"""Strands: the generators of one problem, some of them running beside each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ttc_runtime.budget import Account
from ttc_runtime.search import Call, Generate, Score, Search, Together


class _Strand:
    """A generator and the work it waits for.

    account: what it may spend. parent, place: of the strand that runs it `Together` with others,
    and where its result goes.
    passed: branches of the work, from the front, that are known to be done. missing: strands run
    `Together` that have not ended.
    """

    __slots__ = ("account", "generator", "missing", "parent", "passed", "place", "results", "work")

    def __init__(
        self, generator, account: Account, parent: _Strand | None = None, place: int = 0
    ) -> None:
        self.generator, self.account = generator, account
        self.parent, self.place = parent, place
        self.work: Generate | Score | Together | Call | None = None
        self.passed = self.missing = 0
        self.results: list = []

    def ready(self, running: set) -> bool:
        work = self.work
        if isinstance(work, (Generate, Score)):
            branches = work.branches
            while self.passed < len(branches) and branches[self.passed] not in running:
                self.passed += 1
            return self.passed == len(branches)
        if isinstance(work, Call):
            return work.poll()
        return self.missing == 0

    def answer(self) -> Any:
        """What the generator is sent for the work it yielded."""
        if isinstance(self.work, Generate):
            return self.work.branches
        if isinstance(self.work, Score):
            return [branch.step_scores for branch in self.work.branches]
        return self.results if isinstance(self.work, Together) else self.work


class Strands:
    """Drives a strategy's generator, and those it asks to run `Together`.

    What one strand does has no effect on another: each has an `Account`, numbers the branches that
    it forks, and is scored, by itself. So it does not matter which is faster, and with it neither
    what else is in the batch nor how much memory there is.

    generator: the strategy's. account: what it may spend. submit: function of (search, work) that
    starts work.
    """

    def __init__(self, generator, account: Account, submit: Callable[[Search, Any], None]) -> None:
        self._submit = submit
        self._waiting = [_Strand(generator, account)]
        self.outcome: Any = None

    def advance(self, search: Search) -> bool:
        """Resume every strand whose work is done, until all wait. True when the first has ended,
        with what it returned in `outcome`. Raises what a strategy raises."""
        moved = True
        while moved:
            moved = False
            for strand in self._waiting[:]:
                while strand.ready(search.running):
                    moved = True
                    if self._resume(strand, search, strand.account):
                        break
                if not self._waiting:
                    return True
        return False

    def _resume(self, strand: _Strand, search: Search, account: Account) -> bool:
        """Hand a strand what it waited for, its code running on an account. True if it ended."""
        search.account = account
        strand.account.resume()
        try:
            if strand.work is None:
                work = next(strand.generator)
            else:
                work = strand.generator.send(strand.answer())
        except StopIteration as end:
            self._end(strand, end.value)
            return True
        search.account = strand.account
        strand.work, strand.passed = work, 0
        if isinstance(work, Together):
            self._split(strand, list(work.generators), search)
        elif isinstance(work, Call):
            work.start(search.remaining_seconds)
        else:
            self._submit(search, work)
        return False

    def _split(self, strand: _Strand, generators: list, search: Search) -> None:
        """Start the strands of a strand. Their code up to the first work runs one after the other,
        as if it were the strand's own: what it forks is numbered on."""
        strand.results, strand.missing = [None] * len(generators), len(generators)
        accounts = strand.account.split(len(generators))
        parts = zip(generators, accounts, strict=True)
        started = [_Strand(g, account, strand, i) for i, (g, account) in enumerate(parts)]
        at = self._waiting.index(strand)
        self._waiting[at:at] = started
        for each in started:
            self._resume(each, search, strand.account)

    def _end(self, strand: _Strand, value: Any) -> None:
        self._waiting.remove(strand)
        strand.account.close()
        if strand.parent is None:
            self.outcome = value
        else:
            strand.parent.results[strand.place] = value
            strand.parent.missing -= 1

    @property
    def calling(self) -> bool:
        """Whether a strand waits for a `Call`."""
        return any(isinstance(strand.work, Call) for strand in self._waiting)

    def ready(self, search: Search) -> bool:
        """Whether some strand's work is done."""
        return any(strand.ready(search.running) for strand in self._waiting)

    def close(self) -> None:
        """End all generators."""
        for strand in self._waiting:
            strand.generator.close()
        self._waiting = []
