"""sample_children and token_logprobs in Triton: the very tokens and numbers of the CPU."""

from __future__ import annotations

import pytest
import torch
from test_sample_tokens_triton import random_case

from ttc_kernels import _verify_gpu as in_triton
from ttc_kernels import row_descriptor, sample_children, token_logprobs

MODES = ("topk", "iid", "without_replacement")


def assert_same(got: tuple[torch.Tensor, ...], want: tuple[torch.Tensor, ...]) -> None:
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a.cpu(), b)


def children(logits, desc, k, mode, seeds, positions, streams, device, *, target=False, mask=None):
    tensors = [x.to(device) for x in (logits, desc, seeds, positions, streams)]
    mask = mask if mask is None else mask.to(device)
    return in_triton.sample_children(tensors[0], tensors[1], k, mode, target, *tensors[2:], mask)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_children_equal_the_cpu(triton_device, mode: str, dtype: torch.dtype) -> None:
    for vocab_size, k in ((3, 5), (300, 4), (1027, 1)):
        rows = 4 if vocab_size < 1027 else 2
        logits, desc, seeds, positions = random_case(rows, vocab_size, dtype)
        streams = torch.arange(rows, dtype=torch.int32) * 4000000
        keys = {"seeds": seeds, "positions": positions, "streams": streams}
        got = children(logits, desc, k, mode, *keys.values(), triton_device)
        assert_same(got, sample_children(logits, desc, k, mode, **keys))


def test_ties_rows_without_a_distribution_and_a_bitmask(triton_device) -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 40)
    logits[1] = 0.5  # all tied
    logits[2, 7] = torch.nan
    logits[3, 3:] = -torch.inf
    mask = torch.full((5, 2), -1, dtype=torch.int32)
    mask[0] = torch.tensor([0b1010, 1])
    keys = [torch.arange(5), torch.arange(5), torch.zeros(5, dtype=torch.int32)]
    for mode, temperature in ((mode, t) for mode in MODES for t in (0.0, 0.9)):
        desc = row_descriptor(logits, temperature, bitmask=mask)
        got = children(logits, desc, 6, mode, *keys, triton_device, mask=mask)
        names = dict(zip(("seeds", "positions", "streams"), keys, strict=True))
        assert_same(got, sample_children(logits, desc, 6, mode, bitmask=mask, **names))
        assert (got[0][2] == -1).all()


def test_guesses_at_the_targets_own_draw(triton_device) -> None:
    logits, desc, seeds, positions = random_case(3, 50, torch.float32)
    streams = torch.zeros(3, dtype=torch.int32)
    mode = "without_replacement"
    got = children(logits, desc, 3, mode, seeds, positions, streams, triton_device, target=True)
    keys = {"seeds": seeds, "positions": positions}
    assert_same(got, sample_children(logits, desc, 3, mode, noise="target", **keys))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_logprobs_equal_the_cpu(triton_device, dtype: torch.dtype) -> None:
    for vocab_size in (5, 300, 5000):
        logits, *_ = random_case(4, vocab_size, dtype)
        logits[3, 2] = torch.nan
        mask = torch.randint(-(2**31), 2**31, (4, -(-vocab_size // 32))).int()
        desc = row_descriptor(logits, 0.7, top_p=0.9, bitmask=mask)
        rows = torch.tensor([0, 1, 1, -1, 3, 0, 0, 2]).int()
        tokens = torch.tensor([0, 1, 4, 2, 2, -1, 3, vocab_size - 1]).int()
        for raw in (True, False):
            tensors = (x.to(triton_device) for x in (logits, desc, rows, tokens))
            got = in_triton.token_logprobs(*tensors, raw, mask.to(triton_device))
            assert_same(got, token_logprobs(logits, desc, rows, tokens, raw=raw, bitmask=mask))


def test_refuses(triton_device) -> None:
    logits, desc, seeds, positions = (
        x.to(triton_device) for x in random_case(3, 50, torch.float32)
    )
    streams = torch.zeros(3, dtype=torch.int32, device=triton_device)
    keys = (seeds, positions, streams)
    for arguments, error, message in (
        ((logits, desc, 0, "iid", False, *keys), ValueError, "k must be in"),
        ((logits, desc, 2, "best", False, *keys), ValueError, "mode must be"),
        ((logits, desc[1:], 2, "iid", False, *keys), ValueError, "desc must be a contiguous"),
        ((logits, desc, 2, "iid", False, *keys[:2], seeds), TypeError, "streams must be int32"),
        ((logits.T, desc, 2, "iid", False, *keys), ValueError, "dense last dimension"),
    ):
        with pytest.raises(error, match="sample_children: .*" + message):
            in_triton.sample_children(*arguments)


@pytest.mark.gpu
def test_the_ops_run_on_a_gpu_at_full_size(device) -> None:
    logits, desc, seeds, positions = random_case(20, 151_936, torch.bfloat16)
    streams = torch.arange(20, dtype=torch.int32)
    keys = {"seeds": seeds, "positions": positions, "streams": streams}
    for mode in MODES:
        got = children(logits, desc, 8, mode, *keys.values(), device)
        assert_same(got, sample_children(logits, desc, 8, mode, **keys))
    rows, tokens = torch.arange(20).int(), torch.arange(20).int() * 7000
    want = token_logprobs(logits, desc, rows, tokens)
    tensors = (x.to(device) for x in (logits, desc, rows, tokens))
    assert_same(in_triton.token_logprobs(*tensors, True), want)
