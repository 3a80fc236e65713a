"""Tree searches replayed: pages, plans and attention through births, deaths and appends.

    python -m bench.replay --device cpu --dtype bf16 --search document wide

Every step goes through PagePool and the plan, whose time is measured: a new plan when branches are
born or die or reserved pages are used up, else an update of the lengths. Attention and its peers
are timed at steps spread evenly over the search.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from . import machine
from .devices import make_clock
from .peers import PEERS
from .replay_run import Replay, ReplayResult, replay
from .roofline import Roofline
from .search import Search
from .tree_attention import DTYPES, heads_argument
from .workloads import data


def main(argv: list[str] | None = None) -> int:
    """Run the command; see --help."""
    args = parser().parse_args(argv)
    device = torch.device(args.device)
    peers = ["sdpa", "cascade"] if args.peers is None else args.peers
    limit = Roofline.measure(DTYPES[args.dtype], device)
    clock = make_clock(device)
    results = []
    for name in args.search:
        search = Search(name, **{k: v for k, v in data("replay")[name].items()})
        steps = list(search.run(args.seed))[: args.max_steps]
        result = ReplayResult(name, args.dtype, args.heads)
        run = Replay(
            search,
            args.heads,
            args.head_dim,
            DTYPES[args.dtype],
            device,
            reserve=args.reserve,
            num_pages=args.num_pages,
            page_size=args.page_size,
            deterministic=args.deterministic,
            backend=args.backend,
        )
        max_bytes = int(args.peer_gib * 2**30)
        replay(run, steps, result, limit, clock, peers, args.samples, args.rounds, max_bytes)
        results.append(result)
    console = Console()
    Console(width=max(console.width, 200)).print(_table(results, peers, args.layers))
    if args.json:
        rows = [
            {**asdict(r), "plan_share": {str(n): r.plan_share(n) for n in (1, args.layers)}}
            for r in results
        ]
        document = {
            "machine": machine.describe(device),
            "roofline": asdict(limit),
            "options": {k: v for k, v in vars(args).items() if k != "json"},
            "results": rows,
        }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def _table(results: list[ReplayResult], peers: list[str], layers: int) -> Table:
    table = Table(title="Replayed searches: one layer, peers as their time / ours without planning")
    columns = ["search", "steps", "live", "births", "unique", "path", "pool µs", "new plans"]
    columns += ["new plan µs", "update µs", "plan µs/step", "attention µs", "model µs", "floor µs"]
    for column in (*columns, "plan share, 1 layer", f"{layers} layers", *peers):
        table.add_column(column, justify="right", overflow="fold")
    for r in results:
        low, mean, high = r.live
        row = [r.search, str(r.steps), f"{mean:.0f} ({low}..{high})", str(r.births)]
        row += [f"{r.unique_tokens:.0f}", f"{r.path_tokens:.0f}", f"{r.pool_s * 1e6:.0f}"]
        row += [str(r.new_plans), f"{r.new_plan_s * 1e6:.0f}", f"{r.update_s * 1e6:.1f}"]
        row += [f"{x * 1e6:.1f}" for x in (r.plan_s_per_step, r.attention_s, r.model_s, r.floor_s)]
        row += [f"{r.plan_share(1):.3f}", f"{r.plan_share(layers):.4f}"]
        for name in peers:
            outcome = r.peers.get(name, {})
            ratio = outcome.get("ratio")
            row.append(outcome.get("skipped", "") if ratio is None else f"{ratio:.2f}")
        table.add_row(*row)
    return table


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = argparse.ArgumentParser(prog="python -m bench.replay", description=__doc__)
    result.formatter_class = argparse.RawDescriptionHelpFormatter
    add = result.add_argument
    searches = [name for name in data("replay") if name != "_"]
    add("--device", choices=list(PEERS), default="cpu")
    add("--dtype", choices=list(DTYPES), default="bf16")
    add("--search", nargs="+", choices=searches, default=searches)
    add("--heads", type=heads_argument, default=(32, 8))
    add("--head-dim", type=int, default=128)
    add("--page-size", type=int, default=16)
    add("--num-pages", type=int, default=1 << 13)
    add("--reserve", type=int, default=64, help="tokens whose pages are taken ahead")
    add("--layers", type=int, default=32, help="layers that share a plan, for the plan's share")
    add("--seed", type=int, default=0)
    add("--max-steps", type=int, help="stop the searches there")
    add("--samples", type=int, default=12, help="steps at which attention is timed")
    add("--rounds", type=int, default=5, help="timed calls of each contender there")
    names = [name for peers in PEERS.values() for name in peers]
    add("--peers", nargs="*", choices=dict.fromkeys(names), help="default sdpa and cascade")
    add("--peer-gib", type=float, default=4.0, help="most a peer's own layout may take")
    add("--deterministic", action="store_true", help="plan with fixed cuts")
    add("--backend", default="auto", help="of tree_attention")
    add("--json", type=Path, metavar="FILE", help="store the results")
    return result


if __name__ == "__main__":
    raise SystemExit(main())
