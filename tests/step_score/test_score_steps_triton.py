"""score_steps in Triton: the scores of the CPU, and of any company."""

from __future__ import annotations

import pytest
import torch

from ttc_kernels.step_score import StepHead, score_steps
from ttc_kernels.testing import assert_bitwise_equal


def make_head(kind: str, width: int, dtype: torch.dtype) -> StepHead:
    if kind == "two_logit":
        w1, w2 = torch.randn(37, width) / width**0.5, torch.randn(2, 37) / 6
        return StepHead.two_logit(w1.to(dtype), torch.randn(37), w2.to(dtype), torch.randn(2))
    if kind == "value":
        return StepHead.value((torch.randn(width) / width**0.5).to(dtype), 0.25)
    if kind == "softmax":
        return StepHead.softmax((torch.randn(90, width) / width**0.5).to(dtype), good=(0, 3))
    return StepHead.token_pair(*(torch.randn(2, width) / width**0.5).to(dtype))


def in_triton(hidden, rows, head, norm, device) -> torch.Tensor:
    from ttc_kernels.triton.score_steps import score_steps as kernel

    weights = [weight.to(device) for weight in head.weights]
    norm_weight, eps = (None, 0.0) if norm is None else (norm[0].float().to(device), norm[1])
    return kernel(hidden.to(device), rows.to(device), head.kind, weights, norm_weight, eps).cpu()


@pytest.mark.parametrize("kind", ["two_logit", "value", "token_pair", "softmax"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("width", [1, 100, 896])
@pytest.mark.parametrize("with_norm", [False, True])
def test_equals_the_cpu(triton_device, kind, dtype, width, with_norm) -> None:
    torch.manual_seed(width)
    hidden = (torch.randn(40, width) * 3).to(dtype)
    rows = torch.randint(0, 40, (21,), dtype=torch.int32)
    head = make_head(kind, width, dtype)
    norm = (torch.rand(width), 1e-6) if with_norm else None
    want = score_steps(hidden, rows, head, norm=norm)
    got = in_triton(hidden, rows, head, norm, triton_device)
    assert got.dtype == torch.float32 and want.std() > 1e-3
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


@pytest.mark.gpu  # in the interpreter, numpy's product of a tile decides, which is not row by row
@pytest.mark.parametrize("kind", ["two_logit", "value", "token_pair", "softmax"])
def test_a_row_has_the_same_bits_in_any_company(device, kind) -> None:
    torch.manual_seed(0)
    hidden, head = torch.randn(50, 333), make_head(kind, 333, torch.float32)
    norm = (torch.rand(333), 1e-5)
    together = in_triton(hidden, torch.arange(50, dtype=torch.int32), head, norm, device)
    for count in (1, 2, 17):
        chosen = torch.randperm(50)[:count].int()
        alone = in_triton(hidden, chosen, head, norm, device)
        assert_bitwise_equal(alone, together[chosen.long()])


def test_nan_strides_and_no_rows(triton_device) -> None:
    hidden = torch.randn(6, 64)[::2, :40]
    hidden[1, 7] = torch.nan
    head = make_head("two_logit", 40, torch.float32)
    rows = torch.tensor([2, 1, 0], dtype=torch.int32)
    got = in_triton(hidden, rows, head, None, triton_device)
    assert got.isnan().tolist() == [False, True, False]
    want = score_steps(hidden.contiguous(), rows, head)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5, equal_nan=True)
    assert in_triton(hidden, rows[:0], head, None, triton_device).shape == (0,)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_op_on_a_gpu(device, dtype) -> None:
    torch.manual_seed(1)
    hidden, head = torch.randn(300, 3584).to(dtype), make_head("two_logit", 3584, dtype)
    rows = torch.arange(0, 300, 3, dtype=torch.int32)
    want = score_steps(hidden, rows, head)
    on_gpu = StepHead(head.kind, tuple(w.to(device) for w in head.weights), head.width)
    got = score_steps(hidden.to(device), rows.to(device), on_gpu)
    torch.testing.assert_close(got.cpu(), want, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"score_steps: rows\[0\] must be in \[0, 300\), got 300"):
        score_steps(hidden.to(device), torch.tensor([300], dtype=torch.int32).numpy(), on_gpu)
