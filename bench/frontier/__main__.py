"""Measures the frontier of test-time compute on the zoo and writes docs/frontier.md.

    python -m bench.frontier                  # all of it: about an hour on two cores
    python -m bench.frontier --page           # only the page, from bench/results/frontier
    python -m bench.frontier --limit 2 --out /tmp/frontier      # a small one, elsewhere

Samples and searches are kept in build/frontier, a line a problem: a run that was interrupted goes
on where it stopped. The figures are in bench/results/frontier, a file a part.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console

from .. import machine
from . import optimal, parts, search, voting
from .page import write_page
from .samples import draw, load

ROOT = Path(__file__).parents[2]
AGGREGATION = "min"  # the reward model's own


def main(argv: list[str] | None = None) -> int:
    """Run the command; see --help."""
    args = _parser().parse_args(argv)
    console = Console(highlight=False)
    results = args.out / "bench" / "results" / "frontier"
    if not args.page:
        measure(args.work, results, args.seed, args.limit, console.print)
    write_page(results, args.out / "docs")
    console.print(f"wrote {args.out / 'docs' / 'frontier.md'}")
    return 0


def measure(work: Path, results: Path, seed: int, limit: int | None, say) -> None:
    """Draw what is missing, run what is missing, and write every part's figures.

    Args:
        work: directory of samples and searches.
        results: directory of the parts' figures.
        seed: of all randomness.
        limit: only so many problems of each difficulty.
        say: takes a line of text about what is done.
    """
    file = work / "samples_arith-test.jsonl"
    draw("arith-test", file, seed, limit)
    test = load("arith-test", file, seed, limit)
    say(f"samples: {len(test)} problems")

    def run(name: str, problems: str = "arith-test") -> list[dict]:
        return search.run(name, problems, work / "runs", seed, limit, say)

    runs = {name: run(name) for name in search.RUNS}
    more = {name: run(name, "more-hard") for name in search.HARD}
    trials = {label: run(f"trial {label}") for label in search.TRIALS}
    routed = {name: run(name) for name in search.ROUTED}
    found = {
        "a": parts.searches(runs, more, test, AGGREGATION),
        "b": voting.votes(test, AGGREGATION, say),
        "c": voting.aggregations(test, say),
        "d": optimal.compute_optimal(trials, routed, test, AGGREGATION, say),
        "e": parts.matched(runs, test, AGGREGATION),
        "f": parts.forcing(runs),
        "g": parts.rejection(runs, test, AGGREGATION),
    }
    results.mkdir(parents=True, exist_ok=True)
    for part, figures in found.items():
        document = {
            "machine": machine.describe(),
            "seed": seed,
            "problems": len(test),
            **figures,
        }
        (results / f"{part}.json").write_text(json.dumps(document, indent=1) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.frontier", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--seed", type=int, default=0, help="of all randomness")
    add("--limit", type=int, help="only so many problems of each difficulty")
    add("--page", action="store_true", help="measure nothing, write the page again")
    add("--work", type=Path, default=ROOT / "build" / "frontier", help="samples and searches")
    add("--out", type=Path, default=ROOT, help="where docs/ and bench/results/ are written")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
