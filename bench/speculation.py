"""Speculative decoding on the zoo: accepted drafts, passes to a token, accuracy and time.

python -m bench.speculation --model zoo:arith-large --draft zoo:arith-draft --max-batch 1 100
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from ttc_runtime import Budget, Engine, SamplingParams, Usage
from ttc_runtime.records import read_problems
from ttc_runtime.strategies import make_strategy

from . import machine


def run(engine: Engine, records: list[dict], strategy: str, n: int, seed: int) -> dict:
    """One run over the problems: text, figures."""
    plan = make_strategy(strategy, n, SamplingParams())
    started = time.perf_counter()
    results = engine.solve_all(records, plan, Budget(), seed)
    seconds = time.perf_counter() - started
    usage = sum((result.usage for result in results), Usage())
    return {
        "texts": [[branch.tokens for branch in result.branches] for result in results],
        "correct": sum(bool(result.correct) for result in results),
        "problems": len(results),
        "generated": usage.generated,
        "drafted": usage.drafted,
        "accepted": usage.accepted,
        "acceptance_length": usage.acceptance_length,
        "passes_per_token": 1 - usage.passes_saved / usage.generated,
        "tokens_run": usage.run,
        "seconds": seconds,
        "phases": usage.seconds,
    }


def make_engine(args, kind: str, max_batch: int) -> Engine:
    drafts = {} if kind.startswith(("none", "ngram")) else {"draft": args.draft}
    return Engine.from_pretrained(
        args.model,
        reward=args.reward,
        speculate=kind,
        kv_memory="512MiB",
        max_batch=max_batch,
        **drafts,
    )


def compare(engines: dict[str, Engine], records: list[dict], strategy: str, args) -> list[dict]:
    """The fastest of some rounds with each engine, in turn: the machine's moods fall on all."""
    best: dict[str, dict] = {}
    for i in range(args.rounds):
        for kind in list(engines)[:: 1 if i % 2 == 0 else -1]:
            engines[kind].clear_cache()
            found = run(engines[kind], records, strategy, args.n, args.seed)
            if kind not in best or found["seconds"] < best[kind]["seconds"]:
                best[kind] = found
    plain, rows = best["none"]["texts"], []
    for kind, row in best.items():
        same = row.pop("texts") == plain
        rows.append({"strategy": strategy, "speculate": kind, "same_text": same, **row})
        print(
            f"{engines[kind].max_batch:4} {strategy:12} {kind:9} same text: {same!s:5} "
            f"right {row['correct']}/{row['problems']}  "
            f"tokens a verification {row['acceptance_length']:.2f}  "
            f"passes a token {row['passes_per_token']:.2f}  {row['seconds']:.2f} s",
            flush=True,
        )
    return rows


def main(argv: list[str] | None = None) -> int:
    """Run the command; see --help. Returns 1 if a draft changed a text."""
    args = parser().parse_args(argv)
    records = read_problems(args.problems).records
    records = records[:: max(1, len(records) // args.limit)][: args.limit]
    rows = []
    for max_batch in args.max_batch:
        engines = {kind: make_engine(args, kind, max_batch) for kind in ["none", *args.speculate]}
        for strategy in args.strategies:
            rows += [
                {"max_batch": max_batch, **row} for row in compare(engines, records, strategy, args)
            ]
    if args.json:
        document = {"machine": machine.describe("cpu"), **vars(args), "results": rows}
        document["json"] = str(args.json)
        args.json.write_text(json.dumps(document, indent=1) + "\n")
    return int(not all(row["same_text"] for row in rows))


def parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    result = argparse.ArgumentParser(prog="python -m bench.speculation", description=__doc__)
    result.add_argument("--model", default="zoo:arith-large")
    result.add_argument("--draft", default="zoo:arith-draft")
    result.add_argument("--reward", default="zoo:arith-prm")
    result.add_argument("--problems", default="zoo:arith-test")
    result.add_argument("--limit", type=int, default=100, help="problems, from all over the file")
    result.add_argument("--max-batch", type=int, nargs="+", default=[1, 100], help="as of Engine")
    result.add_argument("--strategies", nargs="+", default=["greedy", "best_of_n"])
    result.add_argument("--speculate", nargs="+", default=["chain:6", "tree:16", "ngram:6"])
    result.add_argument("--n", type=int, default=4)
    result.add_argument("--seed", type=int, default=0)
    result.add_argument("--rounds", type=int, default=3, help="the fastest counts")
    result.add_argument("--json", type=Path, help="write the results to this file")
    return result


if __name__ == "__main__":
    raise SystemExit(main())
