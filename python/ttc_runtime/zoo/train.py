"""Trains the zoo from nothing: ``python -m ttc_runtime.zoo.train`` (all stages, or those named).

Stages: ``problems`` writes the problem sets, ``draft``, ``small`` and ``large`` train a policy on
right solutions, ``rollouts`` samples the reward model's labels from arith-small, ``prm`` trains it
from arith-large, and ``evaluate`` prints the tables of TRAINING.md. Each reads what the stages
before it left, so any of them can be run again alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM, LlamaForTokenClassification

from . import PROBLEM_SETS, arith, path, problems, specs
from .evaluate import evaluate
from .rollouts import label_rollouts

_LOG = Path(__file__).parent / "train.log"
_IGNORE = -100
_LOG_EVERY = 250


@dataclass(frozen=True)
class _Recipe:
    steps: int
    batch: int  # tokens, about, for a policy; solutions for the reward model
    lr: float
    seed: int


_RECIPES = {
    "arith-draft": _Recipe(steps=4000, batch=2048, lr=1.5e-2, seed=1),
    "arith-small": _Recipe(steps=8000, batch=2048, lr=1.5e-2, seed=2),
    "arith-large": _Recipe(steps=2500, batch=2048, lr=8e-3, seed=3),
    "arith-prm": _Recipe(steps=300, batch=64, lr=1e-3, seed=4),
}


def log(line: str) -> None:
    """Print a line and append it to train.log beside this file."""
    print(line, flush=True)
    with _LOG.open("a") as file:
        file.write(line + "\n")


def policy_batches(
    split: str, tokens: int, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (ids, labels), int64 [B, T]; one number of operations a batch, to waste no padding.

    tokens: about how many a batch holds. Labels are the ids of the solution and the end of text,
    and -100 on the problem and on padding.

    >>> ids, labels = next(policy_batches("train", 4096, seed=0))
    >>> ids.shape == labels.shape
    True
    """
    rng = random.Random(seed)
    streams = {n: arith.generate(split, n, seed) for n in range(1, arith.MAX_OPS + 1)}
    while True:
        n = rng.randint(1, arith.MAX_OPS)
        rows, labels = [], []
        for problem in itertools.islice(streams[n], tokens // (8 + 12 * n)):
            prompt = specs.encode(problem.text)
            solution = [*specs.encode("".join(problem.steps)), specs.EOS_ID]
            rows.append(prompt + solution)
            labels.append([_IGNORE] * len(prompt) + solution)
        yield _padded(rows, specs.PAD_ID), _padded(labels, _IGNORE)


def _padded(rows: list[list[int]], value: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])


class _Optimizer:
    """Muon for the matrices inside the layers, AdamW for the rest; warm-up, then cosine to 0.

    Muon (Keller Jordan, 2024), with its step scaled to AdamW's, learns this task in about half of
    AdamW's steps.
    """

    def __init__(self, model: torch.nn.Module, recipe: _Recipe) -> None:
        self._model = model
        named = list(model.named_parameters())
        inner = [p for name, p in named if p.ndim == 2 and ".layers." in name]
        outer = [p for name, p in named if not (p.ndim == 2 and ".layers." in name)]
        self._optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(
                inner, lr=recipe.lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
            ),
            torch.optim.AdamW(
                outer, lr=min(recipe.lr, 3e-3), betas=(0.9, 0.98), weight_decay=0.01
            ),
        ]

        def rate(step: int) -> float:
            return min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))

        self._schedules = [
            torch.optim.lr_scheduler.LambdaLR(optimizer, rate) for optimizer in self._optimizers
        ]

    def step(self, loss: torch.Tensor) -> None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        for optimizer, schedule in zip(self._optimizers, self._schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()


def train_policy(name: str) -> None:
    """Train one policy by next-token prediction of right solutions and save it in float16.

    name: ``arith-draft``, ``arith-small`` or ``arith-large``.

    >>> train_policy("arith-draft")  # doctest: +SKIP
    """
    recipe = _RECIPES[name]
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(specs.config(name))
    _log_start(name, model, recipe)
    optimizer = _Optimizer(model, recipe)
    held_out = list(itertools.islice(policy_batches("valid", 4096, seed=0), 8))
    start, total = time.perf_counter(), 0.0
    batches = itertools.islice(policy_batches("train", recipe.batch, recipe.seed), recipe.steps)
    for step, (ids, labels) in enumerate(batches, 1):
        loss = _policy_loss(model, ids, labels)
        optimizer.step(loss)
        total += loss.item()
        if step % _LOG_EVERY == 0:
            with torch.no_grad():
                valid = sum(_policy_loss(model, *batch).item() for batch in held_out) / 8
            seconds = time.perf_counter() - start
            log(
                f"  {name} {step:5d}  train {total / _LOG_EVERY:.4f}  valid {valid:.4f}  "
                f"{seconds:6.0f} s"
            )
            total = 0.0
        if step % 500 == 0:
            _save(model, name)
    _save(model, name)


def _policy_loss(
    model: torch.nn.Module, ids: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    # bfloat16 products halve the time of the larger models; weights and updates stay float32.
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.float().flatten(0, 1), labels[:, 1:].flatten())


def train_prm(labelled: Path) -> None:
    """Train the process reward model on soft step labels, starting from arith-large's layers.

    labelled: JSON lines ``{"problem", "steps", "labels"}``; a label in [0, 1] a step, read at the
    step's closing newline. Two logits and a soft cross-entropy, as in Math-Shepherd (Wang et al.,
    2023); the saved format is that of TRL's PRMTrainer.

    >>> train_prm(Path("build/zoo/prm-train.jsonl"))  # doctest: +SKIP
    """
    name, recipe = "arith-prm", _RECIPES["arith-prm"]
    torch.manual_seed(recipe.seed)
    config = specs.config(name)
    config.num_labels, config.classifier_dropout = 2, 0.0
    model = LlamaForTokenClassification(config)
    policy = LlamaForCausalLM.from_pretrained(path("arith-large"), dtype=torch.float32)
    model.model.load_state_dict(policy.model.state_dict())
    _log_start(name, model, recipe)
    optimizer = _Optimizer(model, recipe)
    rows = [json.loads(line) for line in labelled.read_text().splitlines()]
    rng = random.Random(recipe.seed)
    start, total = time.perf_counter(), 0.0
    for step in range(1, recipe.steps + 1):
        loss = _prm_loss(model, rng.sample(rows, recipe.batch))
        optimizer.step(loss)
        total += loss.item()
        if step % 50 == 0:
            seconds = time.perf_counter() - start
            log(f"  {name} {step:5d}  train {total / 50:.4f}  {seconds:6.0f} s")
            total = 0.0
    _save(model, name)


def _prm_loss(model: torch.nn.Module, rows: list[dict]) -> torch.Tensor:
    ids, targets = [], []
    for row in rows:
        prompt = specs.encode(row["problem"])
        ids.append(list(prompt))
        targets.append([math.nan] * len(prompt))
        for step, label in zip(row["steps"], row["labels"], strict=True):
            ids[-1] += specs.encode(step)
            targets[-1] += [math.nan] * (len(step) - 1) + [label]
    width = max(map(len, targets))
    target = torch.tensor([t + [math.nan] * (width - len(t)) for t in targets])
    at = ~target.isnan()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=_padded(ids, specs.PAD_ID), use_cache=False).logits
    good = target[at]
    return F.cross_entropy(logits.float()[at], torch.stack([1 - good, good], 1))


def _log_start(name: str, model: torch.nn.Module, recipe: _Recipe) -> None:
    size = sum(p.numel() for p in model.parameters())
    log(f"{name}: {size} parameters, {recipe}")


def _save(model: LlamaForCausalLM | LlamaForTokenClassification, name: str) -> None:
    state = {key: value.to(torch.float16) for key, value in model.state_dict().items()}
    state.pop("lm_head.weight", None)  # tied to the embedding
    model.config.dtype = torch.float16
    model.save_pretrained(path(name), state_dict=state)
    specs.save_tokenizer(path(name))


def write_problems() -> None:
    """Write the problem sets: 100 problems of each difficulty for test, 20 for valid."""
    for name, per_band in zip(PROBLEM_SETS, (20, 100), strict=True):
        split = name.removeprefix("arith-")
        lines = [
            json.dumps({
                "id": f"{name}-{i:03d}", "problem": p.text, "answer": p.answer,
                "difficulty": p.difficulty, "n_ops": len(p.ops),
            })
            for i, p in enumerate(arith.problem_set(split, per_band, seed=0))
        ]
        problems(name).write_text("\n".join(lines) + "\n")


def main() -> None:
    """Run the stages named on the command line, or all of them."""
    labelled = "prm-train.jsonl"
    stages = {
        "problems": lambda work: write_problems(),
        "draft": lambda work: train_policy("arith-draft"),
        "small": lambda work: train_policy("arith-small"),
        "large": lambda work: train_policy("arith-large"),
        "rollouts": lambda work: label_rollouts(work / labelled, log),
        "prm": lambda work: train_prm(work / labelled),
        "evaluate": lambda work: evaluate(log),
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="*", help=f"of {', '.join(stages)}; default all")
    parser.add_argument("--work", type=Path, default=Path("build/zoo"), help="for rollouts")
    args = parser.parse_args()
    if unknown := set(args.stages) - set(stages):
        parser.error(f"no such stage: {', '.join(sorted(unknown))}")
    args.work.mkdir(parents=True, exist_ok=True)
    for name in args.stages or stages:
        stages[name](args.work)


if __name__ == "__main__":
    main()
