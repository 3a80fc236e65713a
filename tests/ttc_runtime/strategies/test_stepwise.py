"""REBASE, particle filtering and early termination, and the selections they are made of."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import PROMPT, check_tree, texts, walk
from ttc_runtime.strategies import EarlyTermination, ParticleFilter, Rebase
from ttc_runtime.strategies.particle import odds
from ttc_runtime.strategies.selection import AtLeast, Best, Softmax

NAN = math.nan
STEPS = {
    "": ["a\n", "b\n", "c\n", "d\n"],
    **{f"{x}\n": [f"{x}1\n", f"{x}2\n"] for x in "abcd"},
    **{f"{x}\n{x}{n}\n": [f"#{x}{n}"] for x in "abcd" for n in (1, 2)},
}


def score(text: str) -> float:
    """By the first letter alone."""
    return {"a": 0.9, "b": 0.7, "c": 0.2, "d": 0.1}[text[0]]


def test_rebase_by_hand(scripted):
    """exp(v / 0.2) is 90.0 for a, 33.1 for b, 2.7 for c, 1.6 for d.

    First step: of 4 places a gets ceil(4 * 90 / 127) = 3, b the last one. Children 0 1 2 of a take
    a1, a2, a1. Second step: ceil(4 * 90 / 303) = 2 for the first a1, ceil(2 * 90 / 213) = 1 for a2,
    ceil(1 * 90 / 123) = 1 for the other a1, nothing for b.
    """
    engine = scripted(STEPS, score)
    result = engine.solve(PROMPT, Rebase(4, temperature=0.2))
    assert texts(result) == ["a\na1\n#a1", "a\na1\n#a1", "a\na2\n#a2", "a\na1\n#a1"]
    dropped = {n.text for n in walk(result.tree) if n.end_reason == "pruned"}
    assert dropped == {"b\nb2\n", "c\n", "d\n"}
    assert result.usage.recomputed == 0
    check_tree(engine, result)


def test_early_termination_keeps_what_scores_enough(scripted):
    engine = scripted(STEPS, score)
    result = engine.solve(PROMPT, EarlyTermination(4, threshold=0.5))
    assert texts(result) == ["a\na1\n#a1", "b\nb2\n#b2"]
    assert [n.end_reason for n in result.tree.children] == [None, None, "early_stop", "early_stop"]
    alone = scripted(STEPS, score).solve(PROMPT, EarlyTermination(4, threshold=1.0))
    assert texts(alone) == ["a\na1\n#a1"]  # the best always goes on
    check_tree(engine, result)


def test_particles_are_drawn_by_their_odds(scripted):
    """With a reward of 1 for a and 0 for the others, odds of 1e7 and 1e-7: all are drawn from a."""
    engine = scripted(STEPS, lambda text: float(text[0] == "a"))
    result = engine.solve(PROMPT, ParticleFilter(4))
    assert len(result.branches) == 4 and {text[0] for text in texts(result)} == {"a"}
    assert [n.end_reason for n in result.tree.children] == [None, *["resampled"] * 3]
    check_tree(engine, result)


def test_particle_counts_follow_the_odds(scripted):
    """Odds 3, 1, 1, 1 (0.75 and 0.5): a is drawn half of the time, within 5 standard deviations."""
    engine = scripted(STEPS, lambda text: 0.75 if text[0] == "a" else 0.5)
    drawn = Counter()
    for seed in range(150):
        result = engine.solve(PROMPT, ParticleFilter(8, max_steps=1), seed=seed)
        drawn.update(b.text[0] for b in result.branches)
    total = sum(drawn.values())
    # 8 particles start as a b c d a b c d.
    expected = 6 / 12
    assert abs(drawn["a"] / total - expected) < 5 * math.sqrt(expected * (1 - expected) / total)
    assert odds(0.75) == pytest.approx(3) and odds(NAN) == odds(0) > 0


def test_finished_particles_take_part(scripted):
    """A finished particle that is not drawn again is no candidate, one drawn often counts often."""
    steps = {"": ["#1", "b\n"], "b\n": ["#2"]}
    engine = scripted(steps, lambda text: float(text.startswith("b")))
    result = engine.solve(PROMPT, ParticleFilter(4))
    assert set(texts(result)) == {"b\n#2"}
    assert {n.end_reason for n in result.tree.children if n.text == "#1"} == {"resampled"}
    engine = scripted(steps, lambda text: float(text.startswith("#1")))
    assert texts(engine.solve(PROMPT, ParticleFilter(4))) == ["#1"] * 4
    check_tree(engine, result)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.one_of(st.floats(0, 1), st.just(NAN)), min_size=1, max_size=12),
    st.integers(1, 24),
    st.sampled_from([Best(1), Best(3), Softmax(0.2), Softmax(5.0), AtLeast(0.5)]),
)
def test_selections_fill_their_places(values, places, select):
    counts = select(values, places, random.Random(0))
    assert len(counts) == len(values) and min(counts) >= 0 and sum(counts) >= 1
    if isinstance(select, AtLeast):
        return
    assert (
        sum(counts) == min(places, select.width * len(values))
        if isinstance(select, Best)
        else (sum(counts) == places)
    )
    known = [(v, c) for v, c in zip(values, counts, strict=True) if v == v]
    for v, c in known:
        for w, d in known:
            assert v <= w or c >= d - 1  # a better one never gets much less: rounding moves one


def test_softmax_matches_its_definition():
    """Shares rounded up from the best on, of what is left: written out with plain numbers."""
    values, places, temperature = [0.3, 0.8, 0.5], 10, 0.25
    weights = [math.exp(v / temperature) for v in values]
    left, rest, expected = places, sum(weights), [0, 0, 0]
    for i in (1, 2, 0):
        expected[i] = math.ceil(left * weights[i] / rest)
        left, rest = left - expected[i], rest - weights[i]
    assert Softmax(temperature)(values, places, random.Random(0)) == expected


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Rebase(temperature=0), "Softmax: temperature must be positive, got 0"),
        (lambda: Rebase(n=0), "Rebase: n must be an integer >= 1, got 0"),
        (lambda: ParticleFilter(select="best"), "ParticleFilter: select must be 'majority' or"),
        (lambda: EarlyTermination(threshold=2), r"EarlyTermination: threshold must be a number in"),
    ],
)
def test_wrong_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("kind", [Rebase, ParticleFilter, EarlyTermination])
def test_needs_a_reward_model(scripted, kind):
    with pytest.raises(ValueError, match="made without a reward model"):
        scripted(STEPS).solve(PROMPT, kind(4))
