"""The demonstration: what more compute at test time buys on the zoo's arithmetic."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ttc_runtime.engine import Engine
from ttc_runtime.records import read_problems
from ttc_runtime.report import accuracy, total_usage, usage_rows
from ttc_runtime.result import Result
from ttc_runtime.strategies import BestOfN, Greedy, SelfConsistency

_BANDS = ("easy", "medium", "hard")


def run_demo(
    console: Console, progress: Callable[[], Progress], n: int, limit: int | None, seed: int
) -> None:
    """Solve ``zoo:arith-test`` with three strategies and print one table.

    console: where the table goes. progress: makes a progress bar. n: completions a problem. limit:
    only so many problems, spread over the difficulties. seed: of all randomness.
    """
    engine = Engine.from_pretrained("zoo:arith-small", reward="zoo:arith-prm")
    records = read_problems("zoo:arith-test").records
    if limit is not None:
        count = min(limit, len(records))
        records = [records[i * len(records) // count] for i in range(count)]
    band = {str(record["id"]): record["difficulty"] for record in records}
    columns: dict[str, dict[str, str]] = {}
    with progress() as bar:
        for strategy in (Greedy(), SelfConsistency(n), BestOfN(n)):
            row = bar.add_task(strategy.name, total=len(records), note="")
            engine.clear_cache()  # so that no strategy profits from the one before
            started, results = time.monotonic(), []
            for result in engine.stream(records, strategy, seed=seed):
                results.append(result)
                bar.update(row, advance=1)
            columns[strategy.name] = _figures(results, band, time.monotonic() - started)
    table = Table(title=f"arith-test, {len(records)} problems, n = {n}, seed {seed}")
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    for figure in next(iter(columns.values())):
        table.add_row(figure, *(column[figure] for column in columns.values()))
    console.print(table)


def _figures(results: list[Result], band: dict[str, str], seconds: float) -> dict[str, str]:
    by_band = {name: [r for r in results if band[str(r.id)] == name] for name in _BANDS}
    return {
        "accuracy [95 %]": accuracy(results),
        **{f"  {name}": accuracy(group) for name, group in by_band.items()},
        **usage_rows(total_usage(results), seconds),
    }
