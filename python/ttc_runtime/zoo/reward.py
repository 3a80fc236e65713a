"""Training of the process reward model: first to check lines, then on Monte Carlo labels."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import LlamaForTokenClassification

from ..training import UNLABELLED, Batch, fit, padded, read_labels, train_prm
from . import arith, specs
from .common import Recipe, log, log_start, save
from .verifier import untrained_verifier

_CHECKER = Recipe(steps=900, tokens=2048, lr=2e-3, seed=4)
_PRM = Recipe(steps=400, tokens=2048, lr=3e-4, seed=5)
_NEW_LAYERS = ("model.layers.4.", "model.layers.5.", "model.norm.", "score.")


def train_checker(out: Path) -> None:
    """Teach the two new layers to tell a right line from a wrong one.

    Solutions with random mistakes; the label of each character is exact: whether its line, taken by
    itself, is right so far. out: directory to save it in.

    >>> train_checker(Path("build/zoo/arith-prm"))  # doctest: +SKIP
    """
    torch.manual_seed(_CHECKER.seed)
    model = untrained_verifier()
    log_start("checker", model, _CHECKER)
    batches, trains = _line_batches(_CHECKER), _is_new
    fit(model, batches, steps=_CHECKER.steps, lr=_CHECKER.lr, trains=trains, log=log)
    save(model, "arith-prm", out)


def train_reward(labelled: Path, out: Path) -> None:
    """Train the checker further on soft step labels, as ``ttc train-prm`` does.

    labelled: JSON lines of `label_rollouts`. Every other batch is one of the checker's, so that
    single lines stay checked, and arith-large's layers stay as they are. out: directory with the
    checker, which becomes the reward model.

    >>> train_reward(Path("build/zoo/prm-train.jsonl"), Path("arith-prm"))  # doctest: +SKIP
    """
    train_prm(
        read_labels(labelled),
        out,
        out,
        steps=_PRM.steps,
        tokens=_PRM.tokens,
        lr=_PRM.lr,
        seed=_PRM.seed,
        trains=_is_new,
        beside=_line_batches(_PRM),
        log=log,
    )
    model = LlamaForTokenClassification.from_pretrained(out, dtype=torch.float32)
    save(model, "arith-prm", out)


def _is_new(parameter: str) -> bool:
    return parameter.startswith(_NEW_LAYERS)


def _line_batches(recipe: Recipe) -> Iterator[Batch]:
    rng = random.Random(recipe.seed)
    streams = {n: arith.generate("train", n, recipe.seed) for n in range(1, arith.MAX_OPS + 1)}
    while True:
        n = rng.randint(1, arith.MAX_OPS)
        ids, labels = [], []
        for problem in itertools.islice(streams[n], recipe.tokens // (8 + 12 * n)):
            text, right = arith.solution_with_mistakes(problem, rng)
            ids.append(specs.encode(problem.text + text))
            labels.append([UNLABELLED] * len(problem.text) + [float(r) for r in right])
        yield padded(ids, specs.PAD_ID), padded(labels, UNLABELLED)
