"""The task of the zoo: right answers, disjoint splits, seeded generators, answer extraction."""

from __future__ import annotations

import itertools
import json
import random

import pytest
from ttc_runtime.zoo import PROBLEM_SETS, arith, problems


def _evaluate(text: str) -> int:
    """The value of a problem text by Python's own arithmetic, left to right, reduced at the end."""
    expression = text.removesuffix("=\n")
    for op in "+-*":
        expression = expression.replace(op, f" {op} ")
    start, *rest = expression.split()
    value = int(start)
    for op, n in zip(rest[::2], rest[1::2], strict=True):
        value = {"+": value + int(n), "-": value - int(n), "*": value * int(n)}[op]
    return value % arith.MODULUS


def test_a_problem_and_its_solution_read_as_documented():
    problem = arith.Problem(417, (("+", 5), ("*", 3), ("-", 8)))
    assert problem.text == "417+5*3-8=\n"
    assert "".join(problem.steps) == "417+5=422\n422*3=266\n266-8=258\n#258\n"
    assert problem.difficulty == "medium"


@pytest.mark.parametrize("n_ops", range(1, arith.MAX_OPS + 1))
def test_answers_agree_with_plain_arithmetic(n_ops):
    rng = random.Random(n_ops)
    for _ in range(200):
        problem = arith.random_problem(rng, n_ops)
        assert int(problem.answer) == _evaluate(problem.text)
        assert len(problem.steps) == n_ops + 1
        assert arith.parse(problem.text) == problem


def test_differences_wrap_around():
    assert arith.apply(3, "-", 8) == 995
    assert arith.Problem(3, (("-", 8),)).answer == "995"


def test_each_split_holds_its_own_texts_and_no_others():
    drawn = {
        split: {p.text for p in itertools.islice(arith.generate(split, 2, seed=7), 300)}
        for split in ("train", "valid", "test")
    }
    for split, texts in drawn.items():
        assert {arith.split_of(text) for text in texts} == {split}
    assert not drawn["train"] & drawn["test"]
    assert not drawn["valid"] & drawn["test"]
    assert not drawn["train"] & drawn["valid"]


def test_generators_are_seeded():
    def draw(seed):
        return list(itertools.islice(arith.generate("train", 4, seed), 20))

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("1+2=3\n#3\n", "3"),
        ("#995\n", "995"),
        ("#1\n#2\n", "2"),
        ("#3", "3"),
        ("1+2=3\n", None),
        ("# 3\n", None),
        ("#1234\n", None),
        ("3#4\n", None),
        ("", None),
    ],
)
def test_extract_answer(text, answer):
    assert arith.extract_answer(text) == answer


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"parse: text must look like .* got '1/2='"):
        arith.parse("1/2=")
    with pytest.raises(ValueError, match=r"apply: op must be .* got '/'"):
        arith.apply(1, "/", 2)
    with pytest.raises(ValueError, match=r"generate: split must be .* got 'dev'"):
        next(arith.generate("dev", 1, seed=0))
    with pytest.raises(ValueError, match=r"problems: name must be one of .* got 'gsm8k'"):
        problems("gsm8k")


@pytest.mark.parametrize("name", PROBLEM_SETS)
def test_problem_sets_are_right_and_in_their_split(name):
    rows = [json.loads(line) for line in problems(name).read_text().splitlines()]
    assert len({row["id"] for row in rows}) == len({row["problem"] for row in rows}) == len(rows)
    for row in rows:
        problem = arith.parse(row["problem"])
        assert problem.text == row["problem"]
        assert int(row["answer"]) == _evaluate(row["problem"])
        assert row["difficulty"] == problem.difficulty
        assert row["n_ops"] == len(problem.ops)
        assert f"arith-{arith.split_of(row['problem'])}" == name
    bands = [row["difficulty"] for row in rows]
    assert {bands.count(band) for band in arith.DIFFICULTIES} == {len(rows) // 3}


def test_problem_sets_are_what_the_generator_gives():
    for name in PROBLEM_SETS:
        rows = [json.loads(line) for line in problems(name).read_text().splitlines()]
        again = arith.problem_set(name.removeprefix("arith-"), len(rows) // 3, seed=0)
        assert [row["problem"] for row in rows] == [problem.text for problem in again]


def test_mistakes_are_marked_from_the_first_wrong_character_of_a_line():
    rng = random.Random(3)
    wrong_lines = 0
    for problem in itertools.islice(arith.generate("train", 5, seed=3), 200):
        text, right = arith.solution_with_mistakes(problem, rng)
        assert len(text) == len(right)
        start, value = 0, problem.start
        for line, (op, n) in zip(text.splitlines(keepends=True), problem.ops, strict=False):
            marks, start = right[start : start + len(line)], start + len(line)
            expected = f"{value}{op}{n}={arith.apply(value, op, n)}\n"
            assert marks == [line[: i + 1] == expected[: i + 1] for i in range(len(line))]
            wrong_lines += not marks[-1]
            value = int(line.split("=")[1])
        assert text[start:] == f"#{value}\n"
    assert 200 < wrong_lines < 800
