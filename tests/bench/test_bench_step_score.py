"""The step score benchmark: both sides agree, bytes are counted, and few tokens are run."""

from __future__ import annotations

import json

import pytest
import torch

from bench import step_score, step_score_search

pytest.importorskip("transformers")


def test_a_search_is_scored_alike_with_fewer_tokens() -> None:
    report = step_score_search.compare(8, 3)
    assert report["incremental"]["tokens"] == report["unique_tokens"] == 200 + 8 * 3 * 60
    assert report["incremental"]["recomputed"] == 0
    assert report["rescoring"]["tokens"] == 8 * (3 * 200 + 60 * (1 + 2 + 3))
    assert report["fewer_tokens"] > 4


@pytest.mark.parametrize("kind", step_score.HEADS)
def test_heads_are_measured_against_the_same_scores(kind: str) -> None:
    reads = torch.ones(1 << 20)
    row = step_score.measure_head(kind, 64, 4, torch.float32, 1e11, reads, 1e-9, rounds=3)
    outputs = {
        "two_logit": 64 * 64 + 64 + 2 * 64 + 2,
        "value": 65,
        "raw": 65,
        "token_pair": 2 * 64,
        "softmax": step_score.SLICE * (64 + 2),
    }[kind]
    assert row["weight_bytes"] == 4 * (outputs + 64) and row["row_bytes"] == 4 * (64 * 4 + 8)
    rates = row["bytes_per_s"], row["rows_per_s"]
    assert row["bytes_s"] == pytest.approx(
        row["weight_bytes"] / rates[0] + row["row_bytes"] / rates[1]
    )
    floor = max(row["bytes_s"], row["flops_s"]) + row["call_s"] + 1e-9
    assert row["of_floor"] == pytest.approx(row["score_steps_s"] / floor)
    assert row["tokens"] == 4 * step_score.TOKENS_PER_STEP and row["faster"] > 0
    head, states = step_score.make_head(kind, 64, torch.float32), torch.randn(9, 64)
    rows, norm = torch.arange(9, dtype=torch.int32), torch.rand(64)
    ours = step_score.score_steps(states, rows, head, norm=(norm, 1e-6))
    torch.testing.assert_close(ours, step_score.plain_head(head, norm)(states), atol=1e-5, rtol=0)


def test_rows_measured_before_stay_in_the_file(tmp_path) -> None:
    row = {"head": "value", "hidden": 64, "steps": 1, "of_floor": 1.0}
    file = tmp_path / "heads.json"
    assert step_score.merged(file, [row]) == [row]
    file.write_text(json.dumps({"heads": [row, row | {"steps": 16}]}))
    again = step_score.merged(file, [row | {"of_floor": 2.0}, row | {"head": "raw"}])
    assert [(r["head"], r["steps"], r["of_floor"]) for r in again] == [
        ("value", 1, 2.0), ("value", 16, 1.0), ("raw", 1, 1.0),
    ]  # fmt: skip
