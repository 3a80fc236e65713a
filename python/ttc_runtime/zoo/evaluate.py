"""Accuracy of the zoo's models on arith-test, as the tables of TRAINING.md show it."""

from __future__ import annotations

import functools
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, LlamaForTokenClassification

from . import MODELS, arith, path, problems
from .sampling import complete, score_steps, split_steps

_SAMPLES = 16
_SEED = 6


def evaluate(log: Callable[[str], None], reward: Path | None = None) -> None:
    """Log, for each policy and difficulty, greedy, majority and best-of-16 accuracy, and PRM AUC.

    log: takes one line of text. reward: directory of another reward model than arith-prm.
    Best-of-16 picks the solution whose worst step scores highest; samples are drawn at temperature
    1.

    >>> evaluate(print)  # doctest: +SKIP
    """
    rows = [json.loads(line) for line in problems("arith-test").read_text().splitlines()]
    prm = LlamaForTokenClassification.from_pretrained(
        reward or path("arith-prm"), dtype=torch.float32
    )
    prm.eval()
    for name in MODELS[:3]:
        model = LlamaForCausalLM.from_pretrained(path(name), dtype=torch.float32).eval()
        generator = torch.Generator().manual_seed(_SEED)
        for band in arith.DIFFICULTIES:
            _evaluate_band(
                model,
                prm,
                [r for r in rows if r["difficulty"] == band],
                generator,
                functools.partial(_log_under, log, f"{name} {band}"),
            )


def _log_under(log: Callable[[str], None], where: str, line: str) -> None:
    log(f"{where}: {line}")


def _evaluate_band(
    model: LlamaForCausalLM,
    prm: LlamaForTokenClassification,
    rows: list[dict],
    generator: torch.Generator,
    log: Callable[[str], None],
) -> None:
    prompts = [row["problem"] for row in rows]
    greedy = [arith.extract_answer(t) for t in complete(model, prompts, greedy=True)]
    texts = complete(
        model, [p for p in prompts for _ in range(_SAMPLES)], greedy=False, generator=generator
    )
    samples = [texts[i : i + _SAMPLES] for i in range(0, len(texts), _SAMPLES)]
    majority, best, any_right, per_sample = [], [], [], []
    scores: list[float] = []
    right_steps: list[bool] = []
    for row, solutions in zip(rows, samples, strict=True):
        answers = [arith.extract_answer(t) for t in solutions]
        closed = [s for s in solutions if s.endswith("\n")]
        scored = score_steps(prm, row["problem"], closed) if closed else []
        worst = [min(s) for s in scored]
        best.append(arith.extract_answer(closed[worst.index(max(worst))]) if closed else None)
        majority.append(Counter(answers).most_common(1)[0][0])
        any_right.append(row["answer"] in answers)
        per_sample += [a == row["answer"] for a in answers]
        reference = arith.parse(row["problem"]).steps
        for text, step_scores in zip(closed, scored, strict=True):
            steps = split_steps(text)
            right = [steps[: k + 1] == reference[: k + 1] for k in range(len(steps))]
            judged = right.index(False) + 1 if False in right else len(right)
            scores += step_scores[:judged]  # behind the first wrong step nothing is defined
            right_steps += right[:judged]

    def accuracy(predictions: Sequence[str | None]) -> str:
        right = [p == row["answer"] for p, row in zip(predictions, rows, strict=True)]
        return _percent(sum(right), len(right))

    log(
        f"greedy {accuracy(greedy)}  sampled {_percent(sum(per_sample), len(per_sample))}  "
        f"majority@16 {accuracy(majority)}  best-of-16 {accuracy(best)}  "
        f"pass@16 {_percent(sum(any_right), len(any_right))}  "
        f"PRM step AUC {auc(scores, right_steps):.3f}"
    )


def _percent(right: int, total: int) -> str:
    """Percentage with its 95 % Wilson interval."""
    p, z2 = right / total, 1.96**2
    middle = (p + z2 / (2 * total)) / (1 + z2 / total)
    half = 1.96 / (1 + z2 / total) * math.sqrt(p * (1 - p) / total + z2 / (4 * total**2))
    return f"{100 * p:.1f} [{100 * (middle - half):.0f}, {100 * (middle + half):.0f}]"


def auc(scores: Sequence[float], labels: Sequence[bool]) -> float:
    """Area under the ROC curve: how often a true label outscores a false one, ties as half.

    scores, labels: one a step. Returns nan if the labels are all alike.

    >>> auc([0.9, 0.2, 0.4], [True, False, True])
    1.0
    """
    good = torch.tensor([s for s, right in zip(scores, labels, strict=True) if right])
    bad = torch.tensor([s for s, right in zip(scores, labels, strict=True) if not right])
    if not len(good) or not len(bad):
        return math.nan
    bad = bad.sort().values
    below = torch.searchsorted(bad, good) + torch.searchsorted(bad, good, right=True)
    return below.double().mean().item() / (2 * len(bad))
