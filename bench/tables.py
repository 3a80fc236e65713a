"""Writes the measured tables of README.md from the JSON files in bench/results.

    python -m bench.tables

Each table stands between `<!-- table: NAME -->` and `<!-- end -->`; what is between is replaced.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from .generate import CONTENDERS

_ROOT = Path(__file__).parent.parent
_RESULTS = _ROOT / "bench" / "results"


def main() -> int:
    """Rewrite README.md's tables for which there are results."""
    readme = _ROOT / "README.md"
    text = readme.read_text()
    for name, make in (("tree_attention_cpu", tree_attention), ("generate_cpu", generate)):
        files = sorted(_RESULTS.glob(f"{name}_*.json"))
        if files:
            body = "\n\n".join(make(json.loads(file.read_text())) for file in files)
            text = _replace(text, name, body)
    readme.write_text(text)
    return 0


def _replace(text: str, name: str, body: str) -> str:
    mark = f"<!-- table: {name} -->"
    pattern = re.compile(re.escape(mark) + r"(?:\n.*?<!-- end -->)?", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"README.md: there is no place for the table {name}")
    return pattern.sub(lambda _: f"{mark}\n\n{body}\n\n<!-- end -->", text)


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def tree_attention(document: dict[str, Any]) -> str:
    """Times of every published tree, and how many times longer each torch formulation takes."""
    rows, peers = [], sorted({p for r in document["results"] for p in r["peers"]})
    for result in document["results"]:
        if result["skipped"]:
            continue
        cells = [
            f"`{result['tree']}`",
            f"{result['unique_tokens']:,}",
            f"{result['path_tokens']:,}",
        ]
        cells.append(f"{result['ours']['median'] * 1e3:.2f}")
        cells.append(f"{result['floor_s'] * 1e3:.2f}")
        for peer in peers:
            ratio = result["peers"].get(peer, {}).get("ratio")
            cells.append("too large" if ratio is None else f"{ratio:.1f}×")
        rows.append(cells)
    head = ["tree (nodes × tokens, by level)", "unique", "path", "ms", "floor ms", *peers]
    first = document["results"][0]
    heads = "/".join(map(str, first["heads"]))
    return f"{first['dtype']}, {heads} heads, {_where(document)}\n\n" + _markdown(head, rows)


def generate(document: dict[str, Any]) -> str:
    """Step time, throughput and peak memory of every contender."""
    rows, ours = [], next(r for r in document["results"] if r["name"] == "ours")
    for result in document["results"]:
        if result["step_s"] != result["step_s"]:
            continue
        speed = result.get("tokens_per_s")
        has_speed = speed is not None and speed == speed
        rows.append(
            [
                CONTENDERS[result["name"]],
                f"{result['step_s'] * 1e3:.0f}",
                f"{result['step_s'] / ours['step_s']:.2f}×",
                f"{speed:.0f}" if has_speed else "",
                f"{ours['tokens_per_s'] / speed:.1f}×" if has_speed else "",
                f"{result['outcome']['peak_gib']:.2f}",
            ]
        )
    head = ["", "step ms", "÷ ours", "tokens/s", "ours faster", "peak GiB"]
    work = document["workload"]
    what = f"{work['dtype']}, N = {work['n']}, prompt {work['prompt']}, {work['new']} new tokens"
    return f"{what}, {_where(document)}\n\n" + _markdown(head, rows)


def _where(document: dict[str, Any]) -> str:
    machine = document["machine"]
    versions = machine["versions"]
    return f"{machine['cpu']}, {machine['threads']} threads, torch {versions['torch']}"


if __name__ == "__main__":
    raise SystemExit(main())
