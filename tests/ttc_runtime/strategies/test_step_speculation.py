"""Step-level speculation: whose step stays, worked out by hand."""

from __future__ import annotations

import json

import pytest
from scripted import PROMPT, check_tree, texts, walk
from ttc_runtime import Budget, SamplingParams
from ttc_runtime.strategies import Rating, StepSpeculation

LARGE = {"": ["A\n"], "A\n": ["B\n"], "a\n": ["B\n"], "a\nB\n": ["#1"]}
SMALL = {"": ["a\n"], "a\n": ["b\n"], "a\nB\n": ["c\n"], "A\n": ["b\n"]}
SCORES = {"a": 0.7, "a\nb": 0.69, "a\nB\nc": 0.1, "a\nB": 0.2}


def test_the_reward_model_decides(scripted):
    """a scores 0.7 and stays; b and c fall short, so the large model writes B and #1."""
    engine = scripted(LARGE, SCORES, peers={"small": SMALL})
    result = engine.solve(PROMPT, StepSpeculation())
    assert texts(result) == ["a\nB\n#1"] and result.answer == "1"
    assert result.info == {"steps": 3, "accepted": 1, "draft_tokens": 6, "target_tokens": 5}
    rejected = [node.text for node in walk(result.tree) if node.end_reason == "rejected"]
    assert rejected == ["a\nb\n", "a\nB\nc\n"]
    assert result.usage.recomputed == 0 and result.usage.generated == 11
    # The large model has read what was kept, each token once, and none of what was rejected.
    assert result.tree.search.ledgers[""].run == len(PROMPT) + len("a\nB\n#1")
    check_tree(engine, result)


def rated(text: str) -> list[str]:
    """A large model that rates a step 7 where it ends in a, else 6, and writes B and #1."""
    body = text.removeprefix(PROMPT)
    if body.endswith("=> "):
        return ["7" if body.removesuffix("\n\n=> ").endswith("a") else "6"]
    return {"": ["A"], "a\n": ["B"], "a\nB": ["\n"], "a\nB\n": ["#"], "a\nB\n#": ["1"]}.get(
        body, []
    )


@pytest.mark.parametrize(("threshold", "kept"), [(0.7, "a\nB\n#1"), (0.6, "a\nb\n")])
def test_the_large_model_decides(scripted, threshold, kept):
    """It rates a with 7 of 9 and b with 6; its rating costs one token, thrown away."""
    small = {**SMALL, "a\nb\n": [], "a\nB\n": ["#1"]}
    engine = scripted(rated, peers={"small": small})
    judge = Rating("\n=> ")
    result = engine.solve(PROMPT, StepSpeculation(judge=judge, threshold=threshold, max_steps=2))
    assert texts(result)[0].startswith(kept)
    assert {n.text[-1] for n in walk(result.tree) if n.end_reason == "probe"} <= {"6", "7"}
    assert result.usage.recomputed == 0
    check_tree(engine, result)


def test_a_rating_that_is_no_digit_rejects(scripted):
    engine = scripted(lambda text: [] if "#" in text else ["#"], peers={"small": SMALL})
    result = engine.solve(PROMPT, StepSpeculation(judge="rating"))
    assert texts(result) == ["#"] and result.info["accepted"] == 0


@pytest.mark.parametrize("budget", [Budget(tokens=5), Budget(samples=1), Budget(tokens=2)])
def test_where_the_budget_ends_the_drafted_step_stays(scripted, budget):
    engine = scripted(LARGE, 0.0, peers={"small": SMALL})
    result = engine.solve(PROMPT, StepSpeculation(sampling=SamplingParams(max_tokens=9)), budget)
    assert result.stop_reason == "budget"
    assert texts(result)[0] == {5: "A\nb", None: "a\nB\n#1", 2: "a\n"}[budget.tokens]
    check_tree(engine, result)


def test_wrong_settings(scripted):
    for changes, message in (
        ({"judge": "coin"}, "judge must be 'reward' or 'rating'"),
        ({"threshold": 2}, r"threshold must be a number in \[0, 1\]"),
        ({"n": 0}, "n must be an integer >= 1"),
    ):
        with pytest.raises(ValueError, match=f"StepSpeculation: {message}"):
            StepSpeculation(**changes)
    with pytest.raises(ValueError, match="Rating: prompt must be"):
        Rating("")
    with pytest.raises(ValueError, match=r"further policies, which are \[\], got None"):
        scripted(LARGE, SCORES).solve(PROMPT, StepSpeculation())
    engine = scripted(LARGE, peers={"small": SMALL, "other": SMALL})
    for name in (None, "third"):
        with pytest.raises(ValueError, match=r"which are \['small', 'other'\]"):
            engine.solve(PROMPT, StepSpeculation(draft=name))
    with pytest.raises(ValueError, match="without a reward model"):
        engine.solve(PROMPT, StepSpeculation(draft="small"))


def test_from_the_command_line(tmp_path):
    from ttc_runtime.cli import app
    from typer.testing import CliRunner

    command = f"""solve --model zoo:arith-large --policy small=zoo:arith-small --limit 2
        --reward zoo:arith-prm --problems zoo:arith-test --strategy step_speculation
        --set threshold=0.8 --device cpu --out {tmp_path}/out.jsonl"""
    assert CliRunner().invoke(app, command.split()).exit_code == 0
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(records) == 2 and all(r["correct"] and not r.get("error") for r in records)
