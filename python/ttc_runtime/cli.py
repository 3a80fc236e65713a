"""The command ``ttc``."""

from __future__ import annotations

import re
import time
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ttc_runtime import commands

app = typer.Typer(
    help="Test-time search over kernels that share every prefix.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_out = Console()
_err = Console(stderr=True)
_ROLLOUT_BATCH = 1024  # rollouts are many and short
app.command()(commands.compare)
app.command()(commands.calibrate)
app.command()(commands.tree)
app.command()(commands.metrics)


def main() -> None:
    """Entry point: errors a user can cause are one line, not a traceback."""
    try:
        app(standalone_mode=True)
    except (ValueError, OSError) as error:
        _err.print(f"ttc: {error}", style="red", markup=False, soft_wrap=True)
        raise SystemExit(1) from None


def progress_bar() -> Progress:
    """The bar of every command that solves problems."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=_err,
    )


def quiet_loading() -> None:
    """Only one progress bar at a time: not transformers' own for each model."""
    from transformers.utils import logging

    logging.disable_progress_bar()


@app.command()
def solve(
    model: Annotated[str, typer.Option(help="Policy: a local directory or zoo:NAME.")],
    problems: Annotated[str, typer.Option(help="Problems, one JSON object a line, or zoo:NAME.")],
    out: Annotated[str, typer.Option(help="Results, one JSON object a line; resumed if there.")],
    reward: Annotated[str | None, typer.Option(help="Reward model.")] = None,
    policy: Annotated[
        list[str] | None, typer.Option(help="NAME=MODEL, another policy; repeatable.")
    ] = None,
    draft: Annotated[str | None, typer.Option(help="Small model that drafts tokens.")] = None,
    speculate: Annotated[
        str | None, typer.Option(help="chain:4, tree:16, ngram:8 or none.")
    ] = None,
    strategy: Annotated[str, typer.Option(help="greedy, self_consistency, ...")] = "best_of_n",
    n: Annotated[int, typer.Option(help="Completions a problem.")] = 16,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE, of the strategy; repeatable.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many problems.")] = None,
    seed: Annotated[int, typer.Option(help="Of all randomness.")] = 0,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Keep so many tokens, 0 = all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Keep this much probability.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Drop below this share of the best.")] = 0.0,
    max_tokens: Annotated[int, typer.Option(help="Longest completion.")] = 2048,
    tokens: Annotated[int | None, typer.Option(help="Budget a problem: tokens.")] = None,
    samples: Annotated[int | None, typer.Option(help="Budget a problem: completions.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Budget a problem: seconds.")] = None,
    step_separator: Annotated[str | None, typer.Option(help="Text closing a step.")] = None,
    kv_memory: Annotated[str, typer.Option(help="Memory of the KV caches.")] = "1GiB",
    page_size: Annotated[int, typer.Option(help="Tokens to a page.")] = 16,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    deterministic: Annotated[bool, typer.Option(help="Same tree whatever runs beside.")] = True,
) -> None:
    """Solve a file of problems; a run that was interrupted goes on where it stopped."""
    from ttc_runtime import Budget, Engine, SamplingParams
    from ttc_runtime.records import read_problems
    from ttc_runtime.report import summary
    from ttc_runtime.runs import run_to_file
    from ttc_runtime.strategies import make_strategy
    from ttc_runtime.strategies.named import name_value, parse_settings

    sampling = SamplingParams(temperature, top_k, top_p, min_p, max_tokens)
    settings = {"n": n, "sampling": sampling, **parse_settings(setting or [])}
    plan = make_strategy(strategy, **settings)
    budget = Budget(tokens=tokens, samples=samples, seconds=seconds)
    policies = dict(name_value("--policy", text) for text in policy or [])
    read = read_problems(problems, limit)
    for message in read.errors:
        _err.print(f"skipped: {message}", style="yellow", markup=False, soft_wrap=True)

    def make_engine() -> Engine:
        quiet_loading()
        return Engine.from_pretrained(
            model,
            reward,
            draft,
            speculate=speculate,
            device=device,
            dtype=dtype,
            kv_memory=kv_memory,
            page_size=page_size,
            deterministic=deterministic,
            step_separator=step_separator,
            policies=policies,
        )

    started, results = time.monotonic(), []
    with progress_bar() as bar:
        row = bar.add_task(strategy, total=len(read.records), note="")

        def on_start(todo: int) -> None:
            done, total = len(read.records) - todo, len(read.records)
            if done:
                bar.console.print(f"{done} of {total} problems are in {out} already", markup=False)
            bar.update(row, completed=done)

        def on_result(result) -> None:
            results.append(result)
            bar.update(row, advance=1, note=_note(results))
            if result.error is not None:
                message = f"problem {result.id}: {result.error}"
                bar.console.print(message, style="red", markup=False, soft_wrap=True)

        try:
            run_to_file(
                out,
                read.records,
                plan,
                make_engine,
                budget=budget,
                seed=seed,
                models={"model": model, "reward": reward, **policies},
                on_start=on_start,
                on_result=on_result,
            )
        except KeyboardInterrupt:
            kept = f"interrupted: {len(results)} more results are in {out}; run this again to go on"
            bar.console.print(kept, style="yellow", markup=False, soft_wrap=True)
            raise typer.Exit(130) from None
    if results:
        _out.print(summary(results, time.monotonic() - started, f"{strategy} on {model}"))
    failed = sum(result.error is not None for result in results)
    if failed:
        message = f"{failed} of {len(results)} problems failed; run this again to try them anew"
        _err.print(message, style="red", markup=False, soft_wrap=True)
    if read.errors or failed:
        raise typer.Exit(1)


def _note(results: list) -> str:
    known = [result.correct for result in results if result.correct is not None]
    return f"{100 * sum(known) / len(known):.0f} % right" if known else ""


@app.command("train-prm")
def train_prm_command(
    policy: Annotated[str, typer.Option(help="Model that solves and rolls out: directory or zoo:")],
    problems: Annotated[str, typer.Option(help="Problems with answers, one JSON object a line.")],
    base: Annotated[str, typer.Option(help="Model to fine-tune: a local directory or zoo:NAME.")],
    out: Annotated[str, typer.Option(help="Directory of the reward model, and labels.jsonl.")],
    solutions: Annotated[int, typer.Option(help="Solutions to label, of each problem.")] = 2,
    rollouts: Annotated[int, typer.Option(help="Rollouts from each step.")] = 8,
    steps: Annotated[int, typer.Option(help="Updates.")] = 400,
    batch_tokens: Annotated[int, typer.Option(help="Tokens to a batch, about.")] = 2048,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 3e-4,
    only: Annotated[
        str | None, typer.Option(help="Train only parameters with this pattern in their name.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Of solutions and rollouts.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(help="Longest solution.")] = 2048,
    limit: Annotated[int | None, typer.Option(help="Only the first so many problems.")] = None,
    seed: Annotated[int, typer.Option(help="Of all randomness.")] = 0,
    step_separator: Annotated[str | None, typer.Option(help="Text closing a step.")] = None,
    kv_memory: Annotated[str, typer.Option(help="Memory of the KV cache.")] = "1GiB",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda, for the rollouts.")] = "auto",
) -> None:
    """Train a process reward model: label steps by rollouts, then fine-tune; labels are reused."""
    from pathlib import Path

    from ttc_runtime import Engine, SamplingParams
    from ttc_runtime.records import read_problems
    from ttc_runtime.training import label_steps, read_labels, train_prm, write_labels

    directory = Path(out)
    directory.mkdir(parents=True, exist_ok=True)
    labels = directory / "labels.jsonl"
    quiet_loading()
    if not labels.is_file():
        read = read_problems(problems, limit)
        for error in read.errors:
            _err.print(error, style="red", markup=False, soft_wrap=True)
        engine = Engine.from_pretrained(
            policy,
            device=device,
            kv_memory=kv_memory,
            step_separator=step_separator,
            max_batch=_ROLLOUT_BATCH,
        )
        sampling = SamplingParams(temperature, max_tokens=max_tokens)
        with progress_bar() as bar:
            row = bar.add_task("labels", total=solutions * len(read.records), note="")
            write_labels(
                labels,
                read.records,
                lambda rest: label_steps(
                    engine, rest, solutions, rollouts, sampling=sampling, seed=seed
                ),
                on_row=lambda: bar.update(row, advance=1),
            )
    train_prm(
        read_labels(labels), base, out, steps=steps, tokens=batch_tokens, lr=lr, seed=seed,
        trains=lambda name: only is None or re.search(only, name) is not None,
        log=lambda line: _err.print(line, markup=False, highlight=False),
    )  # fmt: skip
    _out.print(f"reward model in {directory}", markup=False, soft_wrap=True)


@app.command()
def env() -> None:
    """Print the report to paste into a bug report."""
    from ttc_kernels.collect_env import collect_env

    _out.print(collect_env(), markup=False, highlight=False, soft_wrap=True)


@app.command()
def demo(
    n: Annotated[int, typer.Option(help="Completions a problem.")] = 16,
    limit: Annotated[int | None, typer.Option(help="Only so many problems.")] = None,
    seed: Annotated[int, typer.Option(help="Of all randomness.")] = 0,
) -> None:
    """Solve the zoo's arithmetic with greedy, self-consistency and best-of-N, and compare."""
    from ttc_runtime.demo import run_demo

    quiet_loading()
    run_demo(_out, progress_bar, n, limit, seed)


if __name__ == "__main__":
    main()
