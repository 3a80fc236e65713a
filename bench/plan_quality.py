"""How good the plans are by the planner's own model, without running them.

    python -m bench.plan_quality [--kind sm_90 avx512_bf16] [--heads 32 8]

For each published tree: the modelled time of the plan, of its floor, and of three other ways to
cut the same trie, all with the same constants, balanced over the same workers:

- two levels: what all rows share, and the rest of each row, as a fixed cascade does;
- per node: one rectangle for each node of the trie;
- FastTree: each child keeps its parent's keys apart or reads them again, whichever is cheaper by
  alpha * padded queries * keys + beta * padded keys * queries + gamma * queries (MLSys 2025).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from ttc_kernels import _host
from ttc_kernels._plan_costs import cost_model

from . import machine
from .forest import Forest
from .workloads import published_trees

PAGE_SIZE, HEAD_DIM, DTYPE = 16, 128, torch.bfloat16
WORKERS = {"sm_80": 216, "sm_90": 264, "sm_100": 296, "avx512_bf16": 2}
# FastTree's constants for its cost, and its tiles of queries and keys.
ALPHA, BETA, GAMMA, Q_TILES, K_TILE = 0.66, 0.33, 0.1, (16, 64), 32
Rectangle = tuple[int, int, bool]  # queries, keys, whether its results are partial


class Model:
    """The planner's constants for one kind of device and one pair of head counts."""

    def __init__(self, kind: str, heads: tuple[int, int]) -> None:
        cost = dict(cost_model(kind, DTYPE, DTYPE.itemsize, HEAD_DIM))
        self.heads, self.workers = heads, WORKERS[kind]
        self.launch, self.bytes_per_ns = cost["launch"], cost["bytes_per_ns"]
        self.flops_per_ns = cost["flops_per_ns"]
        self.options = _host.PlanOptions(
            page_size=PAGE_SIZE,
            num_q_heads=heads[0],
            num_kv_heads=heads[1],
            head_dim=HEAD_DIM,
            element_bytes=DTYPE.itemsize,
            window_left=-1,
            chunk=0,
            fold=False,
            num_workers=self.workers,
            max_tile_rows=cost.pop("max_tile_rows"),
            fixed_tile_rows=0,
            cost=cost,
        )

    def microseconds(self, rectangles: Iterable[Rectangle]) -> float:
        """Time of a cut if its work were spread evenly over all workers."""
        busy, tokens, pairs = 0.0, 0, 0
        for queries, keys, is_partial in rectangles:
            busy += self.options.item_cost(queries, keys, is_partial)
            tokens += keys
            pairs += queries * keys
        num_bytes = tokens * 2 * self.heads[1] * HEAD_DIM * DTYPE.itemsize
        flops = 4 * pairs * self.heads[0] * HEAD_DIM
        limits = (
            busy * self.heads[1] / self.workers,
            num_bytes / self.bytes_per_ns,
            flops / self.flops_per_ns,
        )
        return (self.launch + max(limits)) / 1e3


def fast_tree(nodes: np.ndarray, group: int) -> list[Rectangle]:
    """FastTree's cut of a trie whose rows have one query each."""
    queries = (nodes[:, 1] - nodes[:, 0]).tolist()
    # Keys of a node and those it took over; queries that still read the node on its own.
    keys = ((nodes[:, 3] - nodes[:, 2]) * PAGE_SIZE).tolist()
    left, above = list(queries), [0] * len(nodes)

    def cost(num_queries: int, num_keys: int) -> float:
        if num_queries == 0 or num_keys == 0:
            return 0.0
        small, large = (max(1, tile // group) for tile in Q_TILES)
        q_tile = large if num_queries > small else small
        padded_q = -(-num_queries // q_tile) * q_tile
        padded_k = -(-num_keys // K_TILE) * K_TILE
        return ALPHA * padded_q * num_keys + BETA * padded_k * num_queries

    for child, parent in enumerate(nodes[:, 4].tolist()):  # parents come first
        if parent < 0:
            continue
        n = queries[child]
        apart = cost(left[parent], keys[parent]) + cost(n, keys[child]) + GAMMA * n
        together = cost(left[parent] - n, keys[parent]) + cost(n, keys[parent] + keys[child])
        if together < apart:
            left[parent] -= n
            keys[child] += keys[parent]
            above[child] = above[parent] + 1
    has_child = set(nodes[:, 4].tolist())
    return [
        (left[v], keys[v], v in has_child or keys[v] < nodes[v][3] * PAGE_SIZE)
        for v in range(len(nodes))
        if left[v] and keys[v]
    ]


def cuts(model: Model, forest: Forest) -> dict[str, float]:
    """Modelled microseconds of each way to cut a forest, and its floor."""
    pages = forest.pages(PAGE_SIZE)
    lens = pages.kv_lens
    ones = np.ones_like(lens)
    buffers = []

    def allocate(rows: int, queries: int, ints: int, partials: int) -> np.ndarray:
        buffers.append(np.empty(ints, np.int32))
        return buffers[-1]

    arguments = (model.options, pages.block_tables, lens, ones)
    stats = _host.plan(*arguments, None, [], allocate)[1]
    ours, _, nodes, _ = _host.cut(*arguments)
    last = ours[:, 3] == lens.max()  # published trees are level: below these is nothing
    rectangles = [
        (int(r[1] - r[0]), int(r[3] - r[2]), bool(r[2] > 0 or not end))
        for r, end in zip(ours, last, strict=True)
    ]
    inner = set(nodes[:, 4].tolist())
    per_node = [
        (int(n[1] - n[0]), int((n[3] - n[2]) * PAGE_SIZE), bool(n[2] > 0 or v in inner))
        for v, n in enumerate(nodes)
        if n[3] > n[2]
    ]
    roots = nodes[nodes[:, 4] < 0]
    shared = int(roots[0][3]) * PAGE_SIZE if len(roots) == 1 and len(nodes) > 1 else 0
    two_levels = [(len(lens), shared, True)] if shared else []
    two_levels += [(1, int(n) - shared, shared > 0) for n in lens if n > shared]
    group = model.heads[0] // model.heads[1]
    return {
        "floor": stats["floor_us"],
        "plan": stats["modelled_us"],
        "cut": model.microseconds(rectangles),
        "two levels": model.microseconds(two_levels),
        "per node": model.microseconds(per_node),
        "FastTree": model.microseconds(fast_tree(nodes, group)),
        "reads": stats["kv_bytes"]
        / (stats["unique_kv_tokens"] * 2 * model.heads[1] * HEAD_DIM * DTYPE.itemsize),
    }


def main() -> None:
    """Print a table for each kind of device and write all of them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", nargs="+", choices=WORKERS, default=["sm_90", "avx512_bf16"])
    parser.add_argument("--heads", nargs=2, type=int, default=[32, 8])
    folder = Path(__file__).with_name("results")
    parser.add_argument("--out", type=Path, default=folder / "plan_quality.json")
    args = parser.parse_args()
    console, results = Console(width=140), []
    for kind in args.kind:
        model = Model(kind, (args.heads[0], args.heads[1]))
        title = f"{kind}, {args.heads[0]}/{args.heads[1]} heads, modelled us"
        names = ["floor", "plan", "cut", "two levels", "per node", "FastTree", "reads"]
        table = Table("suite", "tree", *names, title=title)
        for forest in published_trees():
            row = cuts(model, forest)
            results.append({"kind": kind, "suite": forest.suite, "tree": forest.name, **row})
            table.add_row(forest.suite, forest.name, *(f"{row[n]:.2f}" for n in names))
        console.print(table)
    console.print(
        "plan: balanced over the workers, partials included; cut and the columns after it: work "
        "spread evenly. reads: times each unique key is read."
    )
    facts = {"machine": machine.describe(), "heads": args.heads, "head_dim": HEAD_DIM}
    args.out.write_text(json.dumps({**facts, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
