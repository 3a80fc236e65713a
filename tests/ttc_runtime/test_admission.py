"""Problems are started as far as memory goes, so that none has to be taken back."""

from __future__ import annotations

import pytest
from every_strategy import SMALL
from test_batch_independence import make, problems, records  # noqa: F401


def most_at_a_time(engine, asked, strategy):
    """The results, and how many problems were under way at most."""
    from ttc_runtime.scheduler import Scheduler

    counts, start = [0], Scheduler._start

    def counted(self, *arguments):
        more = start(self, *arguments)
        counts.append(len(self._active))
        return more

    Scheduler._start = counted
    try:
        return engine.solve_all(asked, strategy, seed=4), max(counts)
    finally:
        Scheduler._start = start


@pytest.mark.parametrize("name", ["best_of_n", "beam", "mcts", "self_consistency", "plan_compare"])
def test_as_many_as_fit_and_none_recomputed(make, name):  # noqa: F811
    asked, strategy = problems(30), SMALL[name]
    roomy = make(num_pages=100000)
    expected, together = most_at_a_time(roomy, asked, strategy)
    assert together > 10
    ledgers = [r.tree.search.policy_ledger for r in expected]
    largest = max(ledger.pages(4) for ledger in ledgers)
    tight = make(num_pages=4 * largest)
    results, together = most_at_a_time(tight, asked, strategy)
    assert records(results) == records(expected)
    assert sum(r.usage.recomputed for r in results) == 0
    assert together >= 3
