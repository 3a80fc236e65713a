"""Small trained models and problem sets that ship with the package; paths only, no torch."""

from __future__ import annotations

from pathlib import Path

__all__ = ["MODELS", "PROBLEM_SETS", "path", "problems"]

MODELS = ("arith-draft", "arith-small", "arith-large", "arith-prm")
"""Three policies, smallest first, and a process reward model, all in Hugging Face format."""

PROBLEM_SETS = ("arith-valid", "arith-test")

_HERE = Path(__file__).parent


def path(name: str) -> Path:
    """Directory of a zoo model, for ``from_pretrained``.

    name: one of ``MODELS``. Raises ValueError for any other.

    >>> path("arith-small").name
    'arith-small'
    """
    if name not in MODELS:
        raise ValueError(f"zoo.path: name must be one of {', '.join(MODELS)}, got {name!r}")
    return _HERE / name


def problems(name: str) -> Path:
    """File of a zoo problem set: a JSON object a line with id, problem, answer, difficulty, n_ops.

    name: one of ``PROBLEM_SETS``. Raises ValueError for any other.

    >>> problems("arith-test").name
    'arith-test.jsonl'
    """
    if name not in PROBLEM_SETS:
        raise ValueError(
            f"zoo.problems: name must be one of {', '.join(PROBLEM_SETS)}, got {name!r}"
        )
    return _HERE / f"{name}.jsonl"
