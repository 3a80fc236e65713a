"""Decomposition and plan-and-compare: prompts of their own within one search."""

from __future__ import annotations

import math

import pytest
from scripted import PROMPT, check_tree, texts, walk
from ttc_runtime import Budget
from ttc_runtime.strategies import Decomposition, PlanCompare

SPLIT, PART, WHOLE = "split {problem}:", "[{solved}] {part}:", "all {problem} [{solved}]:"
PROMPTS = {
    "split ?:": {"": ["p\nq\n"]},
    "[] p:": {"": ["#3", "#4"]},
    "[p 3\n] q:": {"": ["nothing"]},
    "all ? [p 3\nq unknown\n]:": {"": ["#7", "#8"]},
}


def test_decomposition_by_hand(scripted):
    engine = scripted(PROMPTS, 0.5, prompts=[PROMPT, *PROMPTS])
    result = engine.solve(PROMPT, Decomposition(3, SPLIT, PART, WHOLE))
    assert result.info == {"parts": ["p", "q"], "answers": ["3", None], "left_out": 0}
    assert texts(result) == ["#7", "#8", "#7"] and result.answer == "7"
    assert result.usage.samples == 1 + 3 * 3 and result.usage.recomputed == 0
    assert [n.stop_reason for n in walk(result.tree) if n.tokens] == ["eos"] * 10
    check_tree(engine, result)


def test_a_function_may_split(scripted):
    engine = scripted(PROMPTS, prompts=[PROMPT, *PROMPTS])
    strategy = Decomposition(1, lambda problem: ["p", "q", "r", "s"], PART, WHOLE, max_parts=2)
    result = engine.solve(PROMPT, strategy)
    assert result.info == {"parts": ["p", "q"], "answers": ["3", None], "left_out": 2}
    assert result.answer == "7"


def test_a_split_that_fails_is_the_problems_error(scripted):
    engine = scripted(PROMPTS, prompts=[PROMPT, *PROMPTS])
    [result] = engine.solve_all([PROMPT], Decomposition(1, lambda problem: problem.nope))
    assert "nope" in result.error and result.stop_reason == "error"


PLANS = {
    "plan ?": {"": ["A", "B"]},
    "solve A": {"": ["#1"]},
    "solve B": {"": ["#2"]},
    "refine #1|#2": {"": ["C"]},
    "final C": {"": ["#5"]},
    "rate #5": {"": ["9 of 10"]},
}


def planning(**settings):
    return PlanCompare(
        plans=2,
        plan="plan {problem}",
        solve="solve {plan}",
        refine="refine {solutions}",
        final="final {plan}",
        rate="rate {solution}",
        **settings,
    )


@pytest.fixture
def plans(scripted):
    def make(scores=None):
        script = {**PLANS, "refine #1\n\n#2": PLANS["refine #1|#2"]}
        return scripted(script, scores, prompts=[PROMPT, *script])

    return make


def test_plans_are_followed_corrected_and_compared(plans):
    engine = plans(0.5)
    result = engine.solve(PROMPT, planning(n=2))
    assert texts(result) == ["#5", "#5"] and result.answer == "5"
    said = [n.text for n in walk(result.tree) if n.text]
    assert sorted(said) == sorted(["A", "B", "#1", "#2", "C", "#5"] * 2)
    assert result.usage.recomputed == 0
    check_tree(engine, result)


def test_without_a_reward_model_the_policy_rates(plans):
    engine = plans()
    result = engine.solve(PROMPT, planning(n=2))
    assert result.info == {"ratings": [9.0, 9.0]} and result.scores == [0.9, 0.9]
    with pytest.raises(ValueError, match="made without a reward model"):
        plans().solve(PROMPT, planning(compare="reward"))


def test_a_rating_that_cannot_be_read_does_not_count(plans, monkeypatch):
    monkeypatch.setitem(PLANS, "rate #5", {"": ["very good"]})
    result = plans().solve(PROMPT, planning(n=1))
    assert math.isnan(result.info["ratings"][0]) and math.isnan(result.scores[0])
    assert result.answer == "5" and result.record()["scores"] == [[]]


def test_a_budget_ends_it_in_the_middle(plans):
    engine = plans(0.5)
    result = engine.solve(PROMPT, planning(n=2), Budget(samples=3))
    assert result.stop_reason == "budget" and result.usage.samples <= 3
    check_tree(engine, result)
