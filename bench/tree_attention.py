"""Tree decode attention beside its floor and beside torch's ways to compute it.

    python -m bench.tree_attention --device cpu --dtype both --trees quick

Every contender works on the same numbers and is checked against ttc_kernels before it is timed.
A peer's figure is its median over ours: above 1 ttc_kernels is faster.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from rich.console import Console, JustifyMethod
from rich.table import Table

from . import machine, workloads
from .peers import PEERS, Ours, Run, Skip, make_problem
from .roofline import Roofline
from .timing import Timing, in_turn
from .workloads import Tree

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
# Largest difference from ours that a contender may have, on normal inputs.
_TOLERANCE = {"bf16": 3e-2, "fp32": 1e-4}
# Small, wide, two-level, two long branches, deep and many-rooted.
_QUICK = (0, 3, 5, 8, 9, 30)
# Of the free memory, for one tree's K and V in all their layouts.
_MEMORY_SHARE = 0.7


@dataclass
class PeerResult:
    """One peer on one tree: either why it was skipped, or its error, times and ratio to ours."""

    skipped: str | None = None
    max_abs_error: float | None = None
    seconds: Timing | None = None
    ratio: float | None = None


@dataclass
class TreeResult:
    """All figures of one tree. Seconds throughout; `skipped` says why there are none."""

    index: int
    suite: str
    tree: str
    heads: tuple[int, int]
    dtype: str
    unique_tokens: int
    path_tokens: int
    floor_s: float
    skipped: str | None = None
    ours: Timing | None = None
    plan_s: float | None = None
    roofline_fraction: float | None = None
    plan_stats: dict[str, object] = field(default_factory=dict)
    peers: dict[str, PeerResult] = field(default_factory=dict)


def main(argv: list[str] | None = None) -> int:
    """Run the command; see --help."""
    args = _parser().parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    trees = _choose(args.trees, workloads.SUITES[args.suite]())
    dtypes = list(DTYPES) if args.dtype == "both" else [args.dtype]
    console = Console()
    limits = {dtype: Roofline.measure(DTYPES[dtype]) for dtype in dtypes}
    for dtype, limit in limits.items():
        console.print(
            f"{dtype}: reads {limit.bytes_per_s / 1e9:.1f} GB/s, multiplies "
            f"{limit.flops_per_s / 1e9:.0f} GFLOP/s with {torch.get_num_threads()} threads"
        )
    results = []
    for heads in args.heads:
        for dtype in dtypes:
            for index, tree in trees:
                result = TreeResult(
                    index,
                    tree.suite,
                    tree.name,
                    heads,
                    dtype,
                    tree.unique_tokens,
                    tree.path_tokens,
                    limits[dtype].floor_s(tree, heads, args.head_dim, DTYPES[dtype].itemsize),
                )
                _measure(result, tree, args)
                results.append(result)
                print(f"{len(results)}: {dtype} {tree.name} done", file=sys.stderr, flush=True)
    # A table cut to a narrow terminal would lose its figures.
    Console(width=max(console.width, 200)).print(_table(results, args.peers))
    if args.json:
        document = {
            "machine": machine.describe(),
            "roofline": {dtype: asdict(limit) for dtype, limit in limits.items()},
            "head_dim": args.head_dim,
            "page_size": args.page_size,
            "rounds": args.rounds,
            "deterministic": args.deterministic,
            "results": [asdict(result) for result in results],
        }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def _measure(result: TreeResult, tree: Tree, args: argparse.Namespace) -> None:
    """Check and time all contenders on one tree, and fill in its result."""
    dtype = DTYPES[result.dtype]
    # Twice: the unique tokens, which some peers read as they are, and our pages.
    own_bytes = 2 * 2 * tree.unique_tokens * result.heads[1] * args.head_dim * dtype.itemsize
    free_bytes = int(_MEMORY_SHARE * machine.available_bytes()) - own_bytes
    if free_bytes < 0:
        result.skipped = f"needs {own_bytes / 2**30:.0f} GiB"
        return
    peer_bytes = min(int(args.peer_gib * 2**30), free_bytes // max(1, len(args.peers)))
    problem = make_problem(tree, result.heads, args.head_dim, dtype, peer_bytes)
    ours = Ours(problem, args.page_size, args.deterministic)
    contenders: dict[str, Run] = {"ours": ours}
    for name in args.peers:
        result.peers[name] = PeerResult()
        try:
            contenders[name] = PEERS[name](problem)
        except Skip as reason:
            result.peers[name].skipped = str(reason)
            continue
        result.peers[name].max_abs_error = _error(name, contenders[name], ours, result.dtype)
    timings = in_turn(contenders, args.rounds)
    result.ours = timings["ours"]
    result.plan_s, result.plan_stats = ours.plan_seconds(), ours.stats
    result.roofline_fraction = result.floor_s / result.ours.median
    for name, timing in timings.items():
        if name != "ours":
            result.peers[name].seconds = timing
            result.peers[name].ratio = timing.median / result.ours.median


def _error(name: str, peer: Run, ours: Run, dtype: str) -> float:
    error = (peer().float() - ours().float()).abs().max().item()
    # Written so that a NaN fails too.
    if not error <= _TOLERANCE[dtype]:
        raise RuntimeError(
            f"tree_attention: {name} must agree with ours within {_TOLERANCE[dtype]} in {dtype}, "
            f"got a difference of {error}"
        )
    return error


def _table(results: list[TreeResult], peers: list[str]) -> Table:
    table = Table(title="Tree decode attention: peers as median / our median (max abs error)")
    columns = ("#", "tree", "heads", "dtype", "unique", "path", "ours ms (min..max)", "plan µs")
    for column in (*columns, "floor ms", "of roofline", *peers):
        justify: JustifyMethod = "left" if column == "tree" else "right"
        table.add_column(column, justify=justify, overflow="fold")
    for r in results:
        row = [str(r.index), r.tree, f"{r.heads[0]}/{r.heads[1]}", r.dtype]
        row += [str(r.unique_tokens), str(r.path_tokens)]
        if r.ours is None or r.plan_s is None:
            table.add_row(*row, f"skipped: {r.skipped}")
            continue
        row.append(f"{r.ours.median * 1e3:.2f} ({r.ours.low * 1e3:.2f}..{r.ours.high * 1e3:.2f})")
        row += [f"{r.plan_s * 1e6:.0f}", f"{r.floor_s * 1e3:.2f}", f"{r.roofline_fraction:.2f}"]
        table.add_row(*row, *(_cell(r.peers[name]) for name in peers))
    return table


def _cell(peer: PeerResult) -> str:
    if peer.ratio is None:
        return f"skipped: {peer.skipped}"
    return f"{peer.ratio:.2f} ({peer.max_abs_error:.0e})"


def _choose(names: list[str], suite: list[Tree]) -> list[tuple[int, Tree]]:
    """Trees by "all", "quick", index, or shape; a given shape has the index -1."""
    chosen: list[tuple[int, Tree]] = []
    for name in names:
        if name == "all":
            chosen += enumerate(suite)
        elif name == "quick":
            chosen += [(i, suite[i]) for i in _QUICK if i < len(suite)]
        elif "x" in name:
            chosen.append((-1, workloads.parse_tree(name)))
        elif name.isdecimal() and int(name) < len(suite):
            chosen.append((int(name), suite[int(name)]))
        else:
            raise SystemExit(
                f"--trees: expected all, quick, 0..{len(suite) - 1} or a shape like "
                f"1,2,64x8,256,32, got {name!r}"
            )
    return chosen


def _heads(text: str) -> tuple[int, int]:
    q_heads, kv_heads = (int(x) for x in text.split("/"))
    if kv_heads < 1 or q_heads % kv_heads:
        raise ValueError(text)
    return q_heads, kv_heads


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.tree_attention", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--device", choices=["cpu"], default="cpu")
    add("--dtype", choices=[*DTYPES, "both"], default="both")
    add("--suite", choices=list(workloads.SUITES), default="published")
    add("--trees", nargs="+", default=["quick"], help="all, quick, indices, or 1,2,64x8,256,32")
    add("--heads", nargs="+", type=_heads, default=[(32, 8)], help="like 32/8; several allowed")
    add("--head-dim", type=int, default=128)
    add("--page-size", type=int, default=16)
    add("--rounds", type=int, default=7, help="timed calls of each contender")
    add("--peers", nargs="*", choices=list(PEERS), default=list(PEERS))
    add("--peer-gib", type=float, default=4.0, help="most a peer's own layout may take")
    add("--deterministic", action="store_true", help="plan with fixed cuts")
    add("--threads", type=int, help="default: torch's")
    add("--json", type=Path, metavar="FILE", help="store the results, e.g. under bench/results/")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
