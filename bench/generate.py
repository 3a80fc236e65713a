"""Best-of-N decoding beside transformers, llama.cpp and the model's matrix products alone.

    python -m bench.generate --device cpu --dtype bf16 --n 64 --prompt 1024 --new 128

The model has the shape of Qwen2-0.5B and random weights. Every contender runs in a process of its
own, one after the other, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from . import machine
from .contenders import Outcome, Workload
from .model_dir import SHAPE, write_model

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
# Module under bench/contenders, and what the table calls it.
CONTENDERS = {
    "ours": "ttc_runtime",
    "ours_auto": "ttc_runtime, not deterministic",
    "hf_generate": "transformers generate",
    "hf_loop": "transformers, prompt once",
    "llamacpp": "llama.cpp, shared sequences",
    "linears": "linear layers alone",
}


@dataclass
class Row:
    """One contender's figures; seconds and GiB. `not_installed` says why there are none.

    `total_s` is extrapolated from the mean step where fewer tokens than asked for were generated.
    """

    name: str
    new: int
    not_installed: str | None = None
    outcome: Outcome | None = None
    total_s: float = float("nan")
    tokens_per_s: float = float("nan")
    step_s: float = float("nan")
    step_first_quarter_s: float = float("nan")
    step_last_quarter_s: float = float("nan")
    greedy_equal: int | None = None


def main(argv: list[str] | None = None) -> int:
    """Run the command; see --help. Returns 1 if float32 texts differ."""
    args = _parser().parse_args(argv)
    console = Console()
    failed = False
    with tempfile.TemporaryDirectory() as directory:
        model = Path(directory) / "model"
        console.print(f"writing a random {args.dtype} model to {model}")
        write_model(model, _DTYPES[args.dtype])
        workload = Workload(
            model, args.dtype, args.n, args.prompt, args.new, SHAPE["vocab_size"], args.threads
        )
        rows = []
        for name in args.contenders:
            fewer = args.generate_new if name == "hf_generate" and args.generate_new else args.new
            rows.append(measure(name, replace(workload, new=fewer), args.new))
            console.print(_line(rows[-1]), highlight=False)
    expected = next((r.outcome.greedy for r in rows if r.outcome and r.name == "hf_loop"), None)
    for row in rows:
        if expected and row.outcome and row.outcome.greedy:
            row.greedy_equal = _leading_equal(row.outcome.greedy, expected)
            failed |= args.dtype == "fp32" and row.greedy_equal < len(expected)
    Console(width=max(console.width, 170)).print(_table(rows, args))
    if args.json:
        document = {
            "machine": {
                **machine.describe(),
                "threads": args.threads,
                "llama-cpp-python": machine.version("llama-cpp-python"),
            },
            "model": SHAPE,
            "workload": {k: getattr(args, k) for k in ("dtype", "n", "prompt", "new")},
            "results": [asdict(row) for row in rows],
        }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(document, indent=1) + "\n")
    if failed:
        print("generate: greedy texts must be equal in fp32, and are not", file=sys.stderr)
    return int(failed)


def measure(name: str, workload: Workload, new: int) -> Row:
    """Run one contender in a process of its own.

    Args:
        name: a key of `CONTENDERS`.
        workload: what it runs; `workload.new` may be below `new` to save time.
        new: number of new tokens that the total is given for.

    Raises:
        RuntimeError: if the contender's process fails.
    """
    with tempfile.TemporaryDirectory() as directory:
        workload_file = Path(directory) / "workload.json"
        workload.save(workload_file)
        command = [sys.executable, "-m", "bench.contenders", name, str(workload_file)]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=Path(__file__).parents[1]
        )
    if done.returncode:
        raise RuntimeError(
            f"measure: contender {name} must exit with 0, got {done.returncode}: "
            f"{done.stderr[-2000:]}"
        )
    fields = json.loads(done.stdout.splitlines()[-1])
    row = Row(name, workload.new)
    if "not_installed" in fields:
        row.not_installed = fields["not_installed"]
        return row
    row.outcome = outcome = Outcome(**fields)
    quarter = max(1, len(outcome.step_s) // 4)
    row.step_s = float(np.median(outcome.step_s))
    row.step_first_quarter_s = float(np.median(outcome.step_s[:quarter]))
    row.step_last_quarter_s = float(np.median(outcome.step_s[-quarter:]))
    if name != "linears":
        row.total_s = outcome.prefill_s + float(np.mean(outcome.step_s)) * (new - 1)
        row.tokens_per_s = workload.n * new / row.total_s
    return row


def _table(rows: list[Row], args: argparse.Namespace) -> Table:
    by_name = {row.name: row for row in rows}
    ours, linears = by_name.get("ours"), by_name.get("linears")
    table = Table(
        title=f"Best of {args.n}, prompt {args.prompt}, {args.new} new tokens, {args.dtype}, "
        f"{args.threads} threads",
        caption="* extrapolated from fewer steps; ratios are against ttc_runtime",
    )
    columns = ("prefill s", "step ms (first..last quarter)", "step / linears", "step / ours")
    table.add_column("contender")
    for column in (*columns, "tokens/s", "ours faster", "peak GiB", "greedy equal"):
        table.add_column(column, justify="right")
    for row in rows:
        title = CONTENDERS[row.name]
        if row.outcome is None:
            table.add_row(title, f"not installed: {row.not_installed}")
            continue
        mark = "*" if row.new < args.new and row is not linears else ""
        table.add_row(
            title,
            "" if row is linears else f"{row.outcome.prefill_s:.2f}",
            f"{row.step_s * 1e3:.1f} ({row.step_first_quarter_s * 1e3:.1f}"
            f"..{row.step_last_quarter_s * 1e3:.1f})",
            f"{row.step_s / linears.step_s:.2f}" if linears else "",
            f"{row.step_s / ours.step_s:.2f}" if ours else "",
            "" if row is linears else f"{row.tokens_per_s:.1f}{mark}",
            f"{ours.tokens_per_s / row.tokens_per_s:.2f}" if ours and row is not linears else "",
            f"{row.outcome.peak_gib:.2f}",
            "" if row.greedy_equal is None else f"{row.greedy_equal} of {len(row.outcome.greedy)}",
        )
    return table


def _line(row: Row) -> str:
    if row.outcome is None:
        return f"{CONTENDERS[row.name]}: not installed: {row.not_installed}"
    return (
        f"{CONTENDERS[row.name]}: prefill {row.outcome.prefill_s:.2f} s, "
        f"step {row.step_s * 1e3:.1f} ms"
    )


def _leading_equal(a: list[int], b: list[int]) -> int:
    unequal = [i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
    return unequal[0] if unequal else len(a)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.generate", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--device", choices=["cpu"], default="cpu")
    add("--dtype", choices=list(_DTYPES), default="bf16")
    add("--n", type=int, default=64, help="continuations")
    add("--prompt", type=int, default=1024, help="tokens in the prompt")
    add("--new", type=int, default=128, help="new tokens of each continuation")
    add("--generate-new", type=int, help="fewer new tokens for transformers generate alone")
    add("--contenders", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    add("--threads", type=int, default=torch.get_num_threads())
    add("--json", type=Path, metavar="FILE", help="store the results, e.g. under bench/results/")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
