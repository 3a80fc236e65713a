"""merge_states against its definition."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from ttc_kernels import reference
from ttc_kernels.attention import merge_states
from ttc_kernels.testing import assert_bitwise_equal, assert_close_to_reference


def _plain(outs: torch.Tensor, lses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    lse = torch.logsumexp(lses, dim=0)
    return ((lses - lse).exp().to(outs.dtype).unsqueeze(-1) * outs).sum(dim=0), lse


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 4, 64), (5, 7, 3, 13), (3, 0, 4, 8)])
def test_matches_the_definition(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    outs, lses = torch.randn(shape).to(dtype), torch.randn(shape[:3]) * 20
    out, lse = merge_states(outs, lses)
    want_out, want_lse = reference.merge_states(outs, lses)
    plain_out, plain_lse = _plain(outs, lses)
    assert out.dtype == dtype and lse.dtype == torch.float32
    assert_close_to_reference(out, want_out, plain_out)
    assert_close_to_reference(lse, want_lse, plain_lse)


def test_empty_states_add_nothing() -> None:
    outs = torch.randn(3, 2, 1, 8)
    lses = torch.zeros(3, 2, 1)
    lses[1] = -torch.inf
    outs[1] = torch.nan  # an unwritten partial
    out, lse = merge_states(outs, lses)
    want, want_lse = merge_states(outs[::2].contiguous(), lses[::2].contiguous())
    assert_bitwise_equal(out, want)
    assert_bitwise_equal(lse, want_lse)
    out, lse = merge_states(torch.full_like(outs, torch.nan), torch.full_like(lses, -torch.inf))
    assert not out.any() and bool((lse == -torch.inf).all())


def test_nan_is_not_hidden() -> None:
    outs, lses = torch.zeros(2, 1, 1, 4), torch.tensor([0.0, torch.nan]).reshape(2, 1, 1)
    out, lse = merge_states(outs, lses)
    assert out.isnan().all() and lse.isnan().all()
    out, lse = merge_states(outs, torch.full_like(lses, torch.nan))
    assert out.isnan().all() and lse.isnan().all()


def test_opcheck() -> None:
    arguments = (torch.randn(2, 3, 4, 8), torch.randn(2, 3, 4))
    opcheck(torch.ops.ttc_kernels.merge_states.default, arguments)
