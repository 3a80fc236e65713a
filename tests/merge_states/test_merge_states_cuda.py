"""The CUDA kernel of merge_states: on a GPU, or in the emulator without one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.emulator.build import Adapter
from ttc_kernels import _load, merge_states, reference
from ttc_kernels.testing import assert_bitwise_equal, assert_close_to_reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
State = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def cuda_kernels() -> Callable[[torch.Tensor, torch.Tensor], State]:
    if not torch.cuda.is_available():
        return _emulated(Adapter(Path(__file__).with_name("emulated.cpp")))
    if _load.cuda_error is not None:
        pytest.skip(f"the CUDA kernels are not loaded: {_load.cuda_error}")

    def on_gpu(outs: torch.Tensor, lses: torch.Tensor) -> State:
        out, lse = merge_states(outs.cuda(), lses.cuda())
        return out.cpu(), lse.cpu()

    return on_gpu


def _emulated(kernels: Adapter) -> Callable[[torch.Tensor, torch.Tensor], State]:
    def call(outs: torch.Tensor, lses: torch.Tensor) -> State:
        n, tokens, heads, dim = outs.shape
        out = torch.full(outs.shape[1:], torch.nan, dtype=outs.dtype)
        lse = torch.full(lses.shape[1:], torch.nan)
        dtype = DTYPES.index(outs.dtype)
        kernels.call("merge_states", outs, lses, out, lse, dtype, n, tokens * heads, dim, seed=n)
        return out, lse

    return call


def _plain(outs: torch.Tensor, lses: torch.Tensor) -> State:
    lse = torch.logsumexp(lses, dim=0)
    return ((lses - lse).exp().to(outs.dtype).unsqueeze(-1) * outs).sum(dim=0), lse


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (2, 3, 4, 64), (5, 7, 3, 13), (3, 0, 4, 8), (9, 5, 8, 128)]
)
def test_matches_the_definition(cuda_kernels, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    outs, lses = torch.randn(shape).to(dtype), torch.randn(shape[:3]) * 20
    out, lse = cuda_kernels(outs, lses)
    want_out, want_lse = reference.merge_states(outs, lses)
    plain_out, plain_lse = _plain(outs, lses)
    assert_close_to_reference(out, want_out, plain_out)
    assert_close_to_reference(lse, want_lse, plain_lse)


def test_empty_states_add_nothing(cuda_kernels) -> None:
    outs, lses = torch.randn(3, 2, 1, 8), torch.zeros(3, 2, 1)
    lses[1] = -torch.inf
    outs[1] = torch.nan  # an unwritten partial
    out, lse = cuda_kernels(outs, lses)
    want, want_lse = cuda_kernels(outs[::2].contiguous(), lses[::2].contiguous())
    assert_bitwise_equal(out, want)
    assert_bitwise_equal(lse, want_lse)
    out, lse = cuda_kernels(torch.full_like(outs, torch.nan), torch.full_like(lses, -torch.inf))
    assert not out.any() and bool((lse == -torch.inf).all())


def test_nan_is_not_hidden(cuda_kernels) -> None:
    outs, lses = torch.zeros(2, 1, 1, 4), torch.tensor([0.0, torch.nan]).reshape(2, 1, 1)
    for given in (lses, torch.full_like(lses, torch.nan)):
        out, lse = cuda_kernels(outs, given)
        assert out.isnan().all() and lse.isnan().all()


def test_a_row_depends_on_itself_alone(cuda_kernels) -> None:
    torch.manual_seed(0)
    outs, lses = torch.randn(4, 9, 3, 64).half(), torch.randn(4, 9, 3) * 5
    out, lse = cuda_kernels(outs, lses)
    alone, alone_lse = cuda_kernels(outs[:, 4:5].contiguous(), lses[:, 4:5].contiguous())
    assert_bitwise_equal(out[4:5], alone)
    assert_bitwise_equal(lse[4:5], alone_lse)
