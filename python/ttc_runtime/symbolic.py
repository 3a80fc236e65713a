"""Whether two formulas are the same, asked of sympy in a process of its own, with a time limit.

Simplification can take any time and memory, and a thread cannot be stopped. The process can: it has
a limit of memory, and one that does not answer in time is killed and replaced by the next question.
What a model wrote is never evaluated as code: formulas are read by a parser that knows numbers,
names, five operations and a few functions.
"""

from __future__ import annotations

import ast
import atexit
import importlib.util
import json
import re
import select
import subprocess
import sys
import threading
import time
import warnings

TIME_LIMIT = 3.0  # seconds to a question, as in Hugging Face's search-and-learn
START_LIMIT = 60.0  # seconds to import sympy on a busy machine
_MEMORY = 2 << 30
_LONGEST = 200
_LARGEST_POWER = 10_000
_FUNCTIONS = ("sqrt", "sin", "cos", "tan", "log", "ln", "exp", "asin", "acos", "atan")
_CONSTANTS = {"pi": "pi", "e": "E", "i": "I", "oo": "oo"}


class _Worker:
    """The process, started when first needed."""

    def __init__(self, command: list[str]) -> None:
        self._command, self._lock = command, threading.Lock()
        self._process: subprocess.Popen | None = None

    def ask(self, question: str, seconds: float) -> str | None:
        """The line it answers to a line; None if it did not in time."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._process = subprocess.Popen(
                    self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
                )
                if self._line(START_LIMIT) is None:
                    return None
            try:
                self._process.stdin.write(question.encode() + b"\n")  # type: ignore[union-attr]
                self._process.stdin.flush()  # type: ignore[union-attr]
            except OSError:
                self.stop()
                return None
            return self._line(seconds)

    def _line(self, seconds: float) -> str | None:
        assert self._process is not None and self._process.stdout is not None
        end = time.monotonic() + seconds
        if select.select([self._process.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
            line = self._process.stdout.readline()
            if line:
                return line.decode()
        self.stop()
        return None

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _command() -> list[str]:
    """Runs `main` with the same import path as here, wherever the package lies."""
    code = f"import sys; sys.path[:] = {sys.path!r}; from ttc_runtime.symbolic import main; main()"
    return [sys.executable, "-c", code]


_WORKER = _Worker(_command())
atexit.register(_WORKER.stop)
_known: dict[tuple[str, str], bool] = {}


def same_formula(a: str, b: str, seconds: float = TIME_LIMIT) -> bool:
    """Whether two formulas, in Python's notation with ``^`` allowed, are equal for all values.

    a, b: texts. seconds: to decide; False if that is not enough, or sympy is not installed.

    >>> same_formula("(x+1)^2", "x^2 + 2x + 1"), same_formula("x", "y")
    (True, False)
    """
    for text in (a, b):
        if not _readable(text):
            return False
    if a.isidentifier() and b.isidentifier():
        return a == b
    if (a, b) not in _known:
        if importlib.util.find_spec("sympy") is None:
            warnings.warn("sympy is not installed: formulas are compared as text", stacklevel=2)
            return False
        _known[a, b] = _WORKER.ask(json.dumps([a, b]), seconds) == "true\n"
    return _known[a, b]


def _prepared(text: str) -> str:
    """With the products that mathematicians leave out: ``2x``, ``3(a+b)``, ``(a)(b)``."""
    text = re.sub(r"(?<![A-Za-z0-9.])(\d+\.?\d*)\s*(?=[A-Za-z(])", r"\1*", text)
    return re.sub(r"\)\s*(?=[A-Za-z0-9(])", ")*", text.replace("^", "**"))


def _tree(text: str) -> list[ast.expr]:
    """The two sides of an equation, or one formula. Raises SyntaxError, ValueError."""
    sides = re.split(r"(?<![<>=!])=(?!=)", text)
    if len(sides) > 2 or len(text) > _LONGEST:
        raise ValueError("neither a formula nor an equation")
    return [ast.parse(_prepared(side).strip(), mode="eval").body for side in sides]


def _readable(text: str) -> bool:
    try:
        return all(_known_node(node) for side in _tree(text) for node in ast.walk(side))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _known_node(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, (int, float))
    if isinstance(node, ast.Call):
        named = isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS
        return named and len(node.args) == 1 and not node.keywords
    known = (ast.Name, ast.BinOp, ast.UnaryOp, ast.Tuple, ast.List, ast.Set, ast.operator)
    return isinstance(node, (*known, ast.USub, ast.UAdd, ast.expr_context))


def _build(node: ast.AST):
    """A sympy expression, or a tuple or set of them. Raises ValueError."""
    import sympy

    if isinstance(node, ast.Constant):
        return sympy.Rational(str(node.value))
    if isinstance(node, ast.Name):
        constant = _CONSTANTS.get(node.id)
        return getattr(sympy, constant) if constant else sympy.Symbol(node.id)
    if isinstance(node, (ast.Tuple, ast.List)):
        return tuple(_build(item) for item in node.elts)
    if isinstance(node, ast.Set):
        return frozenset(_build(item) for item in node.elts)
    if isinstance(node, ast.Call):
        return getattr(sympy, node.func.id)(_build(node.args[0]))  # type: ignore[attr-defined]
    if isinstance(node, ast.UnaryOp):
        value = _build(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if not isinstance(node, ast.BinOp):
        raise ValueError(f"not part of a formula: {ast.dump(node)}")
    left, right = _build(node.left), _build(node.right)
    if isinstance(node.op, ast.Add):
        return left + right
    if isinstance(node.op, ast.Sub):
        return left - right
    if isinstance(node.op, ast.Mult):
        return left * right
    if isinstance(node.op, ast.Div):
        return left / right
    if isinstance(node.op, ast.Pow) and not (right.is_number and abs(right) > _LARGEST_POWER):
        return left**right
    raise ValueError("an operation or a power that is not compared")


def _equal(x, y) -> bool:
    import sympy

    if isinstance(x, (tuple, frozenset)) or isinstance(y, (tuple, frozenset)):
        if type(x) is not type(y) or len(x) != len(y):
            return False
        if isinstance(x, tuple):
            return all(_equal(p, q) for p, q in zip(x, y, strict=True))
        return all(any(_equal(p, q) for q in y) for p in x)
    return x == y or sympy.simplify(x - y) == 0


def decide(a: str, b: str) -> bool:
    """`same_formula` without a limit of time. Equations may differ by their sides' order; of an
    equation and a formula, the equation may just name it, as in ``x = 5`` and ``5``."""
    x, y = ([_build(side) for side in _tree(text)] for text in (a, b))
    if len(x) == len(y) == 2:
        return _equal(x[0] - x[1], y[0] - y[1]) or _equal(x[0] - x[1], y[1] - y[0])
    for named in (x, y):
        if len(named) == 2 and not getattr(named[0], "is_Symbol", False):
            return False
    return _equal(x[-1], y[-1])


def main() -> None:
    """Answer ``true`` or ``false`` to each line ``["formula", "formula"]``."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    except (ImportError, ValueError):
        pass  # not on this system; the time limit is left
    import sympy

    print(json.dumps(sympy.__version__), flush=True)
    for line in sys.stdin:
        try:
            answer = decide(*json.loads(line))
        except Exception:  # sympy raises many kinds on odd input; what cannot be told differs
            answer = False
        print("true" if answer else "false", flush=True)
