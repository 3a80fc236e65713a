"""Budget forcing, the thought-switching penalty, certainty probes, speculative rejection."""

from __future__ import annotations

import pytest
from scripted import PROMPT, check_tree, texts, walk
from ttc_runtime import Budget, SamplingParams
from ttc_runtime.strategies import (
    BudgetForcing,
    CertaintyProbes,
    Outcome,
    SpeculativeRejection,
    ThoughtSwitching,
)

THINK = {
    "": ["one</think>"],
    "oneWait": [" two</think>"],
    "oneWait twoWait": [" three</think>"],
    **{f"{t}</think>": ["#1"] for t in ("one", "oneWait two", "oneWait twoWait three")},
}


def forcing(**settings):
    return BudgetForcing(sampling=SamplingParams(temperature=0.0), **settings)


def test_thinking_long_enough_is_left_alone(scripted):
    engine = scripted(THINK)
    result = engine.solve(PROMPT, forcing())
    assert texts(result) == ["one</think>#1"] and result.answer == "1"
    assert result.info == {"thinking": [{"tokens": 11, "waits": 0, "cut": False}]}
    check_tree(engine, result)


def test_thinking_too_short_waits(scripted):
    """ "one</think>" has 11 tokens, "oneWait two</think>" 19, with three 29."""
    engine = scripted(THINK)
    assert texts(engine.solve(PROMPT, forcing(min_thinking=12))) == ["oneWait two</think>#1"]
    result = engine.solve(PROMPT, forcing(min_thinking=25))
    assert texts(result) == ["oneWait twoWait three</think>#1"]
    assert result.usage.recomputed == 0
    check_tree(engine, result)
    result = engine.solve(PROMPT, forcing(min_thinking=900, max_waits=1))
    assert texts(result) == ["oneWait two</think>#1"]
    assert result.info["thinking"][0]["waits"] == 1


def test_a_model_that_ends_its_text_waits_too(scripted):
    engine = scripted({"": ["one"], "oneWait": [" #2"]})
    result = engine.solve(PROMPT, forcing(min_thinking=6))
    assert texts(result) == ["oneWait #2"] and result.answer == "2"
    check_tree(engine, result)


def test_thinking_too_long_is_cut_and_answers(scripted):
    long = "x" * 50
    engine = scripted({"": [long], f"{long[:20]}\n</think>\nFinal Answer:": [" #7"]})
    result = engine.solve(PROMPT, forcing(max_thinking=20))
    assert texts(result) == [f"{long[:20]}\n</think>\nFinal Answer: #7"]
    assert result.answer == "7" and result.info["thinking"][0]["cut"]
    check_tree(engine, result)


def test_a_budget_ends_thinking_without_an_answer(scripted):
    engine = scripted({"": ["x" * 50]})
    result = engine.solve(PROMPT, forcing(n=2, max_thinking=40), Budget(tokens=30))
    assert result.stop_reason == "budget" and result.usage.generated == 30
    assert result.answer is None
    check_tree(engine, result)


def test_budget_forcing_settings():
    with pytest.raises(ValueError, match="min_thinking must be at most max_thinking = 10, got 11"):
        BudgetForcing(min_thinking=11, max_thinking=10)
    with pytest.raises(ValueError, match="max_thinking must be an integer >= 1, got 0"):
        BudgetForcing(max_thinking=0)


# The policy prefers " but" (rank 0, logit 0) to " so" (rank 1, logit -1) wherever it can choose.
SWITCHING = {"": [" but", " so"]}
for first in (" but", " so"):
    for second in (" but", " so"):
        SWITCHING |= {first: [" but", " so"], first + second: [" but", " so"]}
        SWITCHING |= {first + second + third: ["#1"] for third in (" but", " so")}


def switching(**settings):
    greedy = SamplingParams(temperature=0.0)
    return ThoughtSwitching(words=("but",), sampling=greedy, **settings)


def test_switches_are_counted(scripted):
    result = scripted(SWITCHING).solve(PROMPT, switching(penalty=0.0))
    assert texts(result) == [" but but but#1"] and result.info == {"switches": [3]}


def test_the_penalty_by_position(scripted):
    """A bias function for each token: 3 off the t after "bu" until 5 tokens past the last "but"."""
    from ttc_runtime.strategies.thought_switching import SwitchPenalty

    engine = scripted(SWITCHING)
    seen = []

    class Watched(ThoughtSwitching):
        def run(self, search):
            bias = SwitchPenalty(search, ("but",), 3.0, 5)
            branch = search.root.fork(1)[0]
            decode = search.policy.decode
            for text in (" b", "u", "t", " b", "u", "xx bu", "t bu"):
                branch.extend(text)
                found = bias(branch)
                seen.append(None if found is None else ([decode([i]) for i in found[0]], found[1]))
            seen.append(bias.switches(branch))
            yield from ()
            return Outcome([branch])

    engine.solve(PROMPT, Watched())
    # " b": 2 tokens. "u": 3, the t is next. "t": a switch, the thought starts anew at 4.
    # " b", "u": 3 past it, t again. "xx bu": 8 past it, none. "t bu": a switch, then 3 past it.
    assert seen == [None, (["t"], -3.0), None, None, (["t"], -3.0), None, (["t"], -3.0), 2]


def test_a_penalty_changes_what_is_said(scripted):
    """A word of one token, "-": less 3 it loses to "+" (logit -1), for 4 tokens; then it wins."""
    steps = {}
    for length in range(12):
        for number in range(2**length):
            text = "".join("-+"[number >> i & 1] for i in range(length))
            steps[text] = ["-", "+"] if length < 11 else ["#1"]
    engine = scripted(steps)
    strategy = ThoughtSwitching(
        words=("-",), penalty=3.0, duration=4, sampling=SamplingParams(temperature=0.0)
    )
    result = engine.solve(PROMPT, strategy)
    # 4 tokens of the first thought, then a switch, 4 tokens of the second, a switch, and so on.
    assert texts(result) == ["++++-++++-+#1"] and result.info == {"switches": [2]}
    check_tree(engine, result)


PROBES = {"": ["thinking and thinking and thinking and thinking#9"]}
for at in (8, 16, 24, 32):
    PROBES["thinking and thinking and thinking and thinking"[:at] + "=>"] = {
        8: ["3}"], 16: ["4}"], 24: ["4}"], 32: ["wait 4}"]
    }[at]  # fmt: skip


def probing(**settings):
    settings = {"chunk": 8, "suffix": "=>", "agree": 2, **settings}
    return CertaintyProbes(sampling=SamplingParams(temperature=0.0), **settings)


def brace_number(text):
    return (
        text.rpartition("=>")[2].rstrip("}").split()[-1]
        if "}" in text
        else (text.rpartition("#")[2] or None if "#" in text else None)
    )


def test_equal_answers_end_the_thought(scripted):
    engine = scripted(PROBES, extract=brace_number)
    result = engine.solve(PROMPT, probing())
    assert result.info == {"probes": [["3", "4", "4"]]} and result.answer == "4"
    assert texts(result) == ["thinking and thinking an=>4}"] and result.usage.recomputed == 0
    reasons = [n.end_reason for n in walk(result.tree)][1:]
    assert reasons == ["certain", "probe", "probe", None]
    check_tree(engine, result)


def test_doubts_do_not_count_and_the_thought_may_end_by_itself(scripted):
    steps = {**PROBES, "thinking and thinking and thinking and t=>": ["5}"]}
    steps["thinking and thinking and thinking and thinking#=>"] = ["6}"]
    engine = scripted(steps, extract=brace_number)
    result = engine.solve(PROMPT, probing(agree=3))
    assert result.info == {"probes": [["3", "4", "4", None, "5", "6"]]} and result.answer == "9"
    check_tree(engine, result)


WORDS = {"": ["a\n", "b\n", "c\n", "d\n"]}
WORDS |= {f"{x}\n": [f"{x * 8}\n"] for x in "abcd"}
WORDS |= {f"{x}\n{x * 8}\n": [f"#{x}"] for x in "abcd"}


def test_rejection_by_hand(scripted):
    """After 4 tokens a (0.9) and c (0.6) of 4 are kept, after 4 more a; d and b cost 4 tokens."""
    scores = {"a": 0.9, "b": 0.3, "c": 0.6, "d": 0.1}
    engine = scripted(WORDS, lambda text: scores[text[0]])
    result = engine.solve(PROMPT, SpeculativeRejection(4, segment=4))
    assert texts(result) == ["a\naaaaaaaa\n#a"]
    lengths = {n.text[0]: len(n.tokens) for n in result.tree.children}
    assert lengths == {"a": 14, "b": 4, "c": 8, "d": 4}
    assert result.usage.generated == 30 and result.answer == "a"
    check_tree(engine, result)


@pytest.mark.parametrize("alpha, left", [(0.0, 4), (1.0, 1)])
def test_the_ends_of_alpha(scripted, alpha, left):
    scores = {"a": 0.9, "b": 0.3, "c": 0.6, "d": 0.1}
    engine = scripted(WORDS, lambda text: scores[text[0]])
    result = engine.solve(PROMPT, SpeculativeRejection(4, alpha, segment=4))
    assert len(result.branches) == left and result.answer == "a"


def test_nothing_is_rejected_before_a_step_is_closed(scripted):
    engine = scripted({"": ["x" * 30]}, 0.5)
    result = engine.solve(PROMPT, SpeculativeRejection(3, segment=4))
    assert len(result.branches) == 3
    check_tree(engine, result)
