"""score_steps against its definition, its independence of the batch, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.library import opcheck

from ttc_kernels import reference
from ttc_kernels.step_score import StepHead, score_steps
from ttc_kernels.testing import assert_bitwise_equal, assert_close_to_reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
KINDS = ["two_logit", "value", "raw", "token_pair", "softmax", "vocabulary"]


def _head(kind: str, width: int, dtype: torch.dtype) -> StepHead:
    if kind == "two_logit":
        w1, w2 = torch.randn(37, width) / width**0.5, torch.randn(2, 37) / 6
        return StepHead.two_logit(w1.to(dtype), torch.randn(37), w2.to(dtype), torch.randn(2))
    if kind == "value":
        return StepHead.value((torch.randn(width) / width**0.5).to(dtype), 0.25)
    if kind == "raw":
        return StepHead.raw((torch.randn(width) / width**0.5).to(dtype), 0.25)
    if kind in ("softmax", "vocabulary"):  # more than one chunk of outputs, of which one is partial
        outputs = 3 if kind == "softmax" else 1500
        w = (torch.randn(outputs, width) * 2 / width**0.5).to(dtype)
        return StepHead.softmax(w, torch.randn(outputs), (0, outputs - 1))
    good, bad = (torch.randn(2, width) / width**0.5).to(dtype)
    return StepHead.token_pair(good, bad)


def _plain(hidden: torch.Tensor, rows: torch.Tensor, head: StepHead, norm) -> torch.Tensor:
    """The same formulas, step by step in fp32."""
    h = hidden[rows.long()].float()
    if norm is not None:
        h = torch.nn.functional.rms_norm(h, h.shape[-1:], norm[0].float(), norm[1])
    weights = [weight.float() for weight in head.weights]
    if head.kind == "two_logit":
        inner = torch.relu(h @ weights[0].T + weights[1])
        return (inner @ weights[2].T + weights[3]).softmax(1)[:, 1]
    if head.kind in ("value", "raw"):
        z = (h @ weights[0].T + weights[1])[:, 0]
        return z.sigmoid() if head.kind == "value" else z
    if head.kind == "softmax":
        return (h @ weights[0].T + weights[1]).softmax(1) @ weights[2]
    return (h @ weights[0].T).softmax(1)[:, 0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 16, 100, 1130])
@pytest.mark.parametrize("with_norm", [False, True])
def test_matches_the_definition(kind: str, dtype: torch.dtype, width: int, with_norm: bool) -> None:
    torch.manual_seed(width)
    hidden = (torch.randn(90, width) * 3).to(dtype)
    rows = torch.randint(0, 90, (70,), dtype=torch.int32)  # so many that chance favours nobody
    head = _head(kind, width, dtype)
    norm = (torch.rand(width).to(dtype), 1e-6) if with_norm else None
    scores = score_steps(hidden, rows, head, norm=norm)
    assert scores.dtype == torch.float32
    want = reference.score_steps(hidden, rows, head, norm=norm)
    # A floor for the width 1, where plain torch has no sum to be wrong in.
    assert_close_to_reference(scores, want, _plain(hidden, rows, head, norm), factor=4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [333, 1040])
def test_a_row_has_the_same_bits_in_any_company(kind: str, width: int) -> None:
    """On the CPU a lone row meets weights of 16 n columns before they are widened."""
    torch.manual_seed(0)
    hidden = torch.randn(50, width).bfloat16()
    head = _head(kind, width, torch.bfloat16)
    norm = (torch.rand(width), 1e-5)
    rows = torch.arange(50, dtype=torch.int32)
    together = score_steps(hidden, rows, head, norm=norm)
    for count in (1, 2, 3, 5, 7):
        chosen = torch.randperm(50)[:count].int()
        assert_bitwise_equal(score_steps(hidden, chosen, head, norm=norm), together[chosen.long()])


def test_bf16_weights_give_distinct_scores_near_one() -> None:
    """Logits that bfloat16 could not tell apart, whose probabilities it would round to 1."""
    torch.manual_seed(0)
    hidden = torch.randn(64, 256).bfloat16() * 0.1
    w1 = (torch.randn(256, 256) / 16).bfloat16()
    w2 = torch.randn(2, 256).bfloat16() * 0.3
    bias = torch.tensor([-3.5, 3.5]).bfloat16()
    head = StepHead.two_logit(w1, torch.zeros(256).bfloat16(), w2, bias)
    scores = score_steps(hidden, torch.arange(64, dtype=torch.int32), head)
    assert scores.min() > 0.99 and len(set(scores.tolist())) == 64
    z = torch.relu(hidden @ w1.T) @ w2.T + bias
    assert len(set(z.softmax(1)[:, 1].tolist())) < 8  # the control: all of it in bfloat16


def test_extreme_logits_and_nan() -> None:
    head = StepHead.value(torch.ones(1), 0.0)
    hidden = torch.tensor([[1e30], [-1e30], [-50.0], [torch.nan], [0.0]])
    scores = score_steps(hidden, np.arange(5, dtype=np.int32), head)
    assert scores[[0, 1, 4]].tolist() == [1.0, 0.0, 0.5]
    assert scores[2].item() == pytest.approx(np.exp(-50.0), rel=1e-5)
    assert scores[3].isnan()
    zeros = torch.zeros(2)
    two_logit = StepHead.two_logit(torch.ones(1, 1), zeros[:1], torch.ones(2, 1), zeros)
    assert score_steps(hidden[3:4], np.zeros(1, np.int32), two_logit).isnan().all()


@pytest.mark.parametrize("kind", ["value", "two_logit"])
def test_norm_of_states_whose_squares_overflow_float32(kind: str) -> None:
    torch.manual_seed(0)
    hidden, head, norm = (
        torch.randn(7, 700) * 1e30,
        _head(kind, 700, torch.float32),
        torch.rand(700),
    )
    rows = torch.arange(7, dtype=torch.int32)
    got = score_steps(hidden, rows, head, norm=(norm, 1e-6))
    want = reference.score_steps(hidden, rows, head, norm=(norm, 1e-6))
    torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-6)


def test_strided_hidden_and_no_rows() -> None:
    hidden = torch.randn(6, 64)[::2, :40]
    head = _head("value", 40, torch.float32)
    rows = torch.tensor([2, 0], dtype=torch.int32)
    dense = score_steps(hidden.contiguous(), rows, head)
    assert_bitwise_equal(score_steps(hidden, rows, head), dense)
    assert score_steps(hidden, rows[:0], head).shape == (0,)


def test_head_refuses_bad_weights() -> None:
    w = torch.ones(4)
    for bad in (torch.nan, torch.inf):
        broken = w.clone()
        broken[2] = bad
        with pytest.raises(ValueError, match=rf"value: w must be finite, got {bad} at \[0, 2\]"):
            StepHead.value(broken, 0.0)
        with pytest.raises(ValueError, match="value: b must be finite"):
            StepHead.value(w, bad)
        with pytest.raises(ValueError, match="token_pair: w_bad must be finite"):
            StepHead.token_pair(w, broken)
        with pytest.raises(ValueError, match="softmax: w must be finite"):
            StepHead.softmax(broken[None])
    with pytest.raises(ValueError, match=r"w2 must be \[2, 3\], got \[3, 3\]"):
        StepHead.two_logit(torch.ones(3, 4), torch.ones(3), torch.ones(3, 3), torch.ones(2))
    with pytest.raises(ValueError, match=r"good must name outputs in \[0, 2\), got \(2,\)"):
        StepHead.softmax(torch.ones(2, 4), good=(2,))
    with pytest.raises(TypeError, match="good must be a tuple, got int"):
        StepHead.softmax(torch.ones(2, 4), good=1)
    with pytest.raises(TypeError, match=r"w must be float32 or .* got torch.int64"):
        StepHead.value(torch.ones(4, dtype=torch.int64), 0.0)


@pytest.mark.parametrize(
    ("hidden", "rows", "error", "message"),
    [
        (torch.zeros(3, 5), [0], ValueError, r"hidden must be \[T, 4\], got \[3, 5\]"),
        (torch.zeros(3, 4), [0, 3], ValueError, r"rows\[1\] must be in \[0, 3\), got 3"),
        (torch.zeros(3, 4), [-1], ValueError, r"rows\[0\] .* got -1"),
        (torch.zeros(3, 4).double(), [0], TypeError, "got torch.float64"),
    ],
)
def test_refuses_bad_arguments(hidden, rows, error: type, message: str) -> None:
    head = StepHead.value(torch.zeros(4), 0.0)
    with pytest.raises(error, match="score_steps: .*" + message):
        score_steps(hidden, torch.tensor(rows, dtype=torch.int32), head)
    with pytest.raises(TypeError, match="rows must be int32"):
        score_steps(torch.zeros(3, 4), torch.tensor([0]), head)
    with pytest.raises(ValueError, match="norm weight must be"):
        score_steps(torch.zeros(3, 4), torch.tensor([0]).int(), head, norm=(torch.ones(3), 1e-6))
    with pytest.raises(ValueError, match="norm eps must be >= 0 and finite, got -1"):
        score_steps(torch.zeros(3, 4), torch.tensor([0]).int(), head, norm=(torch.ones(4), -1.0))
    with pytest.raises(TypeError, match=r"norm must be \(weight, eps\), got Tensor"):
        score_steps(torch.zeros(3, 4), torch.tensor([0]).int(), head, norm=torch.ones(4))


def test_opcheck() -> None:
    head = _head("two_logit", 8, torch.float32)
    rows = torch.tensor([1, 0], dtype=torch.int32)
    arguments = (torch.randn(3, 8), rows, head.kind, list(head.weights), torch.ones(8), 1e-6)
    opcheck(torch.ops.ttc_kernels.score_steps.default, arguments)
