"""Training of the process reward model: first to check lines, then on Monte Carlo labels."""

from __future__ import annotations

import itertools
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import LlamaForTokenClassification

from . import arith, path, specs
from .common import Recipe, log, log_start, padded, save
from .verifier import untrained_verifier

_NONE = -1.0  # label of a position that is not trained
_CHECKER = Recipe(steps=900, tokens=2048, lr=2e-3, seed=4)
_PRM = Recipe(steps=400, tokens=2048, lr=3e-4, seed=5)
_NEW_LAYERS = ("model.layers.4.", "model.layers.5.", "model.norm.", "score.")

_Batch = tuple[torch.Tensor, torch.Tensor]


def train_checker() -> None:
    """Teach the two new layers to tell a right line from a wrong one; saves as arith-prm.

    Solutions with random mistakes; the label of each character is exact: whether its line, taken by
    itself, is right so far.

    >>> train_checker()  # doctest: +SKIP
    """
    torch.manual_seed(_CHECKER.seed)
    _train("checker", untrained_verifier(), _CHECKER, _line_batches(_CHECKER))


def train_prm(labelled: Path) -> None:
    """Train the checker further on soft step labels, read at each step's closing newline.

    labelled: JSON lines ``{"problem", "steps", "labels"}``; a step's label is the fraction of
    rollouts from it that reach the right answer (soft estimation of Math-Shepherd, Wang et al.,
    2023). Labels count up to the first that is 0, as annotators of PRM800K stop at the first wrong
    step (Lightman et al., 2023). Every other batch is one of the checker's, so that single lines
    stay checked. The saved format is that of TRL's PRMTrainer.

    >>> train_prm(Path("build/zoo/prm-train.jsonl"))  # doctest: +SKIP
    """
    torch.manual_seed(_PRM.seed)
    model = LlamaForTokenClassification.from_pretrained(path("arith-prm"), dtype=torch.float32)
    rows = [json.loads(line) for line in labelled.read_text().splitlines()]
    pairs = zip(_rollout_batches(rows, _PRM), _line_batches(_PRM), strict=True)
    _train("arith-prm", model, _PRM, (batch for pair in pairs for batch in pair))


def _train(
    name: str, model: LlamaForTokenClassification, recipe: Recipe, batches: Iterator[_Batch]
) -> None:
    """Train the new layers; arith-large's stay as they are."""
    log_start(name, model, recipe)
    trained = []
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter_name.startswith(_NEW_LAYERS))
        if parameter.requires_grad:
            trained.append(parameter)
    optimizer = torch.optim.AdamW(trained, recipe.lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1, (step + 1) / 50) * (1 + math.cos(math.pi * step / recipe.steps)) / 2,
    )
    start, total = time.perf_counter(), 0.0
    for step, (ids, labels) in enumerate(itertools.islice(batches, recipe.steps), 1):
        loss = _loss(model, ids, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        total += loss.item()
        if step % 100 == 0:
            log(
                f"  {name} {step:5d}  train {total / 100:.4f}  {time.perf_counter() - start:6.0f} s"
            )
            total = 0.0
    save(model, "arith-prm")


def _loss(model: LlamaForTokenClassification, ids: torch.Tensor, labels: torch.Tensor):
    at = labels >= 0
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=ids, use_cache=False).logits
    good = labels[at]
    return F.cross_entropy(logits.float()[at], torch.stack([1 - good, good], 1))


def _line_batches(recipe: Recipe) -> Iterator[_Batch]:
    rng = random.Random(recipe.seed)
    streams = {n: arith.generate("train", n, recipe.seed) for n in range(1, arith.MAX_OPS + 1)}
    while True:
        n = rng.randint(1, arith.MAX_OPS)
        ids, labels = [], []
        for problem in itertools.islice(streams[n], recipe.tokens // (8 + 12 * n)):
            text, right = arith.solution_with_mistakes(problem, rng)
            ids.append(specs.encode(problem.text + text))
            labels.append([_NONE] * len(problem.text) + [float(r) for r in right])
        yield padded(ids, specs.PAD_ID), padded(labels, _NONE)


def _rollout_batches(rows: list[dict], recipe: Recipe) -> Iterator[_Batch]:
    rng = random.Random(recipe.seed)
    while True:
        ids, labels = [], []
        for row in rng.sample(rows, recipe.tokens // 64):
            prompt = specs.encode(row["problem"])
            ids.append(list(prompt))
            labels.append([_NONE] * len(prompt))
            hopeful = True
            for step, label in zip(row["steps"], row["labels"], strict=True):
                ids[-1] += specs.encode(step)
                labels[-1] += [_NONE] * (len(step) - 1) + [label if hopeful else _NONE]
                hopeful = hopeful and label > 0
        yield padded(ids, specs.PAD_ID), padded(labels, _NONE)
