"""Formulas are compared by sympy, within a limit of time, and never evaluated as code."""

from __future__ import annotations

import sys
import time

import pytest
from ttc_runtime import symbolic
from ttc_runtime.answers import equivalent, group, split_thinking
from ttc_runtime.symbolic import decide, same_formula


@pytest.mark.parametrize(
    "a, b, same",
    [
        ("x+1", "1+x", True),
        ("(x+1)^2", "x^2 + 2x + 1", True),
        (r"\frac{\sqrt{12}}{2}", r"\sqrt{3}", True),
        (r"2\pi", "6.28", False),
        ("sin(x)^2 + cos(x)^2", "1", True),
        ("x = 5", "5", True),
        ("y = 2x", "2x = y", True),
        ("(1, 2)", "(2, 1)", False),
        (r"(\frac{1}{2}, 3)", "(0.5, 3)", True),
        (r"\{1, 2\}", r"\{2, 1\}", True),
        ("x", "y", False),
        ("x^2", "x^3", False),
        ("open('/etc/passwd')", "1", False),
        ("x.real", "x", False),
        ("9^(9^9)", "9^(9^9)+x", False),
        ("x =", "x", False),
        ("f(x)", "f(x)+0", False),
    ],
)
def test_formulas(a, b, same):
    assert equivalent(a, b) is same
    assert equivalent(b, a) is same


def test_groups_of_formulas():
    assert group(["x+y", "3", "y+x", "3.0", None]) == [0, 1, 0, 1, -1]


def test_nothing_is_evaluated():
    with pytest.raises((ValueError, AttributeError)):
        decide("__import__('os').getcwd()", "1")
    assert not same_formula("__import__('os').system('true')", "0")


@pytest.fixture
def stuck(monkeypatch):
    """A worker that starts but never answers."""
    code = "import time; print('up', flush=True); time.sleep(60)"
    worker = symbolic._Worker([sys.executable, "-c", code])
    monkeypatch.setattr(symbolic, "_WORKER", worker)
    monkeypatch.setattr(symbolic, "_known", {})
    yield worker
    worker.stop()


def test_a_question_that_takes_too_long_is_given_up(stuck):
    started = time.monotonic()
    assert same_formula("a+b", "b+a", seconds=0.2) is False
    assert time.monotonic() - started < 20 and stuck._process is None  # killed, not left behind


def test_a_worker_that_dies_is_replaced(monkeypatch):
    worker = symbolic._Worker(symbolic._command())
    monkeypatch.setattr(symbolic, "_WORKER", worker)
    monkeypatch.setattr(symbolic, "_known", {})
    assert same_formula("a+b", "b+a", 30)
    worker._process.kill()
    worker._process.wait()
    assert same_formula("a*b", "b*a", 30)
    worker.stop()


@pytest.mark.parametrize(
    "text, thinking, answer",
    [
        ("<think>a 4</think>\nIt is 5.", "a 4", "It is 5."),
        ("a 4</think>It is 5.", "a 4", "It is 5."),
        ("<think>a 4", "a 4", ""),
        ("It is 5.", "", "It is 5."),
    ],
)
def test_thinking_and_answer(text, thinking, answer):
    assert split_thinking(text) == (thinking, answer)
