"""Comparing strategies: figures from records, the frontier, the table and the picture."""

from __future__ import annotations

import json
import sys

import pytest
from test_cli import run  # noqa: F401
from ttc_runtime.compare import Point, frontier, mean_interval, point_of


def point(name, right, total, flops):
    correct = [i < right for i in range(total)]
    return Point(
        name, correct, [5] * total, [0] * total, [flops] * total, [0] * total, [1.0] * total
    )


def test_the_frontier_keeps_what_nothing_cheaper_beats():
    points = [point("a", 5, 10, 100), point("b", 4, 10, 200), point("c", 7, 10, 300)]
    points += [point("d", 5, 10, 50), point("e", 7, 10, 400)]
    assert [p.name for p in frontier(points)] == ["d", "c"]


def test_intervals():
    mean, half = mean_interval([1, 2, 3, 4])
    assert mean == 2.5 and half == pytest.approx(1.96 * (5 / 3 / 4) ** 0.5)
    with pytest.raises(ValueError, match="needs results with known answers"):
        point_of("x", [])


@pytest.fixture
def arguments(tmp_path, tiny_model):
    problems = tmp_path / "problems.jsonl"
    lines = [{"id": f"p{i}", "problem": f"{i}+{i}=\n", "answer": str(i)} for i in range(4)]
    problems.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [
        *["compare", "--model", tiny_model("Llama"), "--problems", problems],
        *["--reward", tiny_model("Llama", "ForTokenClassification"), "--max-tokens", 12],
        *["--kv-memory", "32MiB", "--out", tmp_path / "out"],
        *["--strategies", "greedy,best_of_n:n=3,self_consistency:n=2"],
    ]


def test_the_command(run, arguments, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("COLUMNS", "200")
    status, out, _ = run(*arguments)
    assert status == 0
    files = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert files == [
        "best_of_n_n3.jsonl",
        "frontier.png",
        "greedy.jsonl",
        "self_consistency_n2.jsonl",
    ]
    assert (tmp_path / "out" / "frontier.png").read_bytes().startswith(b"\x89PNG")
    records = [json.loads(x) for x in (tmp_path / "out" / "best_of_n_n3.jsonl").open()]
    made = point_of("best_of_n n=3", records)
    assert all(0 < r < p + r for p, r in zip(made.policy_flops, made.reward_flops, strict=True))
    row = next(line for line in out.splitlines() if "best_of_n n=3" in line)
    low, high = made.interval
    assert f"{100 * made.accuracy:.1f} [{100 * low:.0f}, {100 * high:.0f}]" in row
    assert f"{sum(made.generated) / 4:.0f} ±" in row
    greedy = next(line for line in out.splitlines() if " greedy " in line)
    assert " 0 " in greedy  # no reward model was asked
    again = {f.name: f.read_bytes() for f in (tmp_path / "out").glob("*.jsonl")}
    status, resumed, _ = run(*arguments)
    assert status == 0 and resumed.splitlines()[:8] == out.splitlines()[:8]
    assert again == {f.name: f.read_bytes() for f in (tmp_path / "out").glob("*.jsonl")}


def test_without_matplotlib_there_is_still_a_table(run, arguments, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    status, out, err = run(*arguments)
    assert status == 0 and "accuracy" in out and "no picture" in err and "[viz]" in err


def test_mistakes_are_told(run, arguments, tmp_path):  # noqa: F811
    status, _, err = run(*arguments, "--strategies", "greedy,magic")
    assert status == 1 and "expected one of" in err
    (tmp_path / "problems.jsonl").write_text('{"problem": "1+1="}\n')
    status, _, err = run(*arguments)
    assert status == 1 and "needs an 'answer'" in err
