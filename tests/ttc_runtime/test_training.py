"""Step labels by rollouts, and the fine-tune on them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ttc_runtime import Engine, RewardModel, SamplingParams
from ttc_runtime.training import (
    UNLABELLED,
    _example,
    label_steps,
    read_labels,
    train_prm,
    write_labels,
)
from ttc_runtime.zoo import arith
from ttc_runtime.zoo.rollouts import training_problems


@pytest.fixture(scope="module")
def engine():
    return Engine.from_pretrained("zoo:arith-small", kv_memory="64MiB", device="cpu")


def test_labels_are_what_rollouts_of_each_prefix_reach(engine) -> None:
    problems = [p for p in training_problems(3) if p["problem"].count("=")]
    rows = list(label_steps(engine, problems, 2, 4, sampling=SamplingParams(max_tokens=120)))
    assert len(rows) >= len(problems)
    answers = {p["problem"]: p["answer"] for p in problems}
    seen = set()
    for row in rows:
        assert len(row["labels"]) == len(row["steps"])
        assert all(label in (0, 0.25, 0.5, 0.75, 1) for label in row["labels"])
        stated = arith.extract_answer("".join(row["steps"]))
        assert row["labels"][-1] == float(stated == answers[row["problem"]])
        seen |= set(row["labels"][:-1])
    assert len(seen) > 1
    # Equal prefixes of two solutions have one set of rollouts, so one label.
    labels: dict = {}
    for row in rows:
        for k in range(1, len(row["steps"])):
            key = (row["problem"], *row["steps"][:k])
            assert labels.setdefault(key, row["labels"][k - 1]) == row["labels"][k - 1]


def test_labelling_goes_on_where_it_was_killed(tmp_path) -> None:
    """A problem whose rows may be incomplete, and a torn line, are done again; others are kept."""
    problems = [{"problem": name} for name in "abcd"]
    asked: list[str] = []

    def label(rest, rows=2):
        for record in rest:
            asked.append(record["problem"])
            for i in range(rows):
                yield {"problem": record["problem"], "row": i}

    def killed(rest):
        for i, row in enumerate(label(rest)):
            if i == 5:
                raise KeyboardInterrupt
            yield row

    out, part = tmp_path / "labels.jsonl", tmp_path / "labels.part"
    with pytest.raises(KeyboardInterrupt):
        write_labels(out, problems, killed)
    assert not out.exists() and asked == ["a", "b", "c"]
    part.write_text(part.read_text() + '{"problem": "c", "ro')
    asked.clear()
    count: list[None] = []
    write_labels(out, problems, label, on_row=lambda: count.append(None))
    assert asked == ["c", "d"] and not part.exists() and len(count) == 8
    assert read_labels(out) == list(label(problems))


def test_rollouts_share_the_tokens_of_their_solution(engine) -> None:
    from ttc_runtime.training import StepLabels

    engine.clear_cache()
    strategy = StepLabels(1, 8, lambda problem, text: True, SamplingParams(max_tokens=120))
    result = engine.solve("417+5*3-8=\n", strategy)
    (row,) = result.info["labelled"]
    # Only the outputs at which rollouts begin were not kept: a token for each step but the last.
    assert result.usage.recomputed <= len(row["steps"]) - 1
    assert result.usage.run <= result.usage.prompt + result.usage.generated + len(row["steps"])
    assert set(row["labels"]) == {1.0} and len(row["steps"]) > 1


def test_labels_behind_the_first_wrong_step_do_not_count(engine) -> None:
    from ttc_runtime.rewards.format import Format
    from ttc_runtime.rewards.spec import RewardSpec

    written = Format(RewardSpec.load("token_classification"), engine.policy.tokenizer)
    row = {"problem": "1+2=\n", "steps": ["1+2=3\n", "#4\n", "#5\n"], "labels": [0.5, 0.0, 1.0]}
    ids, labels = _example(written, row)
    text = engine.policy.tokenizer.decode(ids)
    assert text == "1+2=\n1+2=3\n#4\n#5\n" and len(labels) == len(ids)
    assert {i: label for i, label in enumerate(labels) if label != UNLABELLED} == {
        len("1+2=\n1+2=3\n") - 1: 0.5,
        len("1+2=\n1+2=3\n#4\n") - 1: 0.0,
    }


def test_training_learns_and_the_result_is_a_reward_model(tmp_path) -> None:
    """Steps that end in 1 are good, others are not: arith-small's body learns it at once."""
    from ttc_runtime import zoo

    good, bad = ["1+2=1", "#1"], ["1+2=7", "#7"]
    rows = [
        {"problem": f"{i}+2=\n", "steps": steps, "labels": [label, label]}
        for i in range(40)
        for steps, label in ((good, 1.0), (bad, 0.0))
    ]
    losses: list[str] = []
    out = tmp_path / "prm"
    train_prm(rows, zoo.path("arith-small"), out, steps=200, tokens=400, lr=3e-3, log=losses.append)
    first, last = (float(line.split()[2]) for line in (losses[0], losses[-1]))
    assert len(losses) == 2 and last < 0.1 < first
    reward = RewardModel.from_pretrained(out, device="cpu")
    assert reward.spec.name == "token_classification"
    right, wrong = reward.score("9+2=\n", good), reward.score("9+2=\n", bad)
    assert min(right) > 0.8 and wrong[0] < 0.2  # behind it nothing was trained
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["LlamaForTokenClassification"]


def test_refuses(engine, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"problems need an answer, '1\+1=\\n' has none"):
        next(label_steps(engine, [{"id": 0, "problem": "1+1=\n"}], 1, 1))
    with pytest.raises(ValueError, match="no labelled solution fits 256 tokens"):
        row = {"problem": "1" * 300, "steps": ["1"], "labels": [1.0]}
        train_prm([row], "zoo:arith-small", tmp_path / "x", steps=1)


def test_the_command(tmp_path) -> None:
    from safetensors.torch import load_file
    from ttc_runtime import zoo
    from ttc_runtime.cli import app
    from typer.testing import CliRunner

    problems = tmp_path / "problems.jsonl"
    problems.write_text("\n".join(json.dumps(p) for p in training_problems(1)) + "\n")
    command = [
        "train-prm", "--policy", "zoo:arith-small", "--problems", problems,
        "--base", "zoo:arith-small", "--out", tmp_path / "prm", "--rollouts", "2", "--steps", "3",
        "--step-separator", "\n", "--max-tokens", "100", "--kv-memory", "64MiB",
        "--only", "score|layers.2.",
    ]  # fmt: skip
    done = CliRunner().invoke(app, list(map(str, command)), catch_exceptions=False)
    assert done.exit_code == 0
    labels = (tmp_path / "prm" / "labels.jsonl").read_text()
    assert len(labels.splitlines()) >= 8 and (tmp_path / "prm" / "model.safetensors").is_file()
    trained, base = (
        load_file(Path(where) / "model.safetensors")
        for where in (tmp_path / "prm", zoo.path("arith-small"))
    )
    changed = {n for n, w in trained.items() if n in base and not w.equal(base[n].to(w.dtype))}
    assert changed and all(name.startswith("model.layers.2.") for name in changed)
    again = CliRunner().invoke(app, list(map(str, command)), catch_exceptions=False)
    assert again.exit_code == 0 and (tmp_path / "prm" / "labels.jsonl").read_text() == labels
