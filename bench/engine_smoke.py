"""The engine on a device: best-of-N on the shipped problems, beside the same on the CPU.

    python -m bench.engine_smoke --device cuda

Fails if a problem fails, a token is computed twice, or the device solves far fewer problems than
the CPU. Texts need not agree: logits of two devices differ in their last bits.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from ttc_runtime import BestOfN, Engine
from ttc_runtime.records import read_problems
from ttc_runtime.report import total_usage

from . import machine

# Solved problems that the device may fall short of the CPU, as a share of all.
_TOLERANCE = 0.25


@dataclass
class Solved:
    """One device's run. Seconds of wall clock, the first batch of work included."""

    device: str
    problems: int
    failed: int
    correct: int
    generated: int
    scored: int
    recomputed: int
    seconds: float
    texts: list[str]


def solve(device: str, limit: int, n: int, dtype: str = "auto") -> Solved:
    """Solve the first problems of the shipped test set by best-of-N.

    Args:
        device: of the engine.
        limit: number of problems.
        n: completions of each.
        dtype: of the engine.
    """
    engine = Engine.from_pretrained(
        "zoo:arith-small", reward="zoo:arith-prm", device=device, dtype=dtype, kv_memory="256MiB"
    )
    records = read_problems("zoo:arith-test").records[:limit]
    start = time.perf_counter()
    results = list(engine.stream(records, BestOfN(n), seed=0))
    seconds = time.perf_counter() - start
    usage = total_usage(results)
    return Solved(
        device,
        len(results),
        sum(result.error is not None for result in results),
        sum(bool(result.correct) for result in results),
        usage.generated,
        usage.scored,
        usage.recomputed,
        seconds,
        [result.text for result in sorted(results, key=lambda r: r.index)],
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command; see --help. Returns 1 if the engine is not in order."""
    args = parser().parse_args(argv)
    runs = []
    for name in dict.fromkeys((args.device, "cpu")):
        run = solve(name, args.limit, args.n)
        runs.append(run)
        print(
            f"{run.device}: {run.correct} of {run.problems} right, {run.failed} failed, "
            f"{run.generated} tokens generated, {run.scored} scored, {run.recomputed} recomputed, "
            f"{run.generated / run.seconds:.0f} tokens/s",
            flush=True,
        )
    here, reference = runs[0], runs[-1]
    same = sum(a == b for a, b in zip(here.texts, reference.texts, strict=True))
    print(f"{same} of {len(here.texts)} chosen texts are those of the CPU")
    if args.json:
        device = torch.device("cpu" if args.device == "cpu" else "cuda")
        document = {"machine": machine.describe(device), "runs": [asdict(run) for run in runs]}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(document, indent=1) + "\n")
    short = reference.correct - here.correct > _TOLERANCE * here.problems
    return int(short or here.failed > 0 or here.recomputed > 0)


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = argparse.ArgumentParser(prog="python -m bench.engine_smoke", description=__doc__)
    result.formatter_class = argparse.RawDescriptionHelpFormatter
    result.add_argument("--device", default="cpu", help="cpu, cuda")
    result.add_argument("--limit", type=int, default=8, help="number of problems")
    result.add_argument("--n", type=int, default=4, help="completions of each")
    result.add_argument("--json", type=Path, metavar="FILE", help="store the results")
    return result


if __name__ == "__main__":
    raise SystemExit(main())
