"""What the CUDA kernels of tree attention are held to beside the cases of every backend: 8-bit
caches, bytes read, classes of tiles, blocks in any order, launches that leave no trace."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.tree_attention import emulated
from tests.tree_attention.conftest import EMULATED, Case
from ttc_kernels import PlanCapacity, reference
from ttc_kernels.testing import (
    assert_bitwise_equal,
    assert_close_to_reference,
    from_nodes,
    many_branches,
    published_tree,
    random_forest,
)

FP8 = torch.float8_e4m3fn


@pytest.fixture(params=EMULATED)
def make(request):
    def make_case(load, dtype=torch.bfloat16, *args, **kwargs):
        return Case(load, dtype, *args, **kwargs, backend=request.param)

    return make_case


@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_float8_caches(make, dtype, head_dim):
    """One scale and one for each head; bytes that no row owns are NaN."""
    load = from_nodes("fork", [(-1, 70), (0, 20), (0, 3)], max_q_len=3)
    per_head = head_dim % 128 == 0
    case = make(load, dtype, head_dim)
    scales = torch.tensor([0.5, 3.0]) if per_head else torch.tensor([0.7, 0.7])
    given = scales if per_head else 0.7
    stored = [(x.float() / scales[:, None]).to(FP8) for x in (case.k_cache, case.v_cache)]
    case.k_cache, case.v_cache = ((x.float() * scales[:, None]).to(dtype) for x in stored)
    exact = [x.double() * scales[:, None] for x in stored]
    plan = emulated.plan(
        case.backend, load.block_tables, load.kv_lens, load.q_lens, page_size=load.page_size,
        num_q_heads=4, num_kv_heads=2, head_dim=head_dim, dtype=dtype, kv_dtype=FP8,
    )  # fmt: skip
    out, lse = emulated.attend(case.backend, case.q, *stored, plan, k_scale=given, v_scale=given)
    want, want_lse = reference.tree_attention(
        case.q, *exact, load.block_tables, load.kv_lens, load.q_lens
    )
    plain, plain_lse = case.plain_torch()
    assert_close_to_reference(out, want, plain)
    assert_close_to_reference(lse, want_lse, plain_lse)


def test_float8_numbers_are_exact(make):
    """A lone key's value is the output: every one of the 256 bytes, NaN included."""
    case = make(from_nodes("one", [(-1, 1)]), torch.float16, 256, 1, 1)
    values = torch.arange(256, dtype=torch.uint8).view(FP8).expand(case.v_cache.shape)
    plan = emulated.plan(
        case.backend, case.load.block_tables, [1], page_size=case.load.page_size, num_q_heads=1,
        num_kv_heads=1, head_dim=256, dtype=torch.float16, kv_dtype=FP8,
    )  # fmt: skip
    out, _ = emulated.attend(
        case.backend, case.q, torch.zeros_like(values), values.contiguous(), plan
    )
    torch.testing.assert_close(out[0, 0], values[0, 0, 0].half(), rtol=0, atol=0, equal_nan=True)


LOADS = {
    "prompt": lambda: many_branches(40, prompt_tokens=130),
    "deep": lambda: published_tree([1, 2, 4, 8], [70, 33, 20, 5], page_size=8),
    "forest": lambda: random_forest(3, num_nodes=20, max_tokens=150, page_size=16),
    "one row": lambda: from_nodes("row", [(-1, 700)]),
}


@pytest.mark.parametrize("head_dim", [64, 256])
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("load", LOADS)
def test_bytes_read_are_those_of_the_plan(make, load, deterministic, head_dim):
    """Each key and value is read once per KV head, item and tile of queries, and nothing else."""
    case = make(LOADS[load](), torch.float16, head_dim, 4, 2)
    plan = case.plan(deterministic=deterministic)
    case.attend(plan)
    read = [emulated.bytes_read(case.backend, x) for x in (case.k_cache, case.v_cache)]
    assert read[0] == read[1] and sum(read) == plan.stats["kv_bytes_read"]
    if not deterministic:
        unique = plan.stats["unique_kv_tokens"] * 2 * 2 * head_dim * 2
        assert sum(read) <= 1.5 * unique


@pytest.mark.parametrize("group", [1, 5, 20, 50, 70, 150])
def test_every_class_of_tiles(make, group):
    """Rows of 16, 32, 64 and more; a group larger than a tile is walked in several."""
    load = from_nodes("classes", [(-1, 90), (0, 40), (0, 9), (0, 100)])
    load.q_lens[:] = [1, 3, 1]
    case = make(load, num_q_heads=group, num_kv_heads=1)
    case.check()
    case.check(deterministic=True)


@pytest.mark.parametrize("head_dim", [64, 96])
def test_page_size_changes_no_bit(make, head_dim):
    """The same tokens in pages of other sizes, scattered: on Hopper tensor loads and gathers."""
    backend = make(from_nodes("row", [(-1, 1)])).backend
    g = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, head_dim, generator=g).bfloat16()
    tokens = torch.randn(2, 400, 2, head_dim, generator=g).bfloat16()
    results = []
    for page_size in (1, 3, 8, 16, 32, 64, 128, 192):
        pages = -(-400 // page_size)
        order = torch.randperm(pages, generator=g)
        caches = torch.full((2, pages * page_size, 2, head_dim), torch.nan).bfloat16()
        caches[:, :400] = tokens
        caches = caches.view(2, pages, page_size, 2, head_dim)
        scattered = torch.empty_like(caches)
        scattered[:, order] = caches
        shared = 320 // page_size if page_size < 128 else 0  # the second row owns what follows
        table = order.to(torch.int32).numpy()
        moved = np.concatenate([table[:shared], pages + np.arange(pages - shared)]).astype(np.int32)
        own = scattered[:, order[shared:]]
        plan = emulated.plan(
            backend, [table, moved], [400, 391], page_size=page_size, num_q_heads=4,
            num_kv_heads=2, head_dim=head_dim, dtype=torch.bfloat16, deterministic=True,
        )  # fmt: skip
        k_cache, v_cache = torch.cat([scattered, own], 1)
        results.append(emulated.attend(backend, q, k_cache, v_cache, plan))
    for out, lse in results[1:]:
        assert_bitwise_equal(out, results[0][0])
        assert_bitwise_equal(lse, results[0][1])


def test_blocks_in_any_order_and_number(make):
    """Who runs first, who is interleaved with whom and who merges changes no bit."""
    case = make(random_forest(5, max_tokens=200, max_q_len=4))
    plan = case.plan()
    want = case.attend(plan)
    for seed, blocks, resident in ((1, 1, 1), (2, 5, 3), (3, 40, 40), (4, 200, 8)):
        got = case.attend(plan, seed=seed, blocks=blocks, resident=resident)
        assert_bitwise_equal(got[0], want[0])
        assert_bitwise_equal(got[1], want[1])


def test_one_launch_serves_every_plan_of_its_buffer(make):
    """As a captured graph replays it: same addresses, other plans, counters left at zero."""
    load = random_forest(2, num_nodes=8, max_tokens=300)
    case = make(load)
    capacity = PlanCapacity.for_batch(16, 2000, page_size=load.page_size, max_q_len=4)
    plan = case.plan(capacity=capacity)
    want = case.attend(plan)
    few = int(load.q_lens[:2].sum())
    plan.replan(load.block_tables[:2], load.kv_lens[:2], load.q_lens[:2])
    got = case.attend(plan)
    torch.testing.assert_close(got[0][:few], want[0][:few], rtol=1e-2, atol=1e-2)
    assert got[0][few:].isnan().all()
    plan.replan(load.block_tables, load.kv_lens, load.q_lens)
    assert_bitwise_equal(case.attend(plan)[0], want[0])


def test_strided_inputs(make):
    """Caches as halves of one tensor, q as a slice of a projection, an output among others."""
    case = make(random_forest(4, num_nodes=8, max_tokens=60))
    plan = case.plan()
    want = case.attend(plan)
    both = torch.stack([case.k_cache, case.v_cache], dim=1)
    fused = torch.randn(case.q.shape[0], 3 * case.num_q_heads, case.head_dim).to(case.dtype)
    fused[:, 4:8] = case.q
    outs = torch.zeros_like(fused)
    got = emulated.attend(
        case.backend, fused[:, 4:8], both[:, 0], both[:, 1], plan, out=outs[:, 4:8]
    )
    assert_bitwise_equal(got[0], want[0])
    assert_bitwise_equal(got[1], want[1])
    assert (outs[:, :4] == 0).all() and (outs[:, 8:] == 0).all()


def test_a_row_and_its_window_do_not_see_poison(make):
    """Pages that no query of the item sees any more may hold anything, NaN too."""
    load = from_nodes("window", [(-1, 300), (0, 40)])
    case = make(load, window_left=50)
    gone = np.unique(np.concatenate([table[:15] for table in load.block_tables]))
    want = case.run()
    case.k_cache[gone], case.v_cache[gone] = torch.nan, torch.nan
    got = case.run()
    assert_bitwise_equal(got[0], want[0])
    assert_bitwise_equal(got[1], want[1])


class Tokens:
    """One row of tokens in pages of its own, and a deterministic plan over parts of it."""

    def __init__(self, case, dtype):
        g = torch.Generator().manual_seed(0)
        self.backend, self.dtype = case.backend, dtype
        self.caches = torch.randn(2, 80, 16, 2, 64, generator=g).to(dtype)
        self.q = torch.randn(400, 4, 64, generator=g).to(dtype)

    def attend(self, table, end, count, window_left=-1, siblings=()):
        """The last `count` of `end` tokens; siblings: other rows as (table, length)."""
        tables = [table, *(t for t, _ in siblings)]
        lens = [end, *(n for _, n in siblings)]
        plan = emulated.plan(
            self.backend, tables, lens, [count] + [1] * len(siblings), page_size=16, num_q_heads=4,
            num_kv_heads=2, head_dim=64, dtype=self.dtype, deterministic=True,
            window_left=window_left,
        )  # fmt: skip
        q = torch.cat([self.q[end - count : end], self.q[: len(siblings)]])
        out, lse = emulated.attend(self.backend, q, *self.caches, plan)
        return out[:count], lse[:count]


PAGES = np.arange(25, dtype=np.int32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_token_has_the_same_bits_decoded_extended_or_prefilled(make, dtype):
    tokens = Tokens(make(from_nodes("one", [(-1, 1)])), dtype)
    at = 300
    out, lse = tokens.attend(PAGES, at + 1, 1)
    for begin, end in ((295, 301), (270, 320), (0, 301)):
        more, more_lse = tokens.attend(PAGES, end, end - begin)
        assert_bitwise_equal(more[at - begin], out[0])
        assert_bitwise_equal(more_lse[at - begin], lse[0])


@pytest.mark.parametrize("window_left", [-1, 100])
def test_pages_and_siblings_change_no_bit(make, window_left):
    """The same tokens in other pages; forks anywhere; with a window too."""
    tokens = Tokens(make(from_nodes("one", [(-1, 1)])), torch.bfloat16)
    alone = tokens.attend(PAGES, 390, 3, window_left)
    moved = np.arange(50, 75, dtype=np.int32)
    tokens.caches[:, moved] = tokens.caches[:, PAGES]
    for table, siblings in (
        (moved, ()),
        (PAGES, [(PAGES, 390)] * 20),
        (PAGES, [(np.r_[PAGES[:f], 30:40].astype(np.int32), 16 * f + 9) for f in (0, 3, 11, 24)]),
    ):
        got = tokens.attend(table, 390, 3, window_left, siblings)
        assert_bitwise_equal(got[0], alone[0])
        assert_bitwise_equal(got[1], alone[1])
