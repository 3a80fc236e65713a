"""Commands over results: ``ttc compare``, ``ttc calibrate``, ``ttc tree``, ``ttc metrics``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ttc_runtime import Engine, SamplingParams, Strategy

_Strategies = Annotated[
    str, typer.Option(help="Names, with settings if need be: greedy,beam:n=8:width=2,mcts.")
]
_Model = Annotated[str, typer.Option(help="Policy: a local directory or zoo:NAME.")]
_Answered = Annotated[str, typer.Option(help="Problems with answers, or zoo:NAME.")]
_Reward = Annotated[str | None, typer.Option(help="Reward model.")]
_Count = Annotated[int, typer.Option(help="Completions a problem.")]
_Limit = Annotated[int | None, typer.Option(help="Only the first so many problems.")]
_Seed = Annotated[int, typer.Option(help="Of all randomness.")]
_Temperature = Annotated[float, typer.Option(help="0 takes the likeliest token.")]
_MaxTokens = Annotated[int, typer.Option(help="Longest completion.")]
_Memory = Annotated[str, typer.Option(help="Memory of the KV caches.")]
_Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
_Results = Annotated[str, typer.Argument(help="A results file of ttc solve or compare.")]


def compare(
    strategies: _Strategies,
    model: _Model,
    problems: _Answered,
    out: Annotated[str, typer.Option(help="Directory of results; resumed if there.")],
    reward: _Reward = None,
    n: _Count = 16,
    limit: _Limit = None,
    seed: _Seed = 0,
    temperature: _Temperature = 1.0,
    max_tokens: _MaxTokens = 2048,
    kv_memory: _Memory = "1GiB",
    device: _Device = "auto",
) -> None:
    """Solve problems with several strategies: accuracy against compute, as a table and a PNG."""
    from rich.console import Console

    from ttc_runtime import SamplingParams
    from ttc_runtime.compare import compare_table, draw_frontier, point_of

    plans = _parse(strategies, n, SamplingParams(temperature, max_tokens=max_tokens))
    known = _answered("compare", problems, limit)
    found = _run_all(plans, known, Path(out), model, reward, seed, device, kv_memory)
    points = [point_of(name, records) for name, records in found.items()]
    Console().print(compare_table(points, f"{model}, {len(known)} problems, seed {seed}"))
    picture = Path(out) / "frontier.png"
    try:
        draw_frontier(points, picture)
    except ImportError as error:
        typer.echo(f"no picture: {error}; pip install 'ttc-kernels[viz]'", err=True)
    else:
        typer.echo(f"results and {picture.name} are in {out}")


def calibrate(
    strategies: _Strategies,
    model: _Model,
    problems: _Answered,
    out: Annotated[str, typer.Option(help="The table, as JSON; results are kept in OUT.runs.")],
    reward: _Reward = None,
    n: _Count = 16,
    samples: Annotated[int, typer.Option(help="Completions that tell the difficulty.")] = 4,
    estimate: Annotated[str, typer.Option(help="reward, agreement or confidence.")] = "reward",
    select: Annotated[
        str | None, typer.Option(help="majority, weighted, naive; by default the strategy's own.")
    ] = None,
    bins: Annotated[int, typer.Option(help="Bins of difficulty.")] = 3,
    limit: _Limit = None,
    seed: _Seed = 0,
    temperature: _Temperature = 1.0,
    max_tokens: _MaxTokens = 2048,
    kv_memory: _Memory = "1GiB",
    device: _Device = "auto",
) -> None:
    """Measure which strategy is best for which difficulty: the table of compute_optimal."""
    from rich.console import Console

    from ttc_runtime import SamplingParams
    from ttc_runtime.calibration import tabulate, trial_of
    from ttc_runtime.report import calibration_table

    sampling = SamplingParams(temperature, max_tokens=max_tokens)
    plans = {
        name: trial_of(plan, samples, estimate, select, sampling)
        for name, plan in _parse(strategies, n, sampling).items()
    }
    known = _answered("calibrate", problems, limit)
    found = _run_all(plans, known, Path(f"{out}.runs"), model, reward, seed, device, kv_memory)
    table = tabulate(found, plans, bins)
    table.save(out)
    Console().print(calibration_table(table, f"{model}, {len(table.trials)} problems"))
    typer.echo(f"use it with: ttc solve --strategy compute_optimal --set table={out}")


def _parse(strategies: str, n: int, sampling: SamplingParams) -> dict[str, Strategy]:
    from ttc_runtime.strategies import parse_strategy

    words = [text.strip() for text in strategies.split(",")]
    return {word.replace(":", " "): parse_strategy(word, n, sampling) for word in words}


def _answered(command: str, problems: str, limit: int | None) -> list[dict]:
    """The problems of a file. Raises ValueError for broken lines, or answers that are missing."""
    from ttc_runtime.records import read_problems

    read = read_problems(problems, limit)
    if read.errors:
        raise ValueError("; ".join(read.errors))
    if any(record.get("answer") is None for record in read.records):
        raise ValueError(f"{command}: every problem needs an 'answer' to compare with")
    return read.records


def _run_all(
    plans: Mapping[str, Strategy],
    problems: list[dict],
    out: Path,
    model: str,
    reward: str | None,
    seed: int,
    device: str,
    kv_memory: str,
) -> dict[str, list[dict]]:
    """Every strategy's records, in the problems' order; what a directory holds is not run again."""
    from ttc_runtime import Engine
    from ttc_runtime.cli import progress_bar, quiet_loading
    from ttc_runtime.records import read_results
    from ttc_runtime.runs import run_to_file

    out.mkdir(parents=True, exist_ok=True)
    engines: list[Engine] = []

    def make_engine() -> Engine:
        quiet_loading()
        if not engines:
            engines.append(
                Engine.from_pretrained(model, reward, device=device, kv_memory=kv_memory)
            )
        engines[0].clear_cache()  # so that no strategy profits from the one before
        return engines[0]

    found: dict[str, list[dict]] = {}
    with progress_bar() as bar:
        for name, plan in plans.items():
            file = out / f"{name.replace(' ', '_').replace('=', '')}.jsonl"
            row = bar.add_task(name, total=len(problems), note="")
            config = run_to_file(
                file,
                problems,
                plan,
                make_engine,
                seed=seed,
                models={"model": model, "reward": reward},
                on_start=partial(_skip, bar, row, len(problems)),
                on_result=partial(_advance, bar, row),
            )
            mine = {r["id"]: r for r in read_results(file) if r["config"] == config}
            found[name] = [mine[record["id"]] for record in problems]
    return found


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
