"""Beam search and DVTS on trees small enough to read."""

from __future__ import annotations

import pytest
from scripted import PROMPT, check_tree, texts, walk
from ttc_runtime.strategies import DVTS, BeamSearch

FIRST, SECOND = "aabbccdd", "efghijkl"
PATHS = [f"{x}\n{y}" for x, y in zip(FIRST, SECOND, strict=True)]
STEPS = {
    "": ["a\n", "b\n", "c\n", "d\n"],
    "a\n": ["e\n", "f\n"],
    "b\n": ["g\n", "h\n"],
    "c\n": ["i\n", "j\n"],
    "d\n": ["k\n", "l\n"],
    **{f"{p}\n": [f"#{p[-1]}1\n", f"#{p[-1]}2\n"] for p in PATHS},
}
SCORES = {"a": 0.2, "b": 0.9, "c": 0.5, "d": 0.1}
SCORES |= {path: 0.1 for path in PATHS}
SCORES |= {"b\ng": 0.3, "b\nh": 0.6, "c\ni": 0.7, "c\nj": 0.4}
SCORES |= {f"{p}\n#{p[-1]}{n}": 0.1 * n for p in PATHS for n in (1, 2)}
SCORES["b\nh\n#h1"] = 0.8


def test_a_beam_keeps_the_best_halves_by_hand(scripted):
    """4 beams of width 2: of a b c d stay b and c; of g h i j stay i (0.7) and h (0.6)."""
    engine = scripted(STEPS, SCORES)
    result = engine.solve(PROMPT, BeamSearch(4, 2, select="naive"))
    assert texts(result) == ["b\nh\n#h1\n", "b\nh\n#h2\n", "c\ni\n#i1\n", "c\ni\n#i2\n"]
    assert result.answer == "h1"
    dropped = {node.text for node in walk(result.tree) if node.end_reason == "pruned"}
    assert dropped == {"a\n", "d\n", "b\ng\n", "c\nj\n"}
    assert result.usage.recomputed == 0
    check_tree(engine, result)


def test_lookahead_scores_a_step_by_where_it_leads(scripted):
    """One greedy step ahead, a and b are worth what e (0.1) and g (0.3) are, c what i is (0.7)."""
    engine = scripted(STEPS, SCORES)
    result = engine.solve(PROMPT, BeamSearch(4, 4, lookahead=1, max_steps=1))
    assert {text[:2] for text in texts(result)} == {"c\n"}
    looked = {node.text for node in walk(result.tree) if node.end_reason == "lookahead"}
    assert looked == {"a\ne\n", "b\ng\n", "c\ni\n", "d\nk\n"}
    check_tree(engine, result)


def test_a_finished_beam_keeps_its_place(scripted):
    steps = {"": ["a\n", "#1"], "a\n": ["b\n", "c\n"], "a\nb\n": ["#2"], "a\nc\n": ["#3"]}
    engine = scripted(steps, 0.5)
    result = engine.solve(PROMPT, BeamSearch(2, 2))
    # One place is left for a, which goes on by itself: child 0 takes b.
    assert texts(result) == ["#1", "a\nb\n#2"]
    check_tree(engine, result)


def test_dvts_keeps_one_step_in_each_subtree(scripted):
    """Children 0 1 make up the first subtree, 2 3 the second: b of a b stays, and c of c d."""
    engine = scripted(STEPS, SCORES)
    result = engine.solve(PROMPT, DVTS(4, 2, select="naive"))
    assert texts(result) == ["b\nh\n#h1\n", "b\nh\n#h2\n", "c\ni\n#i1\n", "c\ni\n#i2\n"]
    dropped = [node.text for node in walk(result.tree) if node.end_reason == "pruned"]
    assert sorted(dropped) == ["a\n", "b\ng\n", "c\nj\n", "d\n"]
    check_tree(engine, result)


def test_subtrees_do_not_wait_for_each_other(scripted):
    """A subtree with long steps is still in its first one when the other is done."""
    long = "x" * 60 + "\n"
    steps = {"": ["a\n", long], "a\n": ["b\n"], "a\nb\n": ["#1"], long: ["#2"]}
    engine = scripted(steps, 0.5)
    seen = []
    original = engine.policy._stop

    def stop(growth, reason):
        seen.append(growth.branch.text)
        original(growth, reason)

    engine.policy._stop = stop
    engine.solve(PROMPT, DVTS(2, 1))
    assert seen.index("a\nb\n#1") < seen.index(long)


@pytest.mark.parametrize("strategy", [BeamSearch, DVTS])
def test_a_policy_that_never_closes_a_step(scripted, strategy):
    """Steps are cut at step_tokens, completions at max_tokens: no hang."""
    from ttc_runtime import SamplingParams

    engine = scripted({"": ["x" * 500]}, 0.5)
    result = engine.solve(
        PROMPT, strategy(4, 2, step_tokens=10, sampling=SamplingParams(max_tokens=35))
    )
    assert [b.stop_reason for b in result.branches] == ["length"] * 4
    assert [len(step) for step in result.branches[0].steps] == [10, 10, 10, 5]
    assert result.answer is None and result.pred_majority is None
    check_tree(engine, result)


@pytest.mark.parametrize("strategy", [BeamSearch, DVTS])
def test_wrong_input(scripted, strategy):
    name = strategy.__name__
    with pytest.raises(ValueError, match=f"{name}: width must divide n = 16, got 3"):
        strategy(16, 3)
    with pytest.raises(ValueError, match=f"{name}: n must be an integer >= 1, got 0"):
        strategy(0, 1)
    with pytest.raises(ValueError, match="made without a reward model"):
        scripted(STEPS).solve(PROMPT, strategy(4, 2))
