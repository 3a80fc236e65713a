"""The commands about results: ``ttc compare``, ``ttc tree`` and ``ttc metrics``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

_Results = Annotated[str, typer.Argument(help="A results file of ttc solve or compare.")]


def compare(
    strategies: Annotated[
        str, typer.Option(help="Names, with settings if need be: greedy,beam:n=8:width=2,mcts.")
    ],
    model: Annotated[str, typer.Option(help="Policy: a local directory or zoo:NAME.")],
    problems: Annotated[str, typer.Option(help="Problems with answers, or zoo:NAME.")],
    out: Annotated[str, typer.Option(help="Directory of results; resumed if there.")],
    reward: Annotated[str | None, typer.Option(help="Reward model.")] = None,
    n: Annotated[int, typer.Option(help="Completions a problem.")] = 16,
    limit: Annotated[int | None, typer.Option(help="Only the first so many problems.")] = None,
    seed: Annotated[int, typer.Option(help="Of all randomness.")] = 0,
    max_tokens: Annotated[int, typer.Option(help="Longest completion.")] = 2048,
    kv_memory: Annotated[str, typer.Option(help="Memory of the KV caches.")] = "1GiB",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Solve problems with several strategies: accuracy against compute, as a table and a PNG."""
    from rich.console import Console

    from ttc_runtime import Engine, SamplingParams
    from ttc_runtime.cli import parse_settings, progress_bar, quiet_loading
    from ttc_runtime.compare import compare_table, draw_frontier, point_of
    from ttc_runtime.records import read_problems, read_results
    from ttc_runtime.runs import run_to_file
    from ttc_runtime.strategies import make_strategy

    plans = {}
    for text in strategies.split(","):
        name, *chosen = text.strip().split(":")
        options = {"n": n, **parse_settings(chosen)}
        sampling = SamplingParams(max_tokens=max_tokens)
        plans[text.strip().replace(":", " ")] = make_strategy(name, sampling=sampling, **options)
    read = read_problems(problems, limit)
    if read.errors:
        raise ValueError("; ".join(read.errors))
    if any(record.get("answer") is None for record in read.records):
        raise ValueError("compare: every problem needs an 'answer' to compare with")
    Path(out).mkdir(parents=True, exist_ok=True)
    engines: list[Engine] = []

    def make_engine() -> Engine:
        quiet_loading()
        if not engines:
            engines.append(
                Engine.from_pretrained(model, reward, device=device, kv_memory=kv_memory)
            )
        engines[0].clear_cache()  # so that no strategy profits from the one before
        return engines[0]

    points = []
    wanted = {record["id"] for record in read.records}
    with progress_bar() as bar:
        for name, plan in plans.items():
            file = Path(out) / f"{name.replace(' ', '_').replace('=', '')}.jsonl"
            row = bar.add_task(name, total=len(read.records), note="")
            config = run_to_file(
                file,
                read.records,
                plan,
                make_engine,
                seed=seed,
                models={"model": model, "reward": reward},
                on_start=partial(_skip, bar, row, len(read.records)),
                on_result=partial(_advance, bar, row),
            )
            records = [r for r in read_results(file) if r["config"] == config]
            points.append(point_of(name, [r for r in records if r["id"] in wanted]))
    Console().print(compare_table(points, f"{model}, {len(read.records)} problems, seed {seed}"))
    picture = Path(out) / "frontier.png"
    try:
        draw_frontier(points, picture)
    except ImportError as error:
        typer.echo(f"no picture: {error}; pip install 'ttc-kernels[viz]'", err=True)
    else:
        typer.echo(f"results and {picture.name} are in {out}")


def _skip(bar, row, total: int, todo: int) -> None:
    bar.update(row, completed=total - todo)


def _advance(bar, row, _result) -> None:
    bar.update(row, advance=1)


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
