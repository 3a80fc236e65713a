"""The sampler: its distribution, its bits, and its independence of everything but its row."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.library import opcheck

from ttc_kernels import reference
from ttc_kernels.testing import assert_bitwise_equal
from ttc_kernels.verify import row_descriptor, sample_tokens


def _random_case(vocab_size: int, dtype: torch.dtype, **filters):
    torch.manual_seed(vocab_size)
    logits = (torch.randn(12, vocab_size) * 3).to(dtype)
    seeds = torch.randint(-(2**63), 2**63 - 1, (12,))
    positions = torch.randint(0, 2**56, (12,))
    return logits, row_descriptor(logits, 0.8, **filters), seeds, positions


@pytest.mark.parametrize("filters", [{}, {"top_k": 9}, {"top_p": 0.8}, {"min_p": 0.1}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab_size", [1, 5, 64, 129, 3000, 40_000])
def test_tokens_are_those_of_the_reference(filters, dtype: torch.dtype, vocab_size: int) -> None:
    case = _random_case(vocab_size, dtype, **filters)
    assert_bitwise_equal(sample_tokens(*case), reference.sample_tokens(*case))


_VARIANT = """
import sys
import torch
from ttc_kernels.verify import row_descriptor, sample_tokens
inf, nan = float("inf"), float("nan")
seeds, positions = torch.arange(10), torch.arange(10) + 2**40
for vocab_size in (300, 20_001, 20_480):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        torch.manual_seed(vocab_size)
        logits = torch.randn(10, vocab_size) * 3
        logits[1] = -logits[1].abs()  # no logit is positive, then none but one block's
        logits[2, 256:] = -logits[2, 256:].abs()
        logits[3] = -0.0
        logits[4, ::2] = -inf
        logits[5, 7] = inf
        logits[6, 299] = nan
        logits[7, 290] = -torch.tensor(nan)
        logits[8, 5] += 40  # nothing else weighs much
        logits[9] *= 100  # beyond the range of exponents
        logits = logits.to(dtype)
        mask = torch.randint(-(2**31), 2**31, (10, -(-vocab_size // 32))).int()
        for bitmask in (None, mask):
            for filters in ((0.9, 5000, 0.97, 1e-4), (1.0, 0, 1.0, 0.0), (0.05, 0, 1.0, 0.0)):
                desc = row_descriptor(logits, *filters, bitmask=bitmask)
                tokens = sample_tokens(logits, desc, seeds, positions, bitmask=bitmask)
                # a zero's sign is that of whichever zero was seen first
                sys.stdout.buffer.write((desc + 0.0).numpy().tobytes() + tokens.numpy().tobytes())
"""


def test_all_instruction_sets_give_the_same_bits() -> None:
    def run(isa: str) -> list[bytes]:
        environment = os.environ | {"TTC_CPU_ISA": isa}
        command = [sys.executable, "-c", _VARIANT]
        out = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout
        return [out[i : i + 10 * 40] for i in range(0, len(out), 10 * 40)]

    newest = run("any")
    assert len(newest) == 3 * 3 * 2 * 3
    assert run("avx2") == newest
    assert run("portable") == newest


def test_a_row_is_independent_of_the_batch_and_of_threads() -> None:
    logits, desc, seeds, positions = _random_case(3000, torch.float32, top_p=0.9)
    together = sample_tokens(logits, desc, seeds, positions)
    order = torch.randperm(12)
    shuffled = sample_tokens(logits[order], desc[order], seeds[order], positions[order])
    assert_bitwise_equal(shuffled, together[order])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert_bitwise_equal(sample_tokens(logits, desc, seeds, positions), together)
    finally:
        torch.set_num_threads(threads)


def _chi_square(tokens: torch.Tensor, probabilities: np.ndarray) -> float:
    """The statistic in standard deviations from its mean."""
    counts = np.bincount(tokens.numpy(), minlength=len(probabilities))
    expected = probabilities * len(tokens)
    assert counts[expected == 0].sum() == 0, "a token that was filtered out was drawn"
    used = expected > 0
    statistic = ((counts[used] - expected[used]) ** 2 / expected[used]).sum()
    freedom = used.sum() - 1
    return float((statistic - freedom) / np.sqrt(2 * freedom))


@pytest.mark.parametrize("filters", [{}, {"top_k": 6}, {"top_p": 0.8}, {"min_p": 0.2}], ids=str)
@pytest.mark.parametrize("keyed_by", ["position", "seed"])
def test_distribution(filters: dict, keyed_by: str) -> None:
    draws = 200_000
    torch.manual_seed(0)
    row = torch.linspace(-1.5, 1.5, 13)[torch.randperm(13)]
    desc = row_descriptor(row[None], 0.7, **filters)
    log_z, max_logit = desc[0, 3].item(), desc[0, 5].item()
    kept = (row >= desc[0, 1]).numpy()
    probabilities = np.where(kept, np.exp((row.double().numpy() - max_logit) / 0.7 - log_z), 0)
    assert probabilities.sum() == pytest.approx(1, abs=1e-6)
    probabilities /= probabilities.sum()
    each = torch.arange(draws)
    seeds, positions = (each, 3) if keyed_by == "seed" else (3, each)
    descriptors = desc.expand(draws, 9).contiguous()
    tokens = sample_tokens(row.expand(draws, 13), descriptors, seeds, positions)
    assert abs(_chi_square(tokens, probabilities)) < 5

    # Negative control: the test notices when two per cent of the mass of one token go to another.
    wrong = probabilities.copy()
    a, b = np.argsort(wrong)[-2:]
    wrong[a] += 0.02 * wrong[b]
    wrong[b] -= 0.02 * probabilities[b]
    assert _chi_square(tokens, wrong) > 5


def test_noise_of_neighbouring_tokens_and_positions_is_independent() -> None:
    draws = 100_000
    logits = torch.zeros(draws, 2)
    tokens = sample_tokens(logits, row_descriptor(logits, 1.0), 11, torch.arange(draws))
    pairs = tokens[:-1] * 2 + tokens[1:]
    assert abs(_chi_square(pairs, np.full(4, 0.25))) < 5


def test_greedy_ties_and_rows_without_a_distribution() -> None:
    logits = torch.tensor([[1.0, 5.0, 5.0, 0.0], [torch.nan, 1.0, 2.0, 3.0]])
    for temperature in (0.0, 1.0):
        desc = row_descriptor(logits, temperature, top_k=1)
        for seed in range(20):
            assert sample_tokens(logits, desc, seed, 0).tolist() == [1, -1]


def test_minus_infinity_is_never_drawn() -> None:
    logits = torch.full((2000, 70), -torch.inf)
    logits[:, 67] = -5.0
    logits[:, 3] = -5.5
    tokens = sample_tokens(logits, row_descriptor(logits, 1.0), 0, torch.arange(2000))
    assert set(tokens.tolist()) == {3, 67}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"positions": -1}, ValueError, r"positions\[0\] must be in \[0, 2\^56\), got -1"),
        ({"positions": 2**56}, ValueError, r"positions\[0\]"),
        ({"positions": 0.5}, TypeError, "positions must be torch.int64, got torch.float32"),
        ({"seeds": torch.zeros(3)}, TypeError, "seeds must be torch.int64"),
        ({"desc": torch.zeros(2, 7)}, ValueError, r"desc must be a contiguous \[2, 9\]"),
        ({"desc": torch.full((2, 9), 9.0)}, ValueError, "its argmax is 9"),
        ({"desc": torch.full((2, 9), torch.nan)}, ValueError, "its argmax is"),
        ({"desc": torch.zeros(2, 9).double()}, TypeError, "desc must be float32, got"),
    ],
)
def test_refuses(change: dict, error: type, message: str) -> None:
    logits = torch.zeros(2, 4)
    arguments = {"logits": logits, "desc": row_descriptor(logits, 1.0), "seeds": 0, "positions": 0}
    with pytest.raises(error, match="sample_tokens: .*" + message):
        sample_tokens(**arguments | change)


def test_opcheck() -> None:
    logits = torch.randn(2, 9)
    arguments = (logits, row_descriptor(logits, 1.0), torch.arange(2), torch.arange(2))
    opcheck(torch.ops.ttc_kernels.sample_tokens.default, arguments)
