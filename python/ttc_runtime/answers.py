r"""Answers: taken from a solution's text, and grouped where they mean the same."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable

from ttc_runtime.symbolic import same_formula

_BOXED = r"\boxed{"
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?")
_STATED = re.compile(r"final answer(?: is)?\s*:?[ \t]*([^\n]+)", re.IGNORECASE)
_LARGEST_POWER = 64


def extract_answer(text: str) -> str | None:
    r"""The answer a solution states: its last ``\boxed{}``, what follows its last "Final Answer:",
    else its last number; None if it has none of them. Thinking is left out.

    >>> extract_answer(r"so \boxed{\frac{1}{2}}."), extract_answer("It is 4, or 5.")
    ('\\frac{1}{2}', '5')
    """
    _, text = split_thinking(text)
    stated = stated_answer(text)
    if stated is not None:
        return stated
    numbers = _NUMBER.findall(text)
    return numbers[-1] if numbers else None


def split_thinking(text: str, begin: str = "<think>", end: str = "</think>") -> tuple[str, str]:
    """The thinking and the answer in a text; a thought that was not ended has no answer.

    begin, end: marks around the thinking; the first may be part of the prompt instead.

    >>> split_thinking("<think>3 or 4</think> It is 4.")
    ('3 or 4', 'It is 4.')
    """
    thinking, ended, answer = text.rpartition(end)
    if not ended:
        before, begun, after = text.partition(begin)
        return (after.strip(), "") if begun and not before.strip() else ("", text)
    return thinking.replace(begin, "", 1).strip(), answer.strip()


def stated_answer(text: str) -> str | None:
    r"""The answer a text declares as such: its last ``\boxed{}``, or what follows its last "Final
    Answer:"; None without either.

    >>> stated_answer(r"so \boxed{4}"), stated_answer("It is 4, or 5.")
    ('4', None)
    """
    boxed = _last_boxed(text)
    if boxed is not None:
        return boxed
    stated = _STATED.findall(text)
    return (stated[-1].strip().strip("*$ ").rstrip(".") or None) if stated else None


def _last_boxed(text: str) -> str | None:
    start = text.rfind(_BOXED)
    if start < 0:
        return None
    depth, first = 0, start + len(_BOXED)
    for end in range(first - 1, len(text)):
        depth += (text[end] == "{") - (text[end] == "}")
        if depth == 0:
            return text[first:end].strip()
    return None


def extractor_for(model: str) -> Callable[[str], str | None]:
    """The extractor that fits a model name: the zoo's own for ``zoo:`` models."""
    if model.startswith("zoo:"):
        from ttc_runtime.zoo.arith import extract_answer as zoo_answer

        return zoo_answer
    return extract_answer


def equivalent(a: str | None, b: str | None) -> bool:
    r"""Whether two answers mean the same: equal text, arithmetic of equal value, or equal formulas,
    in plain or LaTeX notation. None equals nothing. Formulas are compared by sympy, for 3 seconds
    at most; see `ttc_runtime.symbolic`.

    >>> equivalent("0.5", r"\frac{1}{2}"), equivalent("x", "y"), equivalent(None, None)
    (True, False, False)
    """
    if a is None or b is None:
        return False
    a, b = _plain(a), _plain(b)
    if a == b:
        return True
    x, y = _value(a), _value(b)
    if x is None or y is None:
        return same_formula(_without_latex(a), _without_latex(b))
    return math.isclose(x, y, rel_tol=1e-9, abs_tol=1e-12)


def group(answers: list[str | None]) -> list[int]:
    """A group number for each answer, groups in order of first appearance; -1 for None.

    >>> group(["1/2", "3", None, "0.5"])
    [0, 1, -1, 0]
    """
    representatives: list[str] = []
    numbers: dict[str, int] = {}
    result = []
    for answer in answers:
        if answer is None:
            result.append(-1)
            continue
        if answer not in numbers:
            matches = (i for i, r in enumerate(representatives) if equivalent(r, answer))
            numbers[answer] = next(matches, len(representatives))
            if numbers[answer] == len(representatives):
                representatives.append(answer)
        result.append(numbers[answer])
    return result


def _plain(answer: str) -> str:
    return re.sub(r"\s+", " ", answer.strip().strip("$").strip().rstrip("."))


_BINARY = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def _value(text: str) -> float | None:
    """Value of an arithmetic expression, None for any other text.

    A small evaluator of its own: model output must never reach a general parser that evaluates it.
    """
    if len(text) > 200:
        return None
    text = _without_latex(text).replace("^", "**")
    # int() refuses leading zeros in source text, and 007 is a number here.
    text = re.sub(r"(?<![\d.])0+(?=\d)", "", text)
    try:
        return _evaluate(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError, TypeError):
        return None


def _without_latex(text: str) -> str:
    """In plain notation: fractions, roots, products, brackets and spacing."""
    before = ""
    while text != before:  # from the inside out
        before = text
        text = re.sub(r"\\sqrt\{([^{}]+)\}", r"((\1)^0.5)", text)
        text = re.sub(r"\\[dt]?frac\{([^{}]+)\}\{([^{}]+)\}", r"((\1)/(\2))", text)
    text = re.sub(r"\\left|\\right|\\[,!; ]|(?<=\d),(?=\d{3})", "", text)
    text = text.replace(r"\cdot", "*").replace(r"\times", "*").replace(r"\infty", "oo")
    text = re.sub(r"\\([{}])", r"\1", re.sub(r"(?<!\\)\{([^{}]*)(?<!\\)\}", r"(\1)", text))
    return re.sub(r"\\([A-Za-z]+)", r"\1 ", text)


def _evaluate(node: ast.AST) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return float(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        value = _evaluate(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp):
        left, right = _evaluate(node.left), _evaluate(node.right)
        if isinstance(node.op, ast.Pow):
            if abs(right) > _LARGEST_POWER:
                raise ValueError("power too large")
            result = left**right
            if isinstance(result, complex):
                raise ValueError("not a real number")
            return result
        if type(node.op) in _BINARY:
            return _BINARY[type(node.op)](left, right)
    raise ValueError("not arithmetic")
