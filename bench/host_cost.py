"""What a decode step costs on the host beside the model: scheduler, branches, budgets, bookkeeping.

    python -m bench.host_cost --branches 64 256 --json bench/results/host_cost_cpu.json

The model has the shape of Qwen2-0.5B and random weights. A step lasts from the beginning of one
forward pass to that of the next. Of it, *model* is the pass (planning and attention included),
*sampling* what reads the logits (descriptor, draw, log-probabilities), and *host* the rest.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from ttc_runtime import Engine, SamplingParams, SelfConsistency, generation

from . import machine
from .model_dir import NUM_WORDS, SHAPE, text_of, write_model


def main(argv: list[str] | None = None) -> int:
    """Run the command; see --help."""
    args = _parser().parse_args(argv)
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        write_model(Path(directory) / "model", torch.bfloat16)
        for branches in args.branches:
            rows.append(measure(Path(directory) / "model", branches, args.prompt, args.steps))
    table = Table(title=f"decode steps, prompt {args.prompt}, bf16, median of {args.steps} steps")
    for head in ("branches", "model ms", "sampling ms", "host ms", "host / model"):
        table.add_column(head, justify="right")
    for row in rows:
        times = [f"{row[key] * 1e3:.2f}" for key in ("model_s", "sampling_s", "host_s")]
        table.add_row(str(row["branches"]), *times, f"{100 * row['host_share']:.2f} %")
    Console().print(table)
    if args.json:
        workload = {"prompt": args.prompt, "steps": args.steps, "dtype": "bf16"}
        document = {"machine": machine.describe(), "model": SHAPE, **workload, "results": rows}
        args.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def measure(model: Path, branches: int, prompt: int, steps: int) -> dict:
    """Median times of a decode step.

    Args:
        model: directory of a model that ends no text by itself.
        branches: that grow at a time.
        prompt: tokens they share.
        steps: decode steps to measure; some more come before.
    """
    warmup = 3
    engine = Engine.from_pretrained(model, kv_memory="1GiB", max_batch=branches, device="cpu")
    text = text_of(np.random.default_rng(0).integers(0, NUM_WORDS, prompt).tolist())
    begins: list[float] = []
    spent = {"model": [0.0], "sampling": [0.0]}

    def timed(name: str, function: Callable) -> Callable:
        def run(*args, **kwargs):
            started = time.perf_counter()
            if name == "model":
                begins.append(started)
                for seconds in spent.values():
                    seconds.append(0.0)
            out = function(*args, **kwargs)
            spent[name][-1] += time.perf_counter() - started
            return out

        return run

    paged = engine.policy.lane.model
    paged.forward = timed("model", paged.forward)  # type: ignore[method-assign]
    names = ("row_descriptor", "sample_tokens", "_logprobs")
    before = {name: getattr(generation, name) for name in names}
    for name, function in before.items():
        setattr(generation, name, timed("sampling", function))
    try:
        sampling = SamplingParams(max_tokens=warmup + steps + 2)
        engine.solve(text, SelfConsistency(branches, sampling))
    finally:
        for name, function in before.items():
            setattr(generation, name, function)
    # The first pass is the prompt's; the last step has no pass after it to end it.
    whole = np.diff(begins)[-steps:]
    model_s, sampling_s = (np.array(spent[name])[1:-1][-steps:] for name in ("model", "sampling"))
    host = whole - model_s - sampling_s
    return {
        "branches": branches,
        "model_s": float(np.median(model_s)),
        "sampling_s": float(np.median(sampling_s)),
        "host_s": float(np.median(host)),
        "host_share": float(np.median(host) / np.median(model_s)),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.host_cost", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--branches", type=int, nargs="+", default=[64, 256], help="branches that grow at a time")
    add("--prompt", type=int, default=256, help="tokens they share")
    add("--steps", type=int, default=15, help="decode steps to measure")
    add("--json", type=Path, metavar="FILE", help="store the results, e.g. under bench/results/")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
