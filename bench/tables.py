"""Writes the measured tables of README.md and docs/measured.md from the files in bench/results.

    python -m bench.tables

Each table stands between `<!-- table: NAME -->` and `<!-- end -->`; what is between is replaced.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .generate import CONTENDERS
from .peers import OWN
from .verify import CALL, LOGPROBS, READ

_ROOT = Path(__file__).parent.parent
_RESULTS = _ROOT / "bench" / "results"


def main() -> int:
    """Rewrite the tables for which there are results."""
    _fill("README.md", "tree_attention_cpu", summary)
    _fill("README.md", "generate_cpu", generate)
    _fill("docs/measured.md", "tree_attention_cpu", tree_attention)
    _fill("docs/measured.md", "replay_cpu", replay)
    _fill("docs/measured.md", "host_cost", host_cost)
    _fill("docs/measured.md", "verify_cpu", verify)
    _fill("docs/measured.md", "step_score_cpu", step_score)
    return 0


def _fill(page: str, name: str, make: Callable[[dict[str, Any]], str]) -> None:
    files = sorted(_RESULTS.glob(f"{name}_*.json"))
    if files:
        body = "\n\n".join(make(json.loads(file.read_text())) for file in files)
        path = _ROOT / page
        path.write_text(_replace(path.read_text(), name, body))


def summary(document: dict[str, Any]) -> str:
    """Ours beside the best torch formulation of each tree, over all trees."""
    results = [r for r in document["results"] if not r["skipped"]]
    ratios = [
        min(p["ratio"] for name, p in r["peers"].items() if name not in OWN and p["ratio"])
        for r in results
    ]
    slowest, fastest = min(ratios), max(ratios)
    roofline = [r["roofline_fraction"] for r in results]
    return (
        f"**{results[0]['dtype']}**, {len(results)} published trees, {_where(document)}: "
        f"{np.median(ratios):.1f} times as fast as the best torch formulation of the same tree "
        f"(median; {slowest:.1f} to {fastest:.1f}); {np.median(roofline):.2f} of the roofline "
        f"({min(roofline):.2f} to {max(roofline):.2f})."
    )


def _replace(text: str, name: str, body: str) -> str:
    mark = f"<!-- table: {name} -->"
    pattern = re.compile(re.escape(mark) + r"(?:\n.*?<!-- end -->)?", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"there is no place for the table {name}")
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
        cells.append(f"{result['floor_s'] * 1e3:.2f} ({result['roofline_fraction']:.2f})")
        for peer in peers:
            ratio = result["peers"].get(peer, {}).get("ratio")
            cells.append("too large" if ratio is None else f"{ratio:.1f}×")
        rows.append(cells)
    head = ["tree (nodes × tokens, by level)", "unique", "path", "ms", "floor ms", *peers]
    first = document["results"][0]
    heads = "/".join(map(str, first["heads"]))
    return f"{first['dtype']}, {heads} heads, {_where(document)}\n\n" + _markdown(head, rows)


def replay(document: dict[str, Any]) -> str:
    """Searches from prompt to end: attention, planning, and the peers on the same pages."""
    rows, peers = [], sorted({p for r in document["results"] for p in r["peers"]})
    for r in document["results"]:
        low, mean, high = r["live"]
        cells = [r["search"], f"{r['steps']:,}", f"{mean:.0f} ({low} to {high})"]
        cells += [f"{r['unique_tokens']:,.0f}", f"{r['path_tokens']:,.0f}"]
        cells += [f"{r['attention_s'] * 1e3:.2f}", f"{r['floor_s'] * 1e3:.2f}"]
        cells += [f"{r[name] * 1e6:.0f}" for name in ("new_plan_s", "update_s", "plan_s_per_step")]
        cells.append(", ".join(f"{100 * share:.1f} %" for share in r["plan_share"].values()))
        ratios = [r["peers"].get(peer, {}).get("ratio") for peer in peers]
        cells += ["" if ratio is None else f"{ratio:.1f}×" for ratio in ratios]
        rows.append(cells)
    head = ["search", "steps", "live", "unique", "path", "attention ms", "floor ms"]
    head += ["new plan µs", "update µs", "planning µs a step"]
    head += ["planning, 1 layer and " + max(document["results"][0]["plan_share"], key=int)]
    first = document["results"][0]
    heads = "/".join(map(str, first["heads"]))
    where = _where(document)
    return f"{first['dtype']}, {heads} heads, {where}\n\n" + _markdown([*head, *peers], rows)


def generate(document: dict[str, Any]) -> str:
    """Step time, throughput and peak memory of every contender."""
    rows, ours = [], next(r for r in document["results"] if r["name"] == "ours")
    for result in document["results"]:
        if result["step_s"] != result["step_s"]:
            continue
        speed = result.get("tokens_per_s")
        has_speed = speed is not None and speed == speed
        mark = "\\*" if result["new"] < document["workload"]["new"] else ""
        rows.append(
            [
                CONTENDERS[result["name"]],
                f"{result['step_s'] * 1e3:.0f}",
                f"{result['step_s'] / ours['step_s']:.2f}×",
                f"{speed:.0f}{mark}" if has_speed else "",
                f"{ours['tokens_per_s'] / speed:.1f}×" if has_speed else "",
                f"{result['outcome']['peak_gib']:.2f}",
            ]
        )
    head = ["", "step ms", "÷ ours", "tokens/s", "ours faster", "peak GiB"]
    work = document["workload"]
    what = f"{work['dtype']}, N = {work['n']}, prompt {work['prompt']}, {work['new']} new tokens"
    note = "\n\n\\* extrapolated from fewer steps" if any("*" in r[3] for r in rows) else ""
    return f"{what}, {_where(document)}\n\n" + _markdown(head, rows) + note


def host_cost(document: dict[str, Any]) -> str:
    """What a decode step of the runtime costs beside the model."""
    rows = []
    for result in document["results"]:
        times = [f"{1e3 * result[key]:.1f}" for key in ("model_s", "sampling_s", "host_s")]
        rows.append([str(result["branches"]), *times, f"{100 * result['host_share']:.1f} %"])
    head = ["branches", "model ms", "sampling ms", "host ms", "host / model"]
    machine = document["machine"]
    where = f"{machine['cpu']}, torch {machine['versions']['torch']}"
    return f"{document['dtype']}, prompt {document['prompt']}, {where}\n\n" + _markdown(head, rows)


def verify(document: dict[str, Any]) -> str:
    """Verification of drafts as multiples of one read of the rows that it needs."""
    machine = document["machine"]
    where = f"{machine['cpu']}, {document['threads']} threads, torch {machine['versions']['torch']}"
    title = f"{document['results'][0]['dtype']}, {where}"
    alone = f"{title}\n\n{_verify_table(document, '')}"
    return f"{alone}\n\n{title}{LOGPROBS}\n\n{_verify_table(document, LOGPROBS)}"


def _verify_table(document: dict[str, Any], suffix: str) -> str:
    rows = []
    ours = [name for name in document["results"][0]["needed"] if name.startswith("verify_")]
    names = [name for name in ours if name.endswith(LOGPROBS) == (suffix == LOGPROBS)]
    for result in document["results"]:
        median = {name: timing["median"] for name, timing in result["timings"].items()}
        most = max(result["needed"].values())
        read = median[READ.format(most)] / most  # of one row
        cells = [f"{result['vocab_size']:,}", str(result["rows"]), f"{1e6 * read:.1f}"]
        cells.append(f"{1e6 * median[CALL]:.0f}")
        for name in names:
            cells.append(f"{1e3 * median[name]:.2f} ({result['of_read'][name]:.2f})")
        sampled = {n.removeprefix("torch, "): t for n, t in median.items() if n.startswith("torch")}
        faster = [t / median[f"verify_sampled, {n}{suffix}"] for n, t in sampled.items()]
        cells.append(", ".join(f"{ratio:.0f}×" for ratio in faster))
        rows.append(cells)
    rules = [name.removesuffix(suffix) for name in names]
    head = ["vocabulary", "rows", "read of a row µs", "call µs", *rules, "torch ÷ sampled"]
    return _markdown(head, rows)


def step_score(document: dict[str, Any]) -> str:
    """Time of every head over its floor, by hidden size and number of steps."""
    cases = {(r["head"], r["hidden"], r["steps"]): r for r in document["heads"]}
    steps = sorted({key[2] for key in cases})
    rows = []
    for head, hidden in dict.fromkeys(key[:2] for key in cases):
        of_steps = [cases.get((head, hidden, n)) for n in steps]
        cells = [
            f"{1e3 * r['score_steps_s']:.2f} ({r['of_floor']:.2f})" if r else "" for r in of_steps
        ]
        rows.append([head, f"{hidden:,}", *cells])
    ratios = [r["of_floor"] for r in document["heads"]]
    calls = [1e3 * r["call_s"] for r in document["heads"]]
    within = sum(ratio <= 1.3 for ratio in ratios)
    read, apart = ([r[k] / 1e9 for r in document["heads"]] for k in ("bytes_per_s", "rows_per_s"))
    text = (
        f"{document['dtype']}, {_where(document)}; ms (times the floor). "
        f"{min(read):.0f} to {max(read):.0f} GB/s in one read, {min(apart):.0f} to "
        f"{max(apart):.0f} by rows that lie apart, {document['flops_per_s'] / 1e9:.0f} GFLOP/s; "
        f"a call without rows took {min(calls):.2f} to {max(calls):.2f} ms. Within 1.3 of the "
        f"floor: {within} of {len(ratios)}; median {np.median(ratios):.2f}, "
        f"largest {max(ratios):.2f}."
    )
    head_row = ["head", "hidden", *(f"{n:,} step" + "s" * (n > 1) for n in steps)]
    return text + "\n\n" + _markdown(head_row, rows)


def _where(document: dict[str, Any]) -> str:
    machine = document["machine"]
    versions = machine["versions"]
    return f"{machine['cpu']}, {machine['threads']} threads, torch {versions['torch']}"


if __name__ == "__main__":
    raise SystemExit(main())
