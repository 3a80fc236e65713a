"""sample_tokens in Triton: the very tokens of the CPU."""

from __future__ import annotations

import pytest
import torch

from ttc_kernels.verify import row_descriptor, sample_tokens


def in_triton(logits, desc, seeds, positions, device) -> torch.Tensor:
    from ttc_kernels.triton.sample_tokens import sample_tokens as kernel

    return kernel(*(x.to(device) for x in (logits, desc, seeds, positions))).cpu()


def random_case(rows: int, vocab_size: int, dtype: torch.dtype):
    torch.manual_seed(vocab_size)
    logits = (torch.randn(rows, vocab_size) * 3).to(dtype)
    choose = lambda *values: torch.tensor([values[i % len(values)] for i in range(rows)])  # noqa: E731
    desc = row_descriptor(
        logits,
        choose(0.8, 1.0, 0.0, 3.0, 0.1),
        choose(0, 9, 0).int(),
        choose(1.0, 0.8, 1.0, 0.95),
        choose(0.0, 0.0, 0.1, 0.0, 0.0, 0.0, 0.02),
    )
    seeds = torch.randint(-(2**63), 2**63 - 1, (rows,))
    positions = torch.randint(0, 2**56, (rows,))
    return logits, desc, seeds, positions


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("vocab_size", [1, 5, 64, 129, 1027, 20_001])
def test_equals_the_cpu(triton_device, dtype: torch.dtype, vocab_size: int) -> None:
    case = random_case(8 if vocab_size > 20_000 else 64, vocab_size, dtype)
    assert torch.equal(in_triton(*case, triton_device), sample_tokens(*case))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equals_the_cpu_at_full_size(device, dtype: torch.dtype) -> None:
    for seed in range(5):
        case = random_case(200, 151_936 + seed, dtype)
        assert torch.equal(in_triton(*case, device), sample_tokens(*case))


def test_many_seeds(triton_device) -> None:
    """Flat rows, where every token's noise counts."""
    logits = torch.zeros(150, 16)
    logits[:, ::3] = -0.25
    desc = row_descriptor(logits, 1.0)
    seeds, positions = torch.arange(150) - 75, torch.arange(150) * 2**47
    tokens = in_triton(logits, desc, seeds, positions, triton_device)
    assert torch.equal(tokens, sample_tokens(logits, desc, seeds, positions))
    assert len(set(tokens.tolist())) == 16


def test_rows_without_a_distribution_ties_and_strides(triton_device) -> None:
    logits = torch.randn(6, 150)[:, :70]
    logits[1, 66] = torch.nan
    logits[2] = -torch.inf
    logits[3, 10:30] = 9.0
    logits[4, :] = -torch.inf
    logits[4, 69] = 1.0
    seeds, positions = torch.arange(6), torch.arange(6)
    for temperature in (0.0, 1.0):
        desc = row_descriptor(logits, temperature, top_k=12)
        tokens = in_triton(logits, desc, seeds, positions, triton_device)
        assert torch.equal(tokens, sample_tokens(logits, desc, seeds, positions))
        assert tokens[[1, 2, 4]].tolist() == [-1, -1, 69] and 10 <= tokens[3] < 22
    empty = in_triton(logits[:0], desc[:0], seeds[:0], positions[:0], triton_device)
    assert empty.shape == (0,) and empty.dtype == torch.int32


@pytest.mark.gpu
def test_the_op_runs_on_a_gpu_inside_a_graph(device) -> None:
    case = [x.to(device) for x in random_case(5, 1000, torch.float32)]
    want = sample_tokens(*case)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = torch.ops.ttc_kernels.sample_tokens(*case)
    graph.replay()
    assert torch.equal(out, want)
