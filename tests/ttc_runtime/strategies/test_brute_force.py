"""Greedy, self-consistency and best-of-N by hand; step searches against a brute-force one."""

from __future__ import annotations

import random
import string

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted import PROMPT, check_tree, texts
from ttc_runtime.strategies import (
    DVTS,
    MCTS,
    BeamSearch,
    BestOfN,
    EarlyTermination,
    Greedy,
    SelfConsistency,
)

# Children 0 to 4 answer 7 8 8 9 9.0; the policy likes 7 best.
ANSWERS = {"": ["a#7", "b#8", "c#8", "d#9", "e#9.0"]}
SCORES = {"a#7": 0.5, "b#8": 0.9, "c#8": 0.3, "d#9": 0.6, "e#9.0": 0.7}


def test_greedy_takes_what_is_likeliest(scripted):
    engine = scripted(ANSWERS)
    result = engine.solve(PROMPT, Greedy())
    assert texts(result) == ["a#7"] and result.answer == "7"
    check_tree(engine, result)


@pytest.mark.parametrize("n, answer", [(1, "7"), (3, "8"), (5, "8"), (10, "8")])
def test_the_majority_wins(scripted, n, answer):
    """Of 5, two say 8 and two 9, which is 9.0: the earlier of them wins."""
    engine = scripted(ANSWERS)
    result = engine.solve(PROMPT, SelfConsistency(n))
    assert texts(result) == (ANSWERS[""] * 2)[:n] and result.answer == answer
    check_tree(engine, result)


@pytest.mark.parametrize(
    "n, select, answer",
    [(1, "naive", "7"), (5, "naive", "8"), (5, "weighted", "9"), (3, "weighted", "8")],
)
def test_the_best_wins(scripted, n, select, answer):
    """The best is b (0.9), but 9 has 0.6 + 0.7 against 0.9 + 0.3 for 8."""
    engine = scripted(ANSWERS, SCORES)
    result = engine.solve(PROMPT, BestOfN(n, select))
    assert result.answer == answer and result.scores == list(SCORES.values())[:n]
    assert result.usage.generated == sum(len(text) + 1 for text in ANSWERS[""][:n])
    check_tree(engine, result)


def made_up(rng, depth=4):
    """A tree of at most so many steps with 1 to 3 ways to go on, and a score for each step."""
    steps, scores, letters = {}, {}, string.ascii_letters

    def grow(text, left):
        ways = [f"{c}\n" for c in rng.sample(letters, rng.randint(1, 3))]
        steps[text] = [
            way if left and rng.random() < 0.8 else f"#{way[0]}{i}" for i, way in enumerate(ways)
        ]
        # The first character tells the ways apart, so only one of them can be an answer.
        answers = [way for way in steps[text] if way[0] == "#"][:1]
        steps[text] = answers + [way for way in steps[text] if way[0] != "#"]
        for way in steps[text]:
            scores[(text + way).strip()] = round(rng.random(), 3)
            if way[0] != "#":
                grow(text + way, left - 1)

    grow("", depth)
    return steps, scores


def searched(steps, scores, seeds, select):
    """Step search in a dozen lines: beams as (text, seed); a seed says which way a beam takes.

    seeds: of the first beams. select: function of the unfinished beams' scores and the places left
    that gives the number of children of each. Returns the finished texts in the order they ended.
    """
    beams, finished = [("", seed) for seed in seeds], []
    while beams:
        beams = [(text + steps[text][seed % len(steps[text])], seed) for text, seed in beams]
        finished += [text for text, _ in beams if text[-1] != "\n"]
        beams = [(text, seed) for text, seed in beams if text[-1] == "\n"]
        counts = select([scores[text.strip()] for text, _ in beams], len(seeds) - len(finished))
        beams = [
            (text, seed if count == 1 else child)
            for (text, seed), count in zip(beams, counts, strict=True)
            for child in range(count)
        ]
    return finished


def best(width):
    def select(scores, places):
        counts = [0] * len(scores)
        for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
            counts[i] = min(width, places)
            places -= counts[i]
        return counts

    return select


def at_least(threshold):
    return lambda scores, places: [
        int(score >= threshold or i == scores.index(max(scores))) for i, score in enumerate(scores)
    ]


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 2**32), st.sampled_from([(4, 2), (6, 3), (8, 4), (3, 1)]))
def test_step_searches_against_brute_force(scripted, seed, sizes):
    steps, scores = made_up(random.Random(seed))
    n, width = sizes
    engine = scripted(steps, scores)

    def found(strategy):
        result = engine.solve(PROMPT, strategy)
        check_tree(engine, result)
        return texts(result)

    assert found(BeamSearch(n, width)) == searched(steps, scores, range(n), best(width))
    subtrees = [range(start, start + width) for start in range(0, n, width)]
    expected = [text for s in subtrees for text in searched(steps, scores, s, best(width))]
    assert found(DVTS(n, width)) == expected
    assert found(EarlyTermination(n, 0.4)) == searched(steps, scores, range(n), at_least(0.4))


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 2**32), st.sampled_from(["uct", "puct"]), st.integers(1, 4))
def test_mcts_finds_the_best_of_all_leaves(scripted, seed, rule, parallel):
    """With more walks than there are leaves it has seen each of them."""
    steps, scores = made_up(random.Random(seed), depth=2)
    engine = scripted(steps, scores)
    result = engine.solve(PROMPT, MCTS(99, 3, rule, parallel=parallel, select="naive"))
    leaves = [text + way for text in steps for way in steps[text] if way[0] == "#"]
    assert set(texts(result)) == set(leaves)
    assert scores[result.text] == max(scores[leaf] for leaf in leaves)
    check_tree(engine, result)
