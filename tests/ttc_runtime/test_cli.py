"""The command line, on tiny models."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from ttc_runtime import cli


@pytest.fixture
def run(monkeypatch, capsys):
    """Run ``ttc`` with arguments; returns (exit status, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["ttc", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        out, err = capsys.readouterr()
        return exit_.value.code or 0, out, err

    return call


@pytest.fixture
def arguments(tmp_path, tiny_model):
    problems = tmp_path / "problems.jsonl"
    lines = [{"id": f"p{i}", "problem": f"{i}+{i}=\n", "answer": str(2 * i)} for i in range(6)]
    problems.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [
        "solve",
        "--model",
        tiny_model("Llama"),
        "--problems",
        problems,
        "--reward",
        tiny_model("Llama", "ForTokenClassification"),
        "--n",
        3,
        "--max-tokens",
        20,
        "--kv-memory",
        "32MiB",
        "--out",
        tmp_path / "out.jsonl",
    ]


def records(path):
    return {r["id"]: r for r in map(json.loads, path.read_text().splitlines())}


def test_solve_and_resume(run, arguments, tmp_path):
    status, out, _ = run(*arguments)
    assert status == 0 and "tokens recomputed" in out and "accuracy" in out
    first = records(tmp_path / "out.jsonl")
    assert len(first) == 6 and all(len(r["completions"]) == 3 for r in first.values())
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    (tmp_path / "out.jsonl").write_text("\n".join(lines[:2]) + "\n" + lines[2][:40])
    status, _, err = run(*arguments)
    assert status == 0 and "2 of 6 problems are in" in err

    def lasting(record):
        return {k: v for k, v in record.items() if k != "usage"}

    resumed = records(tmp_path / "out.jsonl")
    assert {k: lasting(r) for k, r in resumed.items()} == {k: lasting(r) for k, r in first.items()}
    assert "6 of 6 problems" in run(*arguments)[2]
    assert run(*arguments, "--strategy", "greedy", "--limit", 2)[0] == 0
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 8


def test_settings_of_a_strategy(run, arguments, tmp_path):
    more = ["--strategy", "beam", "--n", 4, "--set", "width=2", "--set", "select=naive"]
    assert run(*arguments, *more, "--limit", 1)[0] == 0
    assert len(records(tmp_path / "out.jsonl")["p0"]["completions"]) == 4


def test_broken_lines_are_told_and_the_rest_solved(run, arguments, tmp_path):
    problems = tmp_path / "problems.jsonl"
    problems.write_text("not json\n" + problems.read_text())
    status, _, err = run(*arguments, "--limit", 2)
    assert status == 1 and "problems.jsonl, line 1" in err
    assert len(records(tmp_path / "out.jsonl")) == 2


def test_problems_that_fail_show_in_the_exit_status_and_are_tried_again(run, arguments, tmp_path):
    at = arguments.index("--reward")
    no_reward = [*arguments[:at], *arguments[at + 2 :], "--limit", 2]
    status, _, err = run(*no_reward)
    assert status == 1 and "2 of 2 problems failed" in err
    assert "problem p0: BestOfN: the engine was made without a reward model" in err
    assert run(*no_reward, "--strategy", "greedy")[0] == 0
    assert run(*no_reward)[0] == 1, "failed problems must not count as solved"


@pytest.mark.parametrize(
    "change, message",
    [
        (["--model", "/nowhere"], "ttc: model directory: expected .*'/nowhere'"),
        (["--strategy", "magic"], "ttc: strategy: expected one of greedy, .* got 'magic'"),
        (["--set", "width"], "ttc: --set: expected NAME=VALUE, got 'width'"),
        (["--set", "wide=2"], "ttc: best_of_n: settings are n, select, sampling, .* 'wide'"),
        (["--n", "0"], "ttc: BestOfN: n must be an integer >= 1, got 0"),
        (["--temperature", "-1"], "ttc: SamplingParams: temperature must be"),
        (["--tokens", "-5"], "ttc: Budget: tokens must be positive"),
        (["--out", "/nowhere/out.jsonl"], "ttc: .*No such file"),
        (["--problems", "zoo:none"], "ttc: zoo.problems: name must be"),
    ],
)
def test_mistakes_are_one_line(run, arguments, change, message):
    import re

    status, _, err = run(*arguments, *change)
    assert status == 1 and re.search(message, err), err
    assert "Traceback" not in err


def test_env(run):
    status, out, _ = run("env")
    assert status == 0 and "torch" in out


def test_importing_the_package_is_light():
    code = (
        "import sys, ttc_runtime, ttc_runtime.cli; "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
