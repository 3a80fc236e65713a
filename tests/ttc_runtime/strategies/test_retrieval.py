"""Retrieval in mid-thought: what the tool returns, and when it does not."""

from __future__ import annotations

import threading
import time

import pytest
from scripted import PROMPT, check_tree, texts
from ttc_runtime import Budget
from ttc_runtime.strategies import Retrieval

STEPS = {
    "": ["hm <q>who</q>"],
    "hm <q>who</q><r>Bob</r>": ["#Bob"],
    "hm <q>who</q><r>FAILED</r>": ["#?"],
    "hm <q>who</q><r>NO</r>": ["#never"],
}


def retrieval(tool, **settings):
    marks = {"begin": "<q>", "end": "</q>", "before": "<r>", "after": "</r>", "condense": ""}
    return Retrieval(tool, **{**marks, "failed": "FAILED", "refused": "NO", **settings})


def test_what_is_found_is_put_into_the_thought(scripted):
    asked = []
    engine = scripted(STEPS)
    result = engine.solve(PROMPT, retrieval(lambda query: asked.append(query) or "Bob", n=2))
    assert texts(result) == ["hm <q>who</q><r>Bob</r>#Bob"] * 2 and result.answer == "Bob"
    assert asked == ["who", "who"] and result.info == {"calls": [[{"query": "who"}]] * 2}
    assert result.usage.recomputed == 0
    check_tree(engine, result)


def test_documents_are_condensed(scripted):
    prompts = {PROMPT: STEPS, "who in Bob, Al?": {"": [" Bob \n"]}}
    engine = scripted(prompts, prompts=list(prompts))
    tool = retrieval(lambda query: "Bob, Al", condense="{query} in {found}?")
    result = engine.solve(PROMPT, tool)
    assert result.answer == "Bob"
    check_tree(engine, result)


def test_a_tool_that_raises_is_recorded(scripted):
    def tool(query):
        raise KeyError("no such page")

    result = scripted(STEPS).solve(PROMPT, retrieval(tool))
    assert result.info == {"calls": [[{"query": "who", "error": "KeyError: 'no such page'"}]]}
    assert result.answer == "?" and result.error is None


def test_a_tool_that_returns_no_text_is_recorded(scripted):
    result = scripted(STEPS).solve(PROMPT, retrieval(lambda query: None))
    assert "the tool must return text, got NoneType" in result.info["calls"][0][0]["error"]


def test_a_tool_that_never_returns_is_given_up(scripted):
    """The others do not wait for it, and neither does the end of the process (a daemon thread)."""
    release, started = threading.Event(), time.monotonic()
    engine = scripted(STEPS)
    try:
        strategy = retrieval(lambda query: release.wait(60), seconds=0.3)
        results = engine.solve_all([PROMPT, PROMPT], strategy)
    finally:
        release.set()
    assert time.monotonic() - started < 5
    for result in results:
        assert result.info["calls"][0][0]["error"] == "no answer within 0.3 s"
        assert result.answer == "?"
    check_tree(engine, results[0])


def test_the_time_budget_ends_a_call(scripted):
    release, started = threading.Event(), time.monotonic()
    try:
        strategy = retrieval(lambda query: release.wait(60), seconds=60)
        result = scripted(STEPS).solve(PROMPT, strategy, Budget(seconds=0.3))
    finally:
        release.set()
    assert time.monotonic() - started < 5 and result.stop_reason == "budget"
    assert "no answer within" in result.info["calls"][0][0]["error"]


def test_calls_are_limited(scripted):
    engine = scripted(STEPS)
    result = engine.solve(PROMPT, retrieval(lambda query: "Bob", max_calls=0))
    assert result.answer == "never"
    again = {"": ["<q>a</q>"]}
    for times in range(1, 5):
        again["<q>a</q>" * 1 + "<r>x</r><q>a</q>" * (times - 1) + "<r>x</r>"] = ["<q>a</q>"]
        again["<q>a</q>" + "<r>x</r><q>a</q>" * (times - 1) + "<r>NO</r>"] = ["<q>a</q>"]
    result = scripted(again).solve(PROMPT, retrieval(lambda query: "x", max_calls=2))
    assert len(result.info["calls"][0]) == 4 and result.answer is None  # 2, one refused, the end


def test_wrong_settings(scripted):
    with pytest.raises(ValueError, match="Retrieval: tool must be a function of a query, got None"):
        Retrieval(None)
    with pytest.raises(ValueError, match="begin and end must be non-empty"):
        retrieval(str, end="")
    with pytest.raises(ValueError, match="tool must be module:function, got 'textwrap:nothing'"):
        Retrieval("textwrap:nothing")
    result = scripted(STEPS | {"hm <q>who</q><r>who</r>": ["#x"]}).solve(
        PROMPT, retrieval("textwrap:dedent")
    )
    assert result.answer == "x"
    result = scripted(STEPS).solve_all([PROMPT], retrieval(str, seconds=0))[0]
    assert "Call: seconds must be positive, got 0" in result.error
