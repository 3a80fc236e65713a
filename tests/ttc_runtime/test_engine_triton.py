"""Whole searches on the Triton backend, on a GPU or in the interpreter: the code is the same."""

from __future__ import annotations

import pytest
import torch
from ttc_runtime import BestOfN, Greedy, SamplingParams

SHORT = SamplingParams(max_tokens=7)
FILTERED = SamplingParams(temperature=0.8, top_k=30, top_p=0.95, max_tokens=5)
PROBLEMS = ["12+34*3=\n", "7+61=\n"]


@pytest.fixture
def sampled_in_triton(monkeypatch, triton_device):
    """Sampling by the Triton kernels on a CPU too, where the CPU's would be taken."""
    from ttc_kernels.triton.row_descriptor import row_descriptor
    from ttc_kernels.triton.sample_tokens import sample_tokens

    if triton_device.type == "cpu":
        monkeypatch.setattr(torch.ops.ttc_kernels, "row_descriptor", row_descriptor)
        monkeypatch.setattr(torch.ops.ttc_kernels, "sample_tokens", sample_tokens)


def outcome(result):
    return [(b.path, b.tokens, b.steps, b.stop_reason) for b in result.branches]


@pytest.mark.parametrize(
    "strategy, deterministic",
    [
        (Greedy(SHORT), True),
        (BestOfN(2, sampling=SHORT), True),
        (BestOfN(2, sampling=FILTERED), False),
    ],
    ids=["greedy", "best_of_n", "best_of_n-filtered"],
)
def test_the_trees_of_the_cpu(make_engine, triton_device, request, strategy, deterministic):
    settings = {"deterministic": deterministic, "row_block": 16, "kv_memory": "4MiB"}
    expected = make_engine(**settings).solve_all(PROBLEMS, strategy, seed=1)
    request.getfixturevalue("sampled_in_triton")
    engine = make_engine(device=triton_device, backend="triton", **settings)
    results = engine.solve_all(PROBLEMS, strategy, seed=1)
    for result, want in zip(results, expected, strict=True):
        assert outcome(result) == outcome(want)
        assert result.usage.recomputed == 0
        for branch, other in zip(result.branches, want.branches, strict=True):
            assert branch.logprobs == pytest.approx(other.logprobs, abs=1e-4)
            assert branch.step_scores == pytest.approx(other.step_scores, abs=1e-4)
    report = engine.graph_report()["policy"]
    assert report.pop("other") and set(report.values()) == {"graph"}
