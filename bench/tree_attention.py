"""Tree attention beside its floor, a model of its time, and other ways to compute it.

    python -m bench.tree_attention --device cpu --dtype both --trees quick
    python -m bench.tree_attention --device cuda --suite published draft --trees all

Every contender works on the same numbers and is checked against the definition before it is timed.
A peer's figure is its median over ours: above 1 ttc_kernels is faster.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console, JustifyMethod
from rich.table import Table

from . import machine
from .devices import make_clock
from .forest import Forest
from .measure import PeerResult, Settings, TreeResult, measure
from .peers import PEERS
from .roofline import Gauge, Roofline
from .tree import parse_tree
from .workloads import SUITES

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_BOTH = {"cpu": ("bf16", "fp32"), "cuda": ("bf16", "fp16")}
# Of the published trees: small, wide, two-level, two long branches, deep and many-rooted.
_QUICK = (0, 3, 5, 8, 9, 30)
_DEFAULT_HEADS = (32, 8)
# Of a model with such heads.
_LAYERS = 32


def main(argv: list[str] | None = None) -> int:
    """Run the command; see --help.

    Returns 1 if we disagreed with the definition, or on a CPU, where the peers are made here, any
    contender.
    """
    args = parser().parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch sees no CUDA device")
    peers = tuple(PEERS[device.type] if args.peers is None else args.peers)
    if unknown := set(peers) - set(PEERS[device.type]):
        raise SystemExit(f"--peers: on {device.type} there are {list(PEERS[device.type])}, "
                         f"got {sorted(unknown)}")  # fmt: skip
    chosen = [pair for suite in args.suite for pair in _choose(args.trees, suite)]
    dtypes = _BOTH[device.type] if args.dtype == "both" else (args.dtype,)
    console = Console()
    limits = {dtype: Roofline.measure(DTYPES[dtype], device) for dtype in dtypes}
    gauges = {dtype: Gauge(DTYPES[dtype], device, limit) for dtype, limit in limits.items()}
    for dtype, limit in limits.items():
        console.print(
            f"{dtype}: moves {limit.bytes_per_s / 1e9:.1f} GB/s, multiplies "
            f"{limit.flops_per_s / 1e9:.0f} GFLOP/s, launches in {limit.launch_s * 1e6:.1f} µs"
        )
    document = {
        "machine": machine.describe(device),
        "roofline": {dtype: asdict(limit) for dtype, limit in limits.items()},
        "head_dim": args.head_dim,
        "page_size": args.page_size,
        "rounds": args.rounds,
        "deterministic": args.deterministic,
    }
    clock = make_clock(device)
    results: list[TreeResult] = []
    for dtype in dtypes:
        settings = Settings(
            device,
            DTYPES[dtype],
            args.head_dim,
            args.page_size,
            args.rounds,
            peers,
            args.peer_gib,
            args.deterministic,
            args.backend,
        )
        for index, forest in chosen:
            for heads in args.heads or [forest.heads or _DEFAULT_HEADS]:
                result = TreeResult(
                    index,
                    forest.suite,
                    forest.name,
                    heads,
                    dtype,
                    forest.unique_tokens,
                    forest.path_tokens,
                )
                measure(result, forest, settings, gauges[dtype], clock)
                results.append(result)
                print(f"{len(results)}: {dtype} {forest.name} done", file=sys.stderr, flush=True)
                # After every workload, so that a run that is stopped leaves what it has.
                _store(args.json, document, results)
    # A table cut to a narrow terminal would lose its figures.
    Console(width=max(console.width, 220)).print(_table(results, peers))
    for result in results:
        outcomes: dict[str, TreeResult | PeerResult] = {"ours": result, **result.peers}
        for name, outcome in outcomes.items():
            if outcome.wrong:
                print(f"{name} on {result.tree}, {result.dtype}: {outcome.wrong}", file=sys.stderr)
    on_cpu = device.type == "cpu"
    return int(any(result.wrong or (on_cpu and result.has_wrong) for result in results))


def _store(path: Path | None, document: dict[str, object], results: list[TreeResult]) -> None:
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [asdict(result) for result in results]
        path.write_text(json.dumps({**document, "results": rows}, indent=1) + "\n")


def _table(results: list[TreeResult], peers: tuple[str, ...]) -> Table:
    table = Table(title="Tree attention: peers as their time over ours")
    columns = [
        "#",
        "tree",
        "heads",
        "dtype",
        "unique",
        "path",
        "ours µs (min..max)",
        f"plan µs (/{_LAYERS})",
    ]
    columns += ["bytes ÷ unique", "plan's model µs", "model µs", "floor µs", "of roofline"]
    for column in (*columns, *peers):
        justify: JustifyMethod = "left" if column == "tree" else "right"
        table.add_column(column, justify=justify, overflow="fold")
    for r in results:
        row = [str(r.index), r.tree, f"{r.heads[0]}/{r.heads[1]}", r.dtype]
        row += [str(r.unique_tokens), str(r.path_tokens)]
        if r.ours is None or r.plan_s is None or r.model_s is None or r.floor_s is None:
            row += [f"skipped: {r.skipped}" if r.skipped else "wrong", *[""] * 6]
        else:
            low, high = r.ours.low * 1e6, r.ours.high * 1e6
            row.append(f"{r.ours.median * 1e6:.1f} ({low:.1f}..{high:.1f})")
            modelled = float(str(r.plan_stats["modelled_us"]))
            # One plan serves all layers of a model: its time, and a layer's part of it.
            plan = f"{r.plan_s * 1e6:.0f} ({r.plan_s * 1e6 / _LAYERS:.1f})"
            row += [plan, f"{r.bytes_ratio:.2f}", f"{modelled:.1f}", f"{r.model_s * 1e6:.1f}"]
            row += [f"{r.floor_s * 1e6:.1f}", f"{r.roofline_fraction:.2f}"]
        table.add_row(*row, *(_cell(r.peers.get(name)) for name in peers))
    return table


def _cell(peer: PeerResult | None) -> str:
    if peer is None:
        return ""
    if peer.ratio is None:
        return "wrong" if peer.wrong else peer.skipped or "not timed"
    return f"{peer.ratio:.2f}"


def _choose(names: list[str], suite: str) -> list[tuple[int, Forest]]:
    """Trees by "all", "quick", index, or shape; a given shape has the index -1."""
    forests = SUITES[suite]()
    chosen: list[tuple[int, Forest]] = []
    for name in names:
        if name == "all" or (name == "quick" and suite != "published"):
            chosen += list(enumerate(forests))[:: 1 if name == "all" else 4]
        elif name == "quick":
            chosen += [(i, forests[i]) for i in _QUICK]
        elif "x" in name:
            chosen.append((-1, parse_tree(name)))
        elif name.isdecimal() and int(name) < len(forests):
            chosen.append((int(name), forests[int(name)]))
        else:
            raise SystemExit(
                f"--trees: expected all, quick, 0..{len(forests) - 1} or a shape like "
                f"1,2,64x8,256,32, got {name!r}"
            )
    return chosen


def heads_argument(text: str) -> tuple[int, int]:
    """Query heads and KV heads written as 32/8."""
    q_heads, kv_heads = (int(x) for x in text.split("/"))
    if kv_heads < 1 or q_heads % kv_heads:
        raise ValueError(text)
    return q_heads, kv_heads


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = argparse.ArgumentParser(prog="python -m bench.tree_attention", description=__doc__)
    result.formatter_class = argparse.RawDescriptionHelpFormatter
    add = result.add_argument
    add("--device", choices=list(PEERS), default="cpu")
    add("--dtype", choices=[*DTYPES, "both"], default="both", help="both: bf16 and fp32, or fp16")
    add("--suite", nargs="+", choices=list(SUITES), default=["published"])
    add("--trees", nargs="+", default=["quick"], help="all, quick, indices, or 1,2,64x8,256,32")
    add(
        "--heads",
        nargs="+",
        type=heads_argument,
        help="like 32/8, several allowed; default the suite's",
    )
    add("--head-dim", type=int, default=128)
    add("--page-size", type=int, default=16)
    add("--rounds", type=int, default=7, help="timed calls of each contender")
    names = [name for peers in PEERS.values() for name in peers]
    add("--peers", nargs="*", choices=dict.fromkeys(names), help="default all of the device")
    add("--peer-gib", type=float, default=4.0, help="most a peer's own layout may take")
    add("--deterministic", action="store_true", help="plan with fixed cuts")
    add("--backend", default="auto", help="of tree_attention")
    add("--threads", type=int, help="default: torch's")
    add("--json", type=Path, metavar="FILE", help="store the results, e.g. under bench/results/")
    return result


if __name__ == "__main__":
    raise SystemExit(main())
