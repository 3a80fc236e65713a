"""row_descriptor in Triton: the very descriptors of the CPU."""

from __future__ import annotations

import itertools

import pytest
import torch

from ttc_kernels.verify import row_descriptor

FILTERS = [
    {},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 10**9},
    {"top_p": 0.7},
    {"top_p": 1e-9},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"top_k": 20, "top_p": 0.9, "min_p": 0.01},
]


def in_triton(logits, temperature, top_k, top_p, min_p):
    from ttc_kernels.triton.row_descriptor import row_descriptor as kernel

    columns = (temperature, top_k, top_p, min_p)
    return kernel(logits, *(column.to(logits.device) for column in columns)).cpu()


def assert_same(logits: torch.Tensor, cases: list[dict], device: torch.device) -> None:
    """Every row of logits under every case of parameters."""
    rows = len(logits) * len(cases)
    defaults = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    columns = {
        name: torch.tensor([case.get(name, value) for case in cases]).repeat_interleave(len(logits))
        for name, value in defaults.items()
    }
    columns["top_k"] = columns["top_k"].int()
    all_logits = logits.repeat(len(cases), 1)
    want = row_descriptor(all_logits, **columns)
    got = in_triton(all_logits.to(device), **columns)
    # As numbers: pivots of 0 and -0 are one pivot.
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    assert got.shape == (rows, 9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("vocab_size", [1, 63, 1500, 5000])
def test_equals_the_cpu(triton_device, dtype: torch.dtype, vocab_size: int) -> None:
    torch.manual_seed(vocab_size)
    logits = (torch.randn(1, vocab_size) * 4).to(dtype)  # float16 brings ties
    temperatures = (0.0, 0.4, 1e-30, 50.0) if vocab_size < 1000 else (0.7,)
    assert_same(
        logits, [{"temperature": t, **f} for t in temperatures for f in FILTERS], triton_device
    )


@pytest.mark.gpu
@pytest.mark.parametrize("vocab_size", [50_257, 151_936])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equals_the_cpu_at_full_size(device, dtype: torch.dtype, vocab_size: int) -> None:
    torch.manual_seed(0)
    logits = (torch.randn(40, vocab_size) * 4).to(dtype)
    temperatures = (0.0, 0.3, 1.0, 10.0)
    assert_same(logits, [{"temperature": t, **f} for t in temperatures for f in FILTERS], device)


def test_ties_infinities_and_rows_without_a_distribution(triton_device) -> None:
    inf, nan = torch.inf, torch.nan
    logits = torch.full((7, 200), -inf)
    logits[0] = 0.0
    logits[0, ::2] = -0.0
    logits[1, 5:90] = 2.5
    logits[1, 150:] = 3.0
    logits[2, 17] = -3e38
    logits[3] = -1.0
    logits[3, 199] = nan
    logits[4, 3] = inf
    logits[6] = torch.randn(200)  # row 5 has nothing above -inf
    cases = [
        {"top_k": k, "top_p": p, "min_p": m, "temperature": t}
        for (k, p, m), t in itertools.product(
            [(0, 1.0, 0.0), (60, 1.0, 0.0), (0, 0.6, 0.0), (120, 0.9, 0.3)], (0.0, 0.5)
        )
    ]
    assert_same(logits, cases, triton_device)


def test_strided_rows_and_no_rows(triton_device) -> None:
    torch.manual_seed(1)
    wide = torch.randn(4, 300).to(triton_device)
    ones, none = torch.ones(4), torch.zeros(4)
    columns = (ones * 0.5, none.int(), ones * 0.8, none)
    strided = in_triton(wide[:, :211], *columns)
    assert torch.equal(strided, in_triton(wide[:, :211].contiguous(), *columns))
    assert in_triton(wide[:0], *(column[:0] for column in columns)).shape == (0, 9)


@pytest.mark.gpu
def test_the_op_runs_on_a_gpu_inside_a_graph(device) -> None:
    logits = torch.randn(5, 1000, device=device)
    row_descriptor(logits, 1.0, top_p=0.9)
    columns = [torch.full((5,), v, device=device) for v in (0.7, 0.0, 0.9, 0.0)]
    columns[1] = columns[1].int()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = torch.ops.ttc_kernels.row_descriptor(logits, *columns)
    logits.copy_(torch.randn(5, 1000))
    graph.replay()
    assert torch.equal(out, torch.ops.ttc_kernels.row_descriptor(logits, *columns))


@pytest.mark.gpu
def test_refuses_on_a_gpu(device) -> None:
    logits = torch.zeros(2, 4, device=device)
    with pytest.raises(ValueError, match=r"row_descriptor: top_p\[0\] must be in .* got 1.5"):
        row_descriptor(logits, 1.0, top_p=1.5)
    with pytest.raises(ValueError, match=r"temperature\[1\] must be 0 .* got -1"):
        row_descriptor(logits, torch.tensor([1.0, -1.0]))
