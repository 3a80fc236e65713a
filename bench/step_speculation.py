"""Step-level speculation on the zoo: accuracy, and how much of the text the large model wrote.

python -m bench.step_speculation --model zoo:arith-large --draft zoo:arith-small
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ttc_runtime import Engine, Greedy, SamplingParams, Usage
from ttc_runtime.records import read_problems
from ttc_runtime.strategies import StepSpeculation

from . import machine


def run(engine: Engine, records: list[dict], strategy, label: str) -> dict:
    """One run over the problems: accuracy by difficulty, tokens of either model."""
    engine.clear_cache()
    results = engine.solve_all(records, strategy)
    usage = sum((result.usage for result in results), Usage())
    right: dict[str, list[bool]] = {}
    for record, result in zip(records, results, strict=True):
        right.setdefault(record["difficulty"], []).append(bool(result.correct))
    counted = {
        key: sum(result.info.get(key, 0) for result in results)
        for key in ("steps", "accepted", "draft_tokens", "target_tokens")
    }
    text = sum(len(branch.tokens) for result in results for branch in result.branches)
    target = counted["target_tokens"] if isinstance(strategy, StepSpeculation) else text
    row = {
        "label": label,
        "accuracy": {key: sum(values) / len(values) for key, values in right.items()},
        "mean_accuracy": sum(map(sum, right.values())) / len(records),
        **counted,
        "target_share": target / text,
        "generated": usage.generated,
        "scored": usage.scored,
        "gflops": usage.flops / 1e9,
    }
    by = " ".join(f"{key} {100 * value:.0f} %" for key, value in row["accuracy"].items())
    print(
        f"{label:28} {by}  steps kept {counted['accepted']}/{counted['steps']}  "
        f"of the text by the large model {100 * row['target_share']:.0f} %  "
        f"{row['gflops']:.0f} GFLOP",
        flush=True,
    )
    return row


def main(argv: list[str] | None = None) -> int:
    """Run the command; see --help."""
    args = parser().parse_args(argv)
    records = read_problems(args.problems).records
    records = records[:: max(1, len(records) // args.limit)][: args.limit]
    likeliest = SamplingParams(temperature=0.0)
    engine = Engine.from_pretrained(
        args.model, args.reward, policies={"draft": args.draft}, kv_memory="512MiB"
    )
    small = Engine.from_pretrained(args.draft, kv_memory="128MiB")
    rows = [
        run(small, records, Greedy(likeliest), "small model alone"),
        run(engine, records, Greedy(likeliest), "large model alone"),
    ]
    for judge in args.judges:
        for threshold in args.thresholds:
            strategy = StepSpeculation(judge=judge, threshold=threshold, sampling=likeliest)
            rows.append(run(engine, records, strategy, f"{judge} >= {threshold:g}"))
    if args.json:
        document = {"machine": machine.describe("cpu"), **vars(args), "results": rows}
        document["json"] = str(args.json)
        args.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    result = argparse.ArgumentParser(prog="python -m bench.step_speculation", description=__doc__)
    result.add_argument("--model", default="zoo:arith-large")
    result.add_argument("--draft", default="zoo:arith-small")
    result.add_argument("--reward", default="zoo:arith-prm")
    result.add_argument("--problems", default="zoo:arith-test")
    result.add_argument("--limit", type=int, default=300, help="problems, from all over the file")
    result.add_argument("--judges", nargs="+", default=["reward"])
    result.add_argument(
        "--thresholds", type=float, nargs="+", default=[0.1, 0.3, 0.5, 0.7, 0.8, 0.9]
    )
    result.add_argument("--json", type=Path, help="write the results to this file")
    return result


if __name__ == "__main__":
    raise SystemExit(main())
