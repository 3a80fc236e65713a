"""The zoo's task: chains of operations modulo 1000, worked out one line a step.

A problem is the text ``"417+5*3-8=\\n"``, read strictly from left to right (no precedence) modulo
1000. Its solution is one line an operation and one line for the answer, each closed by a newline,
then end of text: ``"417+5=422\\n422*3=266\\n266-8=258\\n#258\\n"``. A line is a step. The more
operations, the harder: one wrong digit in any line spoils everything after it.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

MODULUS = 1000
MAX_OPS = 8
DIFFICULTIES = {"easy": (1, 2), "medium": (3, 5), "hard": (6, MAX_OPS)}
"""Smallest and largest number of operations of each band."""

_ANSWER = re.compile(r"^#(\d{1,3})$", re.MULTILINE)
_PROBLEM = re.compile(r"(\d+)((?:[-+*]\d+)+)=\n?")


@dataclass(frozen=True)
class Problem:
    """A start value and the operations applied to it in turn.

    start: integer in [0, 1000). ops: pairs such as ``("+", 5)``, applied from left to right.

    >>> p = Problem(417, (("+", 5), ("*", 3)))
    >>> p.text, p.steps, p.answer
    ('417+5*3=\\n', ['417+5=422\\n', '422*3=266\\n', '#266\\n'], '266')
    """

    start: int
    ops: tuple[tuple[str, int], ...]

    @property
    def text(self) -> str:
        """The prompt, closing newline included."""
        return f"{self.start}{''.join(f'{op}{n}' for op, n in self.ops)}=\n"

    @property
    def steps(self) -> list[str]:
        """The right solution: a line for each operation and the answer line."""
        value, lines = self.start, []
        for op, n in self.ops:
            result = apply(value, op, n)
            lines.append(f"{value}{op}{n}={result}\n")
            value = result
        return [*lines, f"#{value}\n"]

    @property
    def answer(self) -> str:
        """The final value as the answer line writes it, without the ``#``."""
        return self.steps[-1][1:-1]

    @property
    def difficulty(self) -> str:
        """``easy``, ``medium`` or ``hard``, from the number of operations."""
        return next(d for d, (_, most) in DIFFICULTIES.items() if len(self.ops) <= most)


def apply(value: int, op: str, n: int) -> int:
    """One operation modulo 1000; ``op`` is ``+``, ``-`` or ``*``.

    >>> apply(3, "-", 8)
    995
    """
    if op == "+":
        return (value + n) % MODULUS
    if op == "-":
        return (value - n) % MODULUS
    if op == "*":
        return value * n % MODULUS
    raise ValueError(f"apply: op must be '+', '-' or '*', got {op!r}")


def parse(text: str) -> Problem:
    """Read a problem text back. Raises ValueError if the text is not a problem.

    >>> parse("417+5*3=\\n").ops
    (('+', 5), ('*', 3))
    """
    match = _PROBLEM.fullmatch(text)
    if match is None:
        raise ValueError(f"parse: text must look like '417+5*3-8=\\n', got {text!r}")
    ops = re.findall(r"([-+*])(\d+)", match[2])
    return Problem(int(match[1]), tuple((op, int(n)) for op, n in ops))


def extract_answer(text: str) -> str | None:
    """The answer that a solution text states: its last ``#`` line, or None if it has none.

    >>> extract_answer("417+5=422\\n#422\\n"), extract_answer("417+5=4")
    ('422', None)
    """
    answers = _ANSWER.findall(text)
    return answers[-1] if answers else None


def split_of(text: str) -> str:
    """The split that a problem text belongs to: 2 % ``test``, 2 % ``valid``, the rest ``train``.

    The split is a property of the text, so the three sets cannot overlap however they are drawn.

    >>> split_of("417+5*3=\\n") in ("train", "valid", "test")
    True
    """
    bucket = zlib.crc32(text.encode()) % 100
    return "test" if bucket < 2 else "valid" if bucket < 4 else "train"


def random_problem(rng: random.Random, n_ops: int) -> Problem:
    """Draw a problem of ``n_ops`` operations, of any split.

    The start is in 1..999; sums and differences take 1..9, products 2..9.

    >>> len(random_problem(random.Random(0), 4).ops)
    4
    """
    ops = []
    for _ in range(n_ops):
        op = rng.choice("+-*")
        ops.append((op, rng.randint(2 if op == "*" else 1, 9)))
    return Problem(rng.randint(1, MODULUS - 1), tuple(ops))


def generate(split: str, n_ops: int, seed: int) -> Iterator[Problem]:
    """An endless seeded stream of problems of one split and one length.

    split: ``train``, ``valid`` or ``test``. n_ops: operations a problem, 1 or more.
    Raises ValueError for another split.

    >>> next(generate("test", 3, seed=1)) == next(generate("test", 3, seed=1))
    True
    """
    if split not in ("train", "valid", "test"):
        raise ValueError(f"generate: split must be 'train', 'valid' or 'test', got {split!r}")
    rng = random.Random(f"{split}/{n_ops}/{seed}")
    while True:
        problem = random_problem(rng, n_ops)
        if split_of(problem.text) == split:
            yield problem


def solution_with_mistakes(problem: Problem, rng: random.Random) -> tuple[str, list[bool]]:
    """A solution with random wrong results, each carried on, and which characters are right.

    The chance of a mistake is drawn anew for each solution, so some have none. A character is right
    if its line, taken by itself, is right up to it.

    >>> text, right = solution_with_mistakes(Problem(417, (("+", 5),)), random.Random(1))
    >>> len(text) == len(right), text.endswith("\\n")
    (True, True)
    """
    rate = rng.uniform(0, 0.8)
    value, text, right = problem.start, "", []
    for op, n in problem.ops:
        true = f"{value}{op}{n}={apply(value, op, n)}\n"
        result = apply(value, op, n)
        if rng.random() < rate:
            result = _changed(result, rng)
        line = f"{value}{op}{n}={result}\n"
        right += [true.startswith(line[: i + 1]) for i in range(len(line))]
        text += line
        value = result
    line = f"#{value}\n"
    return text + line, right + [True] * len(line)


def _changed(value: int, rng: random.Random) -> int:
    digits = list(f"{value:03d}")
    for _ in range(rng.choice((1, 1, 2, 3))):
        digits[rng.randrange(3)] = rng.choice("0123456789")
    return int("".join(digits))


def problem_set(split: str, per_band: int, seed: int) -> list[Problem]:
    """Different problems, ``per_band`` of each difficulty, spread evenly over its lengths.

    >>> [p.difficulty for p in problem_set("test", 1, seed=0)]
    ['easy', 'medium', 'hard']
    """
    chosen: dict[str, Problem] = {}
    for least, most in DIFFICULTIES.values():
        streams = [generate(split, n, seed) for n in range(least, most + 1)]
        wanted = len(chosen) + per_band
        while len(chosen) < wanted:
            problem = next(streams[(wanted - len(chosen)) % len(streams)])
            chosen[problem.text] = problem
    return sorted(chosen.values(), key=lambda p: len(p.ops))
