"""A run over a file of problems that can be killed at any moment and started again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ttc_runtime.budget import Budget
from ttc_runtime.engine import Engine
from ttc_runtime.records import ResultWriter, settings
from ttc_runtime.result import Result
from ttc_runtime.strategies import Strategy


def run_to_file(
    out: str | Path,
    records: list[dict],
    strategy: Strategy,
    engine: Callable[[], Engine],
    *,
    budget: Budget | None = None,
    seed: int = 0,
    models: dict[str, str | None] | None = None,
    on_start: Callable[[int], None] | None = None,
    on_result: Callable[[Result], None] | None = None,
) -> dict:
    """Solve the problems that a results file lacks, each written when it is done.

    out: the results file, made if missing. In the end it holds the problems in their order, and but
    for the seconds it took it is the same file however often the run was interrupted. records:
    problems with ``id`` and ``problem``. engine: makes one; called only if there is work. budget,
    seed: as for `Engine.solve_all`. models: their names; results of other models, settings or
    budgets in the file are kept and do not count. on_start: told how many problems are to be
    solved. on_result: told each result once it is written. Returns the ``config`` by which the
    run's records are known.
    """
    config = {**(models or {}), "strategy": settings(strategy), "budget": settings(budget)}
    with ResultWriter(out, strategy.name, seed, config) as writer:
        todo = [record for record in records if str(record["id"]) not in writer.done]
        if on_start is not None:
            on_start(len(todo))
        if todo:
            for result in engine().stream(todo, strategy, budget, seed):
                writer.write(result)
                if on_result is not None:
                    on_result(result)
        writer.finish([record["id"] for record in records])
        return writer.config
