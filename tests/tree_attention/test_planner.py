"""The planner's parts: the cut against brute force, and what must hold for every plan's buffer."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import ttc_kernels
from bench.workloads import published_trees
from ttc_kernels import _host
from ttc_kernels._plan_costs import cost_model
from ttc_kernels.testing import from_nodes, published_tree, random_forest

HEADS = {"num_q_heads": 8, "num_kv_heads": 2, "head_dim": 64, "dtype": torch.float32}
HEADER_INTS = 32


@dataclass
class View:
    """A plan's sections, read from the buffer as csrc/common/plan_layout.h describes it."""

    items: np.ndarray
    pages: np.ndarray
    kv_lens: np.ndarray
    q_token: np.ndarray
    q_row: np.ndarray
    q_back: np.ndarray
    q_merge: np.ndarray
    merges: dict[int, list[int]]

    @classmethod
    def of(cls, plan: ttc_kernels.TreeAttentionPlan) -> View:
        b = plan.buffer.numpy()
        rows, queries, items, pages, _, merges, slots = b[2:9]
        at = dict(
            zip(
                (
                    "items",
                    "pages",
                    "q_token",
                    "q_row",
                    "q_back",
                    "draft",
                    "query",
                    "ptr",
                    "slot",
                    "q_merge",
                ),
                b[16:26],
                strict=True,
            )
        )

        def part(name: str, size: int) -> np.ndarray:
            return b[at[name] : at[name] + size]

        ptr, slot = part("ptr", merges + 1), part("slot", slots)
        lists = [slot[a:z].tolist() for a, z in itertools.pairwise(ptr)]  # ~slot begins a stretch
        return cls(
            part("items", items * 8).reshape(items, 8),
            part("pages", pages),
            b[HEADER_INTS : HEADER_INTS + rows],
            part("q_token", queries),
            part("q_row", queries),
            part("q_back", queries),
            part("q_merge", queries),
            dict(zip(part("query", merges).tolist(), lists, strict=True)),
        )

    def items_over(self, query: int) -> list[np.ndarray]:
        """Items that hold a planned query, in path order."""
        over = [i for i in self.items if i[0] <= query < i[0] + i[1]]
        return sorted(over, key=lambda i: i[2])


def plan_of(load, **options):
    merged = {**HEADS, "page_size": load.page_size, **options}
    return ttc_kernels.plan_tree_attention(load.block_tables, load.kv_lens, load.q_lens, **merged)


def forests():
    for seed in range(40):
        page_size = [1, 4, 16, 32][seed % 4]
        yield random_forest(
            seed, page_size=page_size, max_tokens=[20, 400][seed % 2], max_q_len=1 + seed % 3 * 30
        )


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("window_left", [-1, 50])
def test_every_visible_pair_is_covered_once(deterministic, window_left):
    for load in forests():
        plan = plan_of(load, deterministic=deterministic, window_left=window_left)
        view = View.of(plan)
        group, page_size = 4, load.page_size
        slots = []
        for item in view.items:
            q_begin, q_count, k_begin, k_end, offset, base, tile_rows, draft = item.tolist()
            assert k_begin < k_end and 0 < q_count * group <= tile_rows and draft == 0
            assert tile_rows in (16, 32, 64, 128)
            if deterministic:
                assert k_begin % 128 == 0 and tile_rows == 128
                assert k_end <= k_begin + (128 if k_begin % 512 else 512) or k_begin == 0
            if base >= 0:
                slots += range(base, base + q_count)
            # The listed pages are those of every row of the item, as far as the row goes.
            first, last = k_begin // page_size, (k_end - 1) // page_size
            listed = view.pages[offset : offset + last - first + 1]
            for q in range(q_begin, q_begin + q_count):
                row = view.q_row[q]
                own = load.block_tables[row][first : last + 1]
                assert (listed[: len(own)] == own).all()
        assert sorted(slots) == list(range(plan.stats["partials"]))
        for q in range(plan.num_queries):
            length = int(view.kv_lens[view.q_row[q]])
            position = length - 1 - view.q_back[q]
            low = 0 if window_left < 0 else max(0, position - window_left)
            over = view.items_over(q)
            assert all(a[3] == b[2] for a, b in itertools.pairwise(over)), "gap or overlap"
            if length:
                assert over[0][2] <= low and over[-1][3] > position
            written = [i for i in over if i[5] < 0]
            assert view.q_merge[q] == list(view.merges).index(q) if q in view.merges else -1
            if q in view.merges:
                assert not written
                slots_of = [(i[5] + q - i[0], i[2] % 512 == 0 and deterministic) for i in over]
                assert view.merges[q] == [~s if begins else s for s, begins in slots_of]
            else:
                assert len(written) == len(over) == 1
        tokens = np.sort(view.q_token)
        assert (tokens == np.arange(plan.num_queries)).all()


@pytest.mark.parametrize("deterministic", [False, True])
def test_row_order_does_not_matter(deterministic):
    same = ("unique_kv_tokens", "path_kv_tokens", "rectangles", "work_items", "partials")
    same += ("kv_bytes", "kv_bytes_read", "flops", "trie_nodes", "modelled_us", "floor_us")
    for load in forests():
        options = {**HEADS, "page_size": load.page_size, "deterministic": deterministic}
        lens = load.kv_lens.copy()
        q_lens = np.minimum(lens, 1)  # tiles of several queries a row may begin at any of them
        stats = []
        for seed in (None, 0, 1):
            order = np.arange(len(lens))
            if seed is not None:
                order = np.random.default_rng(seed).permutation(len(lens))
            tables = [load.block_tables[i] for i in order]
            plan = ttc_kernels.plan_tree_attention(tables, lens[order], q_lens[order], **options)
            stats.append({k: pytest.approx(plan.stats[k], rel=1e-6) for k in same})
        assert stats[0] == {k: v.expected for k, v in stats[1].items()}
        assert stats[0] == {k: v.expected for k, v in stats[2].items()}


@pytest.mark.parametrize("window_left", [-1, 300])
@pytest.mark.parametrize("page_size", [16, 512])
def test_a_deterministic_rows_structure_is_its_own(window_left, page_size):
    """Key ranges, merged or not, and tile class of a query: alone, and beside any siblings.

    This is what kernels need that fold no chunks.
    """
    rng = np.random.default_rng(0)
    checked = 0
    for seed in range(30):
        load = random_forest(seed, max_tokens=700, page_size=page_size, max_q_len=9)
        options = {**HEADS, "page_size": page_size, "deterministic": True}
        options["window_left"] = window_left
        plan = plan_of(load, deterministic=True, window_left=window_left)
        together = View.of(plan.without_folds())
        for row in rng.permutation(np.flatnonzero(load.kv_lens))[:4]:
            alone = View.of(
                ttc_kernels.plan_tree_attention(
                    [load.block_tables[row]], load.kv_lens[[row]], load.q_lens[[row]], **options
                ).without_folds()
            )
            queries = np.flatnonzero(together.q_row == row)
            assert len(queries) == load.q_lens[row]
            for own, query in enumerate(queries):
                mine, theirs = alone.items_over(own), together.items_over(query)
                assert [i[2] for i in mine] == [i[2] for i in theirs]
                assert [i[5] >= 0 for i in mine] == [i[5] >= 0 for i in theirs]
                assert {i[6] for i in mine} == {i[6] for i in theirs}
                checked += 1
    assert checked > 100


def test_chunks_from_the_beginning_are_one_item():
    """A shared prompt is one item on the CPU, one for each chunk of keys elsewhere."""
    load = published_tree([1, 64], [1024, 40])
    plan = plan_of(load, deterministic=True)
    folded = [tuple(item[2:4]) for item in View.of(plan).items.tolist() if item[2] < 1024]
    apart = [tuple(item[2:4]) for item in View.of(plan.without_folds()).items.tolist()]
    assert set(folded) == {(0, 1024)}
    assert {(0, 256), (256, 512), (512, 768), (768, 1024)} <= set(apart)


# ---- the cut


def random_cost(rng: np.random.Generator, on_gpu: bool) -> dict:
    return {
        "launch": 0.0,
        "item": float(rng.choice([0, 30, 300, 3000])),
        "row": float(rng.choice([0, 10])),
        "token": float(rng.uniform(1, 30)),
        "token_again": float(rng.uniform(1, 30)),
        "row_token": float(rng.uniform(0.1, 3)),
        "partial": float(rng.choice([0, 5, 50, 500])),
        "bytes_per_ns": 20.0,
        "flops_per_ns": 100.0,
        "row_quantum": 0 if on_gpu else 4,
        "key_quantum": int(rng.choice([1, 16, 64])),
    }


def random_options(rng: np.random.Generator, page_size: int, fold=False) -> _host.PlanOptions:
    return _host.PlanOptions(
        page_size=page_size,
        num_q_heads=2 * int(rng.choice([1, 4, 7, 16])),
        num_kv_heads=2,
        head_dim=64,
        element_bytes=2,
        window_left=-1,
        chunk=128 if fold else 0,
        fold=fold,
        num_workers=1,
        max_tile_rows=128,
        fixed_tile_rows=0,
        cost=random_cost(rng, on_gpu=not fold and bool(rng.integers(2))),  # only CPUs fold
    )


def small_tree(rng: np.random.Generator, page_size: int, nodes: int, root: int, tokens: int):
    """Tables, lengths and query lengths of fewer than so many nodes, each shorter than given."""
    chosen = [(-1, int(rng.integers(1, root)))]
    for i in range(1, int(rng.integers(2, nodes))):
        parent = -1 if rng.integers(8) == 0 else int(rng.integers(0, i))
        chosen.append((parent, int(rng.integers(0, tokens))))
    load = from_nodes("small", chosen, page_size=page_size, max_q_len=3)
    keep = load.kv_lens > 0
    tables = [t for t, k in zip(load.block_tables, keep, strict=True) if k]
    return tables, load.kv_lens[keep], load.q_lens[keep]


def brute_force(nodes, query_ptr, page_size, options):
    """Least cost over all choices: each inner node closes the open rectangle or leaves it open."""
    n = len(nodes)
    children = [[c for c in range(n) if nodes[c][4] == v] for v in range(n)]
    inner = [v for v in range(n) if children[v]]

    def keys_below(v: int) -> bool:
        return any(nodes[c][3] > nodes[c][2] or keys_below(c) for c in children[v])

    def cost(v: int, begin: int, closed: set[int]) -> float:
        row_begin, row_end, _, page_end = nodes[v][:4]
        if v in closed or not children[v]:
            queries = int(query_ptr[row_end] - query_ptr[row_begin])
            partial = begin > 0 or keys_below(v)
            here = options.item_cost(queries, page_end * page_size - begin, partial)
            return here + sum(cost(c, nodes[c][2] * page_size, closed) for c in children[v])
        return sum(cost(c, begin, closed) for c in children[v])

    roots = [v for v in range(n) if nodes[v][4] < 0]
    subsets = itertools.chain.from_iterable(
        itertools.combinations(inner, k) for k in range(len(inner) + 1)
    )
    return min(sum(cost(r, 0, set(s)) for r in roots) for s in subsets)


def test_the_cut_equals_brute_force():
    rng = np.random.default_rng(0)
    shared = declined = between = 0
    for _ in range(1000):
        page_size = int(rng.choice([1, 4, 16]))
        tables, lens, q_lens = small_tree(rng, page_size, nodes=13, root=80, tokens=120)
        options = random_options(rng, page_size)
        rectangles, order, trie, (best, per_node, unshared) = _host.cut(
            options, tables, lens, q_lens
        )
        query_ptr = np.concatenate([[0], np.cumsum(q_lens[order])])
        expected = brute_force(trie.tolist(), query_ptr, page_size, options)
        assert best == pytest.approx(expected, rel=1e-9)
        assert best <= per_node * (1 + 1e-9)
        # The rectangles returned are those of that cost, and cover each row once, in path order.
        for i, row in enumerate(order):
            runs = [r for r in rectangles.tolist() if r[0] <= i < r[1]]
            assert runs[0][2] == 0 and runs[-1][3] >= lens[row]
            assert all(a[3] == b[2] for a, b in itertools.pairwise(runs))
        total = 0.0
        for row_begin, row_end, k_begin, k_end in rectangles.tolist():
            partial = k_begin > 0 or any(
                r[2] >= k_end and row_begin <= r[0] < row_end for r in rectangles.tolist()
            )
            queries = int(query_ptr[row_end] - query_ptr[row_begin])
            total += options.item_cost(queries, k_end - k_begin, partial)
        assert total <= best * (1 + 1e-9), "a rectangle with nothing below it is no partial"
        shared += best < unshared * (1 - 1e-9)
        declined += best == pytest.approx(unshared)
        between += unshared * (1 - 1e-9) > best and best < per_node * (1 - 1e-9)
    assert min(shared, declined, between) > 50, "the trees must exercise every outcome"


def cheapest_pieces(begin, end, is_leaf, cost):
    """Least cost of keys as rectangles that a kernel which folds chunks of 128 can join again."""
    if begin >= end:
        return 0.0
    best = float("inf")
    for stop in [*range(begin // 128 * 128 + 128, end, 128), end]:
        allowed = stop - begin <= (128 if begin % 512 else 512)
        if begin == 0:  # whole stretches, or the whole of a row
            allowed |= stop % 512 == 0 or (is_leaf and stop == end)
        if allowed:
            here = cost(stop - begin, begin > 0 or not is_leaf)
            best = min(best, here + cheapest_pieces(stop, end, is_leaf, cost))
    return best


def brute_force_folded(nodes, query_ptr, page_size, options):
    """Least cost over all choices of how far each inner node covers what is open there."""
    n = len(nodes)
    children = [[c for c in range(n) if nodes[c][4] == v] for v in range(n)]

    @functools.cache
    def best(v: int, begin: int) -> float:
        row_begin, row_end, _, page_end = nodes[v][:4]
        queries = int(query_ptr[row_end] - query_ptr[row_begin])
        cost = functools.partial(options.item_cost, queries)
        end = page_end * page_size
        if not children[v]:
            return cheapest_pieces(begin, end, True, cost)
        return min(
            cheapest_pieces(begin, stop, False, cost) + sum(best(c, stop) for c in children[v])
            for stop in range(begin, max(begin, end // 128 * 128) + 1, 128)
        )

    return sum(best(v, 0) for v in range(n) if nodes[v][4] < 0)


def test_the_folded_cut_equals_brute_force():
    rng = np.random.default_rng(0)
    above = below = 0
    for _ in range(300):
        page_size = int(rng.choice([16, 48, 128, 640]))
        tables, lens, q_lens = small_tree(rng, page_size, nodes=9, root=1500, tokens=700)
        options = random_options(rng, page_size, fold=True)
        rectangles, order, trie, (best, _, _) = _host.cut(options, tables, lens, q_lens)
        query_ptr = np.concatenate([[0], np.cumsum(q_lens[order])])
        expected = brute_force_folded(trie.tolist(), query_ptr, page_size, options)
        assert best == pytest.approx(expected, rel=1e-9)
        leaf_ends = {r[0]: r[3] * page_size for r in trie.tolist() if r[1] - r[0] == 1}
        total = 0.0
        for row_begin, row_end, k_begin, k_end in rectangles.tolist():
            at_end = row_end - row_begin == 1 and k_end == leaf_ends[row_begin]
            queries = int(query_ptr[row_end] - query_ptr[row_begin])
            total += options.item_cost(queries, k_end - k_begin, not (k_begin == 0 and at_end))
        assert total == pytest.approx(best, rel=1e-9)
        for i, row in enumerate(order):
            runs = [r for r in rectangles.tolist() if r[0] <= i < r[1]]
            assert runs[0][2] == 0 and runs[-1][3] >= lens[row]
            assert all(a[3] == b[2] for a, b in itertools.pairwise(runs))
        # Nodes whose keys are read where they are, and such as are left to their children.
        inner = [r for r in trie.tolist() if r[1] - r[0] > 1 and r[3] * page_size >= 128]
        starts = {tuple(r[:2]) for r in rectangles.tolist()}
        above += any(tuple(r[:2]) in starts for r in inner)
        below += any(tuple(r[:2]) not in starts for r in inner)
    assert min(above, below) > 50, "the trees must exercise both outcomes"


def test_rectangles_span_a_bounded_number_of_nodes():
    """A path of 2,000 forks: the cut stays near linear, at worst a little dearer than the best."""
    nodes = [(-1, 16)]
    for _ in range(2000):
        spine = 0 if len(nodes) == 1 else len(nodes) - 2
        nodes += [(spine, 16), (spine, 16)]
    load = from_nodes("spine", nodes)
    options = random_options(np.random.default_rng(1), load.page_size)
    rectangles, order, trie, (best, per_node, unshared) = _host.cut(
        options, load.block_tables, load.kv_lens, load.q_lens
    )
    assert len(trie) >= 4000 and best <= min(per_node, unshared)
    begins = {int(b): i for i, b in enumerate(np.unique(trie[:, 2]))}
    spans = [begins[r[3] // 16 - 1] - begins[r[2] // 16] + 1 for r in rectangles]
    assert max(spans) <= 32
    for i in range(0, len(order), 97):
        runs = [r for r in rectangles.tolist() if r[0] <= i < r[1]]
        assert runs[0][2] == 0 and runs[-1][3] >= load.kv_lens[order[i]]
        assert all(a[3] == b[2] for a, b in itertools.pairwise(runs))


# ---- device memory


@pytest.mark.parametrize("kind,workers", [("sm_80", 216), ("sm_90", 264), ("sm_100", 296)])
@pytest.mark.parametrize("heads", [(32, 32), (16, 8), (32, 8), (64, 8)])
def test_bandwidth_bound_trees_read_each_key_once(kind, workers, heads):
    """On a GPU the cut by cost reads at most 1.05 times the unique keys and values.

    Bandwidth-bound: reading each key and value once takes longer than all products, and moves at
    least twice the bytes of one partial, written and read, for each query and node of its path.
    """
    num_q_heads, num_kv_heads = heads
    cost = dict(cost_model(kind, torch.bfloat16, 2, 128))
    options = _host.PlanOptions(
        page_size=16,
        num_q_heads=num_q_heads,
        num_kv_heads=num_kv_heads,
        head_dim=128,
        element_bytes=2,
        window_left=-1,
        chunk=0,
        fold=False,
        num_workers=workers,
        max_tile_rows=cost.pop("max_tile_rows"),
        fixed_tile_rows=0,
        cost=cost,
    )
    checked = 0
    for tree in published_trees():
        pages = tree.pages(16)
        rows = len(pages.kv_lens)
        stats = _host.plan(
            options, pages.block_tables, pages.kv_lens, np.ones(rows, np.int32), None, [], empty
        )[1]
        unique = stats["unique_kv_tokens"] * 2 * num_kv_heads * 128 * 2
        partials = 2 * rows * tree.depth * num_q_heads * (128 + 2) * 4
        by_bytes = unique / cost["bytes_per_ns"] > stats["flops"] / cost["flops_per_ns"]
        if not by_bytes or unique < 2 * partials:
            continue
        checked += 1
        assert stats["kv_bytes"] <= 1.05 * unique, tree.name
    assert checked >= 8


def empty(rows: int, queries: int, ints: int, partials: int) -> np.ndarray:
    return np.empty(ints, np.int32)
