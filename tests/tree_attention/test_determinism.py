"""A branch's bits depend on its own tokens: not on siblings, forks, batch, or how it was run."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ttc_kernels
from ttc_kernels.testing import assert_bitwise_equal

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
PAGE, HEADS, KV_HEADS, DIM = 16, 4, 2, 64
NUM_PAGES = 600


@pytest.fixture(params=DTYPES)
def tensors(request):
    g = torch.Generator().manual_seed(0)
    cache = torch.randn(2, NUM_PAGES, PAGE, KV_HEADS, DIM, generator=g).to(request.param)
    q = torch.randn(2000, HEADS, DIM, generator=g).to(request.param)
    return cache[0], cache[1], q


def attend(tensors, tables, kv_lens, q_lens, q_rows, deterministic=True, **options):
    """Output and lse of row 0; q_rows names the rows of q to use."""
    k, v, q = tensors
    plan = ttc_kernels.plan_tree_attention(
        tables, kv_lens, q_lens, page_size=PAGE, num_q_heads=q.shape[1], num_kv_heads=k.shape[2],
        head_dim=DIM, dtype=q.dtype, deterministic=deterministic, **options,
    )  # fmt: skip
    out, lse = ttc_kernels.tree_attention(q[q_rows], k, v, plan)
    return out[: q_lens[0]], lse[: q_lens[0]]


SURVIVOR = np.arange(130, dtype=np.int32)  # four stretches of 512 tokens, and a bit


@pytest.mark.parametrize(
    "kv_len,q_len",
    [(1, 1), (100, 1), (256, 1), (257, 3), (512, 1), (905, 1), (1025, 40), (1536, 1), (2070, 3)],
)
@pytest.mark.parametrize("window_left", [-1, 130])
def test_siblings_do_not_matter(tensors, kv_len, q_len, window_left):
    alone = attend(
        tensors, [SURVIVOR], [kv_len], [q_len], list(range(q_len)), window_left=window_left
    )
    rng = np.random.default_rng(0)
    for num_siblings in (1, 3, 40):
        tables, lens, q_lens, rows = [SURVIVOR], [kv_len], [q_len], list(range(q_len))
        for i in range(num_siblings):
            fork = int(rng.integers(0, 130))  # pages shared with the survivor
            own = rng.permutation(np.arange(130, NUM_PAGES))[: 130 - fork]
            tables.append(np.concatenate([SURVIVOR[:fork], own]).astype(np.int32))
            lens.append(int(rng.integers(max(1, fork * PAGE), 2081)))
            q_lens.append(int(rng.integers(1, min(lens[-1], 30) + 1)))
            rows += list(range(1000 + i, 1000 + i + q_lens[-1]))
        together = attend(tensors, tables, lens, q_lens, rows, window_left=window_left)
        assert_bitwise_equal(together[0], alone[0])
        assert_bitwise_equal(together[1], alone[1])


@pytest.mark.parametrize("kv_heads,group", [(2, 2), (1, 7), (8, 1), (3, 3)])
@pytest.mark.parametrize("options", [{}, {"window_left": 70}, {"draft": True}])
@pytest.mark.parametrize("dtype", DTYPES)
def test_keys_shared_within_a_chunk_do_not_matter(dtype, kv_heads, group, options):
    """Branches that part inside a chunk, some twice, of different lengths; and those left later."""
    g = torch.Generator().manual_seed(1)
    cache = torch.randn(2, NUM_PAGES, PAGE, kv_heads, DIM, generator=g).to(dtype)
    q = torch.randn(2000, kv_heads * group, DIM, generator=g).to(dtype)
    prompt = SURVIVOR[:43]  # 688 tokens: the chunk begins at 640
    q_len = 2 if "draft" in options else 1

    def run(rows):
        tables, lens = [], []
        for i in rows:
            own = range(200 + 4 * i, 204 + 4 * i)
            fork = [100 + i // 8, 120 + i // 8] if i % 16 < 8 else [150]
            tables.append(np.array([*prompt, *fork, *own], np.int32))
            lens.append((len(prompt) + len(fork)) * PAGE + 1 + i // 8 * 7 % 24 + i % 2 + q_len)
        more = {"draft_parents": [[-1, -1]] * len(rows)} if "draft" in options else options
        q_rows = [2 * i + t for i in rows for t in range(q_len)]
        return attend((*cache, q), tables, lens, [q_len] * len(rows), q_rows, **more)

    everyone = list(range(64))
    for first in (0, 5, 8, 13):
        alone = run([first])
        others = [i for i in everyone if i != first]
        for rows in ([first, *others], [first, *others[::-1]], [first, *others[1::3]]):
            together = run(rows)
            assert_bitwise_equal(together[0], alone[0])
            assert_bitwise_equal(together[1], alone[1])


def test_partials_larger_than_the_caches_do_not_matter(tensors):
    """36 MB of them, which the CPU writes past its caches."""
    alone = attend(tensors, [SURVIVOR], [960], [1], [0])
    own = np.random.default_rng(0).permuted(np.tile(np.arange(130, NUM_PAGES), (300, 1)), axis=1)
    tables = [SURVIVOR, *(np.append(SURVIVOR[:40], row[:20]).astype(np.int32) for row in own)]
    q_rows = [i % 2000 for i in range(1 + 300 * 30)]
    together = attend(tensors, tables, [960] * 301, [1] + [30] * 300, q_rows)
    assert_bitwise_equal(together[0], alone[0])
    assert_bitwise_equal(together[1], alone[1])


def test_a_token_has_the_same_bits_decoded_extended_or_prefilled(tensors):
    """Position 600 computed alone, at the end of a step, and inside prefills of 601 and 700."""
    at = 600
    decoded = attend(tensors, [SURVIVOR], [at + 1], [1], [at])
    for begin, end in ((580, 601), (0, 601), (0, 700), (590, 640)):
        out, lse = attend(tensors, [SURVIVOR], [end], [end - begin], list(range(begin, end)))
        assert_bitwise_equal(out[at - begin], decoded[0][0])
        assert_bitwise_equal(lse[at - begin], decoded[1][0])


def test_where_the_pages_are_does_not_matter(tensors):
    """The same tokens in other pages: a copy after a fork, a swap, another pool."""
    k, v, q = tensors
    moved = np.arange(200, 330, dtype=np.int32)
    k[moved], v[moved] = k[SURVIVOR], v[SURVIVOR]
    original = attend((k, v, q), [SURVIVOR], [2000], [1], [0])
    other = attend((k, v, q), [moved], [2000], [1], [0])
    assert_bitwise_equal(other[0], original[0])


@pytest.mark.parametrize("tensors", [torch.float32], indirect=True)
def test_auto_plans_do_change_bits(tensors):
    """The control: without deterministic=True a sibling moves the cut, and with it the rounding."""
    alone = attend(tensors, [SURVIVOR], [905], [1], [0], deterministic=False)
    sibling = np.concatenate([SURVIVOR[:37], np.arange(100, 123)]).astype(np.int32)
    rows = [0, *range(1000, 1040)]
    together = attend(
        tensors, [SURVIVOR, *[sibling] * 40], [905] * 41, [1] * 41, rows, deterministic=False
    )
    assert not torch.equal(together[0], alone[0])
    torch.testing.assert_close(together[0], alone[0])
