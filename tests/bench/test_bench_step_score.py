"""The step score benchmark: both sides agree, bytes are counted, and few tokens are run."""

from __future__ import annotations

import pytest
import torch

from bench import step_score, step_score_search
from bench.roofline import Roofline

pytest.importorskip("transformers")


def test_a_search_is_scored_alike_with_fewer_tokens() -> None:
    report = step_score_search.compare(8, 3)
    assert report["incremental"]["tokens"] == report["unique_tokens"] == 200 + 8 * 3 * 60
    assert report["incremental"]["recomputed"] == 0
    assert report["rescoring"]["tokens"] == 8 * (3 * 200 + 60 * (1 + 2 + 3))
    assert report["fewer_tokens"] > 4


@pytest.mark.parametrize("kind", ["two_logit", "value", "token_pair"])
def test_heads_are_measured_against_the_same_scores(kind: str) -> None:
    row = step_score.measure_head(kind, 64, 4, torch.float32, Roofline(1e10, 1e11), rounds=1)
    outputs = {"two_logit": 64 * 64 + 64 + 2 * 64 + 2, "value": 65, "token_pair": 2 * 64}[kind]
    assert row["bytes"] == 4 * outputs + 4 * (64 * 4 + 8)
    assert row["tokens"] == 4 * step_score.TOKENS_PER_STEP and row["faster"] > 0
    head, states = step_score.make_head(kind, 64, torch.float32), torch.randn(9, 64)
    rows, norm = torch.arange(9, dtype=torch.int32), torch.rand(64)
    ours = step_score.score_steps(states, rows, head, norm=(norm, 1e-6))
    torch.testing.assert_close(ours, step_score.plain_head(head, norm)(states), atol=1e-5, rtol=0)
