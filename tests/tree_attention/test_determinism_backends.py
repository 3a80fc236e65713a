"""The same bits alone and in every company, on every backend: siblings, order, forks."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

import ttc_kernels
from tests.tree_attention import emulated
from tests.tree_attention.conftest import EMULATED
from ttc_kernels.testing import assert_bitwise_equal

PAGE, DIM, NUM_PAGES = 16, 64, 700
LENGTH = 300  # of the survivor: one chunk of 256 tokens and some
SURVIVOR = np.arange(19, dtype=np.int32)
GPU = [pytest.mark.gpu] if torch.cuda.is_available() else []


@pytest.fixture(params=["cpu", pytest.param("triton", marks=GPU), *EMULATED])
def backend(request, monkeypatch):
    if request.param == "triton" and request.getfixturevalue("triton_device").type == "cpu":
        # The interpreter multiplies with numpy's BLAS, whose bits depend on where in a matrix a row
        # stands. Tensor cores, which it stands in for, compute every row alike.
        from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

        def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
            total = d.data.copy()
            for k in range(a.data.shape[1]):
                total += a.data[:, k, None].astype(d.data.dtype) * b.data[k]
            return TensorHandle(total, d.dtype.scalar)

        monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
    return request.param


@pytest.fixture(params=[torch.float32, torch.float16])
def attend(request, backend):
    """Output and lse of the row at `position` of a batch of (pages, length) rows."""
    dtype = (
        torch.bfloat16 if backend in EMULATED and request.param == torch.float32 else request.param
    )
    device = "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"
    g = torch.Generator().manual_seed(0)
    caches = torch.randn(2, NUM_PAGES, PAGE, 1, DIM, generator=g).to(dtype).to(device)
    query = torch.randn(1, 2, DIM, generator=g).to(dtype).to(device)
    others = torch.randn(300, 2, DIM, generator=g).to(dtype).to(device)

    def run(rows, position=0, deterministic=True):
        make = ttc_kernels.plan_tree_attention
        if backend in EMULATED:
            make = partial(emulated.plan, backend)
        plan = make(
            [pages for pages, _ in rows], [length for _, length in rows], page_size=PAGE,
            num_q_heads=2, num_kv_heads=1, head_dim=DIM, dtype=dtype, device=device,
            deterministic=deterministic,
        )  # fmt: skip
        q = others[: len(rows)].clone()
        q[position] = query[0]
        if backend in EMULATED:
            out, lse = emulated.attend(backend, q, *caches, plan)
        else:
            out, lse = ttc_kernels.tree_attention(q, *caches, plan, backend=backend)
        return out[position].cpu(), lse[position].cpu()

    return run


def sibling(i: int, fork: int, length: int = LENGTH) -> tuple[np.ndarray, int]:
    """Shares the first `fork` pages with the survivor; the other pages are its own."""
    own = 19 + 2 * i + np.arange(19 - fork)
    return np.concatenate([SURVIVOR[:fork], own]).astype(np.int32), length


def assert_same(got, want):
    assert_bitwise_equal(got[0], want[0])
    assert_bitwise_equal(got[1], want[1])


@pytest.mark.parametrize("num_siblings", [1, 7, 255])
def test_siblings_order_pruning_and_forks(attend, num_siblings):
    me = (SURVIVOR, LENGTH)
    alone = attend([me])
    rng = np.random.default_rng(num_siblings)
    siblings = [sibling(i, 17 + i % 2, 275 + i % 25) for i in range(num_siblings)]
    assert_same(attend([me, *siblings]), alone)
    order = rng.permutation(num_siblings)
    middle = num_siblings // 2
    shuffled = [siblings[i] for i in order]
    assert_same(attend([*shuffled[:middle], me, *shuffled[middle:]], middle), alone)
    kept = siblings[:: max(2, num_siblings // 5)]  # the others were pruned
    assert_same(attend([*kept, me], len(kept)), alone)
    forks = rng.integers(0, 19, len(kept))  # the tree forks at other places
    again = [sibling(40 * i, int(fork), LENGTH) for i, fork in enumerate(forks[:8])]
    assert_same(attend([me, *again]), alone)


def test_auto_plans_do_change_bits(attend):
    """The control: cut by cost, some company moves a cut through the survivor's path."""
    me = (SURVIVOR, LENGTH)
    alone = attend([me], deterministic=False)
    changed = False
    for fork in (3, 5, 9, 13):
        rows = [me, *(sibling(i, fork) for i in range(40))]
        together = attend(rows, deterministic=False)
        torch.testing.assert_close(together[0], alone[0], rtol=1e-2, atol=1e-3)
        changed |= not torch.equal(together[0], alone[0]) or not torch.equal(together[1], alone[1])
    assert changed
