"""Files of problems and results: resuming, torn lines, a full disk."""

from __future__ import annotations

import errno
import json
import os

import pytest
from ttc_runtime.budget import Usage
from ttc_runtime.records import ResultWriter, read_problems
from ttc_runtime.result import Result


def result(name, strategy="greedy", seed=0, error=None):
    return Result(
        0,
        name,
        "1+1=",
        "2",
        strategy,
        seed,
        answer="2",
        correct=True,
        usage=Usage(),
        stop_reason="finished",
        error=error,
    )


def test_broken_problem_lines_are_reported_and_the_others_kept(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_bytes(
        b'{"problem": "1+1="}\n{"problem": \n\n[1]\n{"id": "x"}\n\xff\xfe\n'
        b'{"id": 1, "problem": "2="}\n{"id": "b", "problem": "3=", "answer": 3}'
    )
    problems = read_problems(file)
    assert [record["id"] for record in problems.records] == [1, "b"]
    assert [error.split(": ")[0] for error in problems.errors] == [
        f"{file}, line {n}" for n in (2, 4, 5, 6, 7)
    ]
    assert "occurs twice" in problems.errors[-1]
    assert len(read_problems(file, limit=1).records) == 1


def test_problem_files_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        read_problems(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="limit must be >= 1"):
        read_problems("zoo:arith-test", limit=0)
    assert len(read_problems("zoo:arith-test").records) == 300


def test_results_are_lines_with_the_agreed_keys(tmp_path):
    with ResultWriter(tmp_path / "r.jsonl", "greedy", 0) as writer:
        writer.write(result("a"))
    record = json.loads((tmp_path / "r.jsonl").read_text())
    assert list(record) == [
        "id",
        "problem",
        "answer",
        "pred",
        "correct",
        "completions",
        "scores",
        "agg_scores",
        "completion_tokens",
        "pred_maj",
        "pred_weighted",
        "pred_naive",
        "usage",
        "stop_reason",
        "seed",
        "strategy",
        "tree",
    ]


def test_resuming_skips_what_is_done_for_the_same_strategy_and_seed(tmp_path):
    file = tmp_path / "r.jsonl"
    with ResultWriter(file, "greedy", 0) as writer:
        writer.write(result("a"))
        writer.write(result("failed", error="out of memory"))
    with ResultWriter(file, "greedy", 1) as writer:
        assert writer.done == set()
        writer.write(result("b", seed=1))
    with ResultWriter(file, "greedy", 0) as writer:
        assert writer.done == {"a"}
    assert len(file.read_text().splitlines()) == 3


def test_a_torn_last_line_is_cut_off(tmp_path):
    file = tmp_path / "r.jsonl"
    with ResultWriter(file, "greedy", 0) as writer:
        writer.write(result("a"))
        writer.write(result("b"))
    whole = file.read_bytes()
    for cut in (1, 7, len(whole) // 2 - 1):
        file.write_bytes(whole[:-cut])
        with ResultWriter(file, "greedy", 0) as writer:
            assert writer.done == {"a"}
            writer.write(result("b"))
        assert file.read_bytes() == whole


def test_a_file_of_something_else_is_left_alone(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("my notes\nmore")
    with pytest.raises(ValueError, match="line 1: not a result"):
        ResultWriter(file, "greedy", 0)
    assert file.read_text() == "my notes\nmore"


def test_a_full_disk_keeps_what_was_written(tmp_path, monkeypatch):
    file = tmp_path / "r.jsonl"
    pwrite = os.pwrite

    def full_after_half(fd, data, offset):
        if len(data) > 50:
            return pwrite(fd, data[:50], offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with ResultWriter(file, "greedy", 0) as writer:
        writer.write(result("a"))
        before = file.read_bytes()
        monkeypatch.setattr(os, "pwrite", full_after_half)
        with pytest.raises(OSError, match=r"'b' could not be written .*No space left") as caught:
            writer.write(result("b"))
        assert caught.value.errno == errno.ENOSPC
        assert file.read_bytes() == before
        monkeypatch.undo()
        writer.write(result("b"))
    assert [json.loads(line)["id"] for line in file.read_text().splitlines()] == ["a", "b"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_dev_full():
    with (
        ResultWriter("/dev/full", "greedy", 0) as writer,
        pytest.raises(OSError, match="No space left"),
    ):
        writer.write(result("a"))
