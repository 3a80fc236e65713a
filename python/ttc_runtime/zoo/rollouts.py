"""Step labels for the process reward model, from Monte Carlo rollouts of arith-small."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from . import arith, path
from .sampling import complete, split_steps

_PROBLEMS_PER_LENGTH = 500
_SOLUTIONS = 2
_ROLLOUTS = 8
_SEED = 5


def label_rollouts(out: Path, log: Callable[[str], None]) -> None:
    """Sample solutions of training problems and label each step softly.

    out: JSON lines ``{"problem", "steps", "labels"}``. A step's label is the fraction of 8 rollouts
    from it that reach the right answer; the last step's is whether the answer is right. This is
    Math-Shepherd's soft estimation (Wang et al., 2023). log: takes one line of text.

    >>> label_rollouts(Path("build/zoo/prm-train.jsonl"), print)  # doctest: +SKIP
    """
    start = time.perf_counter()
    model = LlamaForCausalLM.from_pretrained(path("arith-small"), dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(_SEED)
    problems = [
        problem
        for n in range(1, arith.MAX_OPS + 1)
        for problem in itertools.islice(arith.generate("train", n, _SEED), _PROBLEMS_PER_LENGTH)
        for _ in range(_SOLUTIONS)
    ]
    texts = complete(model, [p.text for p in problems], greedy=False, generator=generator)
    # A solution that ran into the token limit ends in an open line and has no last step to label.
    solved = [
        (p, split_steps(text))
        for p, text in zip(problems, texts, strict=True)
        if text.endswith("\n")
    ]
    answers = {
        p.text + "".join(steps[:k]): p.answer for p, steps in solved for k in range(1, len(steps))
    }
    prefixes = [prefix for prefix in answers for _ in range(_ROLLOUTS)]
    ends = complete(model, prefixes, greedy=False, generator=generator)
    hits = dict.fromkeys(answers, 0)
    for prefix, end in zip(prefixes, ends, strict=True):
        hits[prefix] += arith.extract_answer(end) == answers[prefix]

    with out.open("w") as file:
        for p, steps in solved:
            labels = [hits[p.text + "".join(steps[:k])] / _ROLLOUTS for k in range(1, len(steps))]
            labels.append(float(arith.extract_answer(steps[-1]) == p.answer))
            row = {"problem": p.text, "steps": steps, "labels": labels}
            file.write(json.dumps(row) + "\n")
    log(
        f"rollouts: {len(solved)} of {len(problems)} solutions closed, {len(prefixes)} rollouts, "
        f"{time.perf_counter() - start:.0f} s"
    )
