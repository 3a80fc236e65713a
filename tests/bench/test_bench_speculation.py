"""The benchmarks of speculation run on the zoo and write what they measured."""

from __future__ import annotations

import json

from bench import speculation, step_speculation


def test_drafts_change_no_text_and_save_passes(tmp_path):
    path = tmp_path / "found.json"
    arguments = f"--limit 3 --rounds 1 --strategies greedy --speculate chain:4 --json {path}"
    assert speculation.main(arguments.split()) == 0
    rows = json.loads(path.read_text())["results"]
    assert [(r["max_batch"], r["speculate"]) for r in rows] == [
        (1, "none"), (1, "chain:4"), (100, "none"), (100, "chain:4"),
    ]  # fmt: skip
    for plain, drafted in zip(rows[::2], rows[1::2], strict=True):
        assert plain["correct"] == drafted["correct"] and drafted["same_text"]
        assert plain["passes_per_token"] == 1 > drafted["passes_per_token"]


def test_step_speculation_between_the_two_models(tmp_path):
    path = tmp_path / "found.json"
    assert step_speculation.main(f"--limit 6 --thresholds 0 0.7 --json {path}".split()) == 0
    small, large, kept, judged = json.loads(path.read_text())["results"]
    assert small["target_share"] == large["target_share"] == 1
    assert kept["target_share"] == 0 and kept["accepted"] == kept["steps"]
    assert 0 < judged["target_share"] < 1 and judged["accepted"] < judged["steps"]
