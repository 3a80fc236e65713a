"""Step labels for the process reward model, from Monte Carlo rollouts of arith-small."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from ..engine import Engine
from ..sampling import SamplingParams
from ..training import label_steps
from . import arith

_SOLUTIONS = 2
_ROLLOUTS = 8
_SEED = 5
_LONGEST = 160  # tokens of a solution


def training_problems(per_length: int) -> list[dict]:
    """So many problems of each length in turn for rolling out, with their answers.

    >>> len(training_problems(2))
    16
    """
    streams = [arith.generate("train", n, _SEED) for n in range(1, arith.MAX_OPS + 1)]
    drawn = [next(stream) for _ in range(per_length) for stream in streams]
    unique = {problem.text: problem.answer for problem in drawn}
    return [{"id": i, "problem": p, "answer": a} for i, (p, a) in enumerate(unique.items())]


def label_rollouts(out: Path, per_length: int, log: Callable[[str], None]) -> None:
    """Sample solutions of training problems and label each step softly.

    out: JSON lines ``{"problem", "steps", "labels"}``, see `ttc_runtime.training.StepLabels`.
    per_length: problems of each number of operations. log: takes one line of text.

    >>> label_rollouts(Path("build/zoo/prm-train.jsonl"), 500, print)  # doctest: +SKIP
    """
    start = time.perf_counter()
    problems = training_problems(per_length)
    engine = Engine.from_pretrained("zoo:arith-small", max_batch=1024, deterministic=False)
    sampling = SamplingParams(max_tokens=_LONGEST)
    rows = label_steps(engine, problems, _SOLUTIONS, _ROLLOUTS, sampling=sampling, seed=_SEED)
    count = 0
    with out.open("w") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
            count += 1
    log(
        f"rollouts: {count} of {_SOLUTIONS * len(problems)} solutions ended, "
        f"{time.perf_counter() - start:.0f} s"
    )
