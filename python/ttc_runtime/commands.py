"""The commands that read results: ``ttc tree`` and ``ttc metrics``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_Results = Annotated[str, typer.Argument(help="A results file of ttc solve or compare.")]


def tree(
    results: _Results,
    problem: Annotated[str, typer.Option(help="Its id, or its place in the file from 0.")],
    out: Annotated[str | None, typer.Option(help="The page; by default tree-ID.html.")] = None,
    strategy: Annotated[str | None, typer.Option(help="Where the file has several.")] = None,
) -> None:
    """Draw a search tree as a self-contained HTML page."""
    from ttc_runtime.page import tree_page
    from ttc_runtime.records import read_results

    record = find_record(read_results(results), problem, strategy)
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in str(record["id"]))
    path = Path(out or f"tree-{name}.html")
    path.write_text(tree_page(record), encoding="utf-8")
    typer.echo(f"{path}: {len(record['tree']['nodes'])} branches")


def find_record(records: list[dict], problem: str, strategy: str | None) -> dict:
    """The last record of a problem, by its id or else its place. Raises ValueError for none."""
    mine = [r for r in records if strategy is None or r["strategy"] == strategy]
    if not mine:
        known = ", ".join(sorted({r["strategy"] for r in records})) or "none at all"
        raise ValueError(f"tree: no results of strategy {strategy!r}; the file has {known}")
    named = [r for r in mine if str(r["id"]) == problem]
    if named:
        return named[-1]
    if problem.isdecimal() and int(problem) < len(mine):
        return mine[int(problem)]
    raise ValueError(
        f"tree: no problem {problem!r}; the file has {len(mine)} results, "
        f"the first of problem {mine[0]['id']!r}"
    )


def metrics(
    results: _Results,
    format: Annotated[str, typer.Option(help="prometheus or csv.")] = "prometheus",
    out: Annotated[str | None, typer.Option(help="A file; by default the terminal.")] = None,
) -> None:
    """Print what each problem cost, as Prometheus text or CSV."""
    from ttc_runtime.metrics import FORMATS
    from ttc_runtime.records import read_results

    if format not in FORMATS:
        raise ValueError(f"--format: expected one of {', '.join(FORMATS)}, got {format!r}")
    text = FORMATS[format](read_results(results))
    if out is None:
        typer.echo(text, nl=False)
    else:
        Path(out).write_text(text, encoding="utf-8")
