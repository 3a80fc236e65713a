"""The workloads by suite: published trees, and shapes of searches, drafts and scoring."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .forest import Forest
from .tree import Tree

WORKLOADS_FILE = Path(__file__).with_name("workloads.json")


def data(name: str) -> Any:
    """One entry of workloads.json."""
    return json.loads(WORKLOADS_FILE.read_text())[name]


def published_trees() -> list[Forest]:
    """The trees of the published kernel benchmarks, controls without sharing included."""
    return [Tree(r["suite"], r["nodes_per_level"], r["tokens_per_node"]) for r in data("trees")]


def unit_test_trees() -> list[Forest]:
    """Trees of PAT's unit tests: up to nine levels, forests, one table by hand."""
    trees: list[Forest] = [
        Tree("unit_tests", r["nodes_per_level"], r["tokens_per_node"]) for r in data("unit_tests")
    ]
    # Block tables [[0,1,5],[0,2,6],[3,4,7]] of 32-token pages at length 33 fork at a page's end.
    return [*trees, Forest("unit_tests", "by hand", (-1, 0, 0, -1), (32, 1, 1, 33))]


def few_shot_trees() -> list[Forest]:
    """Few-shot prompting: a long prompt, branches at several stages of their growth."""
    d = data("few_shot")
    return [
        Tree("few_shot", (1, width), (d["prompt"], generated))
        for width in d["width"]
        for generated in d["generated"]
    ]


def draft_trees() -> list[Forest]:
    """Medusa draft trees to verify, over prefixes and batch sizes; node 0 is the last token."""
    d = data("draft_trees")
    forests = []
    for size, counts in d["medusa_depth_counts"].items():
        parents = preorder_draft([1, *counts])
        for prefix in d["prefix"]:
            for batch in d["batch"]:
                nodes = [(-1, prefix)] * batch + [(i, len(parents)) for i in range(batch)]
                up, sizes = zip(*nodes, strict=True)
                name = f"{size} drafts, prefix {prefix}, batch {batch}"
                q_lens = (len(parents),) * batch
                forests.append(Forest("draft", name, up, sizes, q_lens, tuple(parents)))
    return forests


def preorder_draft(counts: Sequence[int]) -> list[int]:
    """Parents of a draft tree with so many nodes on each level, numbered in preorder.

    Child j of a level of n hangs from parent floor(j * m / n) of the level of m above; the levels
    may get narrower.
    """
    children: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for level, (above, here) in enumerate(itertools.pairwise(counts)):
        for j in range(here):
            children.setdefault((level, j * above // here), []).append((level + 1, j))
    parents: list[int] = []

    def visit(node: tuple[int, int], parent: int) -> None:
        number = len(parents)
        parents.append(parent)
        for child in children.get(node, ()):
            visit(child, number)

    for root in range(counts[0]):
        visit((0, root), -1)
    return parents


def beam_trees() -> list[Forest]:
    """The beam sweep: many beams with a short suffix over one prompt."""
    d = data("beam_sweep")
    return [
        Tree("beam", (1, d["beams"]), (prefix, d["suffix"]), tuple(d["heads"]))
        for prefix in d["prefix"]
    ]


def single_kv_head_trees() -> list[Forest]:
    """Eight query heads on one KV head, where sharing saves little: a known loss of cascades."""
    d = data("controls")["single_kv_head_gqa8"]
    return [
        Tree("single_kv_head", (1, d["batch"]), (d["prefix"], generated), tuple(d["heads"]))
        for generated in d["generated"]
    ]


def unshared_trees() -> list[Forest]:
    """Controls in which no token is shared."""
    return [Tree("no_sharing", (n,), (c,)) for n, c in data("controls")["no_sharing"]]


def extend_forests() -> list[Forest]:
    """Scoring one step of every live branch: ragged queries at the end of a beam search's tree."""
    d = data("search_extend")
    forests = []
    low, high = d["step_tokens"]
    for width, prefix, depth in itertools.product(d["width"], d["prefix"], d["depth"]):
        rng = np.random.default_rng([width, prefix, depth])
        levels = _surviving_parents(rng, width, depth)
        parents, sizes, begin = [-1], [prefix], 0
        for level in levels:
            first = len(parents)
            parents += [begin + parent for parent in level]
            sizes += rng.integers(low, high, len(level), endpoint=True).tolist()
            begin = first
        name = f"{width} branches, prefix {prefix}, step {depth}"
        q_lens = tuple(sizes[-width:])
        forests.append(Forest("extend", name, tuple(parents), tuple(sizes), q_lens))
    return forests


def _surviving_parents(rng: np.random.Generator, width: int, depth: int) -> list[list[int]]:
    """Per step the parent of each node that still has a live branch below it.

    A quarter of the branches of a step is kept and grows four children each, so going up, nodes
    merge: each level's nodes choose parents among a quarter of the width.
    """
    levels: list[list[int]] = []
    count = width
    for step in range(depth, 0, -1):
        choices = 1 if step == 1 else max(1, width // 4)
        picks = np.sort(rng.integers(0, choices, count)) if step < depth else np.arange(count) // 4
        kept, parents = np.unique(np.minimum(picks, choices - 1), return_inverse=True)
        levels.append(parents.tolist())
        count = len(kept)
    return levels[::-1]


def adversarial_forests() -> list[Forest]:
    """Shapes that break planners: very long, very short, empty, lopsided, ragged."""
    d = data("adversarial")
    name = "adversarial"
    forests: list[Forest] = [
        Tree(name, r["nodes_per_level"], r["tokens_per_node"]) for r in d["trees"]
    ]
    n, tail = d["comb"]["length"], d["comb"]["tail"]
    # A chain of one-token nodes with a leaf at each; leaves in depth-first order, deepest last.
    chain = [-1, *(2 * i for i in range(n - 1))]
    parents = [x for i, up in enumerate(chain) for x in (up, 2 * i)]
    forests.append(Forest(name, f"chain of {n} one-token nodes", tuple(parents), (1, tail) * n))
    n = d["duplicates"]["queries"]
    sizes = (d["duplicates"]["prefix"], *([0] * n))
    forests.append(Forest(name, f"{n} queries on one node", (-1, *([0] * n)), sizes))
    n, long, short = (d["lopsided"][key] for key in ("branches", "long", "short"))
    sizes = (d["lopsided"]["prefix"], long, *([short] * (n - 1)))
    forests.append(Forest(name, f"one branch of {long}", (-1, *([0] * n)), sizes))
    empty = Forest(name, "empty nodes", (-1, 0, 1, 1, 0), (d["empty"], 0, 5, 0, 20))
    return [*forests, empty, random_forest(d["random"]["rows"], d["random"]["seed"])]


def random_forest(rows: int, seed: int) -> Forest:
    """Several roots, ragged depth and sizes, as a tree search without levels leaves them."""
    rng = np.random.default_rng(seed)
    parents: list[int] = []
    sizes: list[int] = []

    def grow(parent: int, leaves: int) -> None:
        node = len(parents)
        parents.append(parent)
        sizes.append(int(rng.geometric(0.01)))
        if leaves > 1:
            cuts = np.sort(rng.choice(leaves - 1, min(leaves - 1, int(rng.integers(1, 5))), False))
            for part in np.diff([0, *(cuts + 1), leaves]):
                grow(node, int(part))

    for part in (rows - rows // 4, rows // 4):
        grow(-1, part)
    return Forest("adversarial", f"random, {rows} rows", tuple(parents), tuple(sizes))


SUITES: dict[str, Callable[[], list[Forest]]] = {
    "published": published_trees,
    "unit_tests": unit_test_trees,
    "few_shot": few_shot_trees,
    "draft": draft_trees,
    "beam": beam_trees,
    "single_kv_head": single_kv_head_trees,
    "no_sharing": unshared_trees,
    "extend": extend_forests,
    "adversarial": adversarial_forests,
}
