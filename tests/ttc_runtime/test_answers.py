"""Taking answers from text, comparing and voting."""

from __future__ import annotations

import math

import pytest
from ttc_runtime.answers import equivalent, extract_answer, extractor_for, group
from ttc_runtime.rewards import aggregate
from ttc_runtime.strategies import vote


@pytest.mark.parametrize(
    "text, answer",
    [
        (r"first \boxed{1}, then \boxed{ \frac{1}{2} }.", r"\frac{1}{2}"),
        (r"cut off \boxed{\frac{1", "1"),
        ("Final Answer: 42.\n", "42"),
        ("final answer is 7 apples", "7 apples"),
        ("we get 1,234.5 or -3/4", "-3/4"),
        ("nothing", None),
        ("", None),
    ],
)
def test_extract_answer(text, answer):
    assert extract_answer(text) == answer


def test_the_zoo_has_its_own_extractor():
    assert extractor_for("zoo:arith-small")("1+1=2\n#2\n") == "2"
    assert extractor_for("some/directory") is extract_answer


@pytest.mark.parametrize(
    "a, b, same",
    [
        ("1/2", "0.5", True),
        ("007", "7", True),
        ("1,000", "1000", True),
        ("$5$", " 5. ", True),
        (r"\dfrac{3}{4}", "0.75", True),
        (r"\sqrt{4}", "2", True),
        ("2^10", "1024", True),
        ("x+1", "1+x", True),
        ("x", "x", True),
        ("3", "4", False),
        ("1/0", "2", False),
        ("9^9^9^9", "1", False),
        ("__import__('os')", "1", False),
        ("1" * 300, "2", False),
        ("(-8)^(1/3)", "1", False),
        (None, "1", False),
    ],
)
def test_equivalence(a, b, same):
    assert equivalent(a, b) is same


def test_groups():
    assert group(["a", "1.0", "1", None, "a", "2/2"]) == [0, 1, 1, -1, 0, 1]


NAN = float("nan")


@pytest.mark.parametrize(
    "answers, scores, majority, weighted, naive",
    [
        (["1", "2", "2"], [0.9, 0.3, 0.3], 1, 0, 0),
        (["1", "2", "2.0"], [0.5, 0.3, 0.3], 1, 1, 0),
        ([None, "2"], [0.9, 0.1], 1, 1, 1),
        (["1", "2"], [NAN, 0.1], 0, 1, 1),
        (["1", "2", "2"], [NAN, NAN, NAN], 1, 1, 1),
        (["1", "2"], [0.5, 0.5], 0, 0, 0),
        ([None], [0.3], None, None, None),
        ([], [], None, None, None),
    ],
)
def test_votes(answers, scores, majority, weighted, naive):
    votes = vote(answers, scores)
    assert (votes.majority, votes.weighted, votes.naive) == (majority, weighted, naive)


def test_votes_check_lengths():
    with pytest.raises(ValueError, match="2 answers but 1 scores"):
        vote(["1", "2"], [0.1])


@pytest.mark.parametrize(
    "how, expected", [("min", 0.2), ("prod", 0.08), ("mean", 0.3), ("last", 0.4)]
)
def test_aggregation(how, expected):
    assert aggregate([0.2, 0.4], how) == pytest.approx(expected)
    assert aggregate([0.2], how) == 0.2
    assert math.isnan(aggregate([], how)) and math.isnan(aggregate([0.5, NAN], how))


def test_unknown_aggregation():
    with pytest.raises(ValueError, match="how must be one of"):
        aggregate([0.1], "median")
