"""Trains the zoo from nothing: ``python -m ttc_runtime.zoo.train`` (all stages, or those named).

Stages: ``problems`` writes the problem sets, ``draft``, ``small`` and ``large`` train a policy on
right solutions, ``rollouts`` samples the reward model's labels from arith-small, ``checker`` and
``prm`` train it from arith-large, and ``evaluate`` logs the tables of TRAINING.md. Each reads what
the stages before it left, so any of them can be run again alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM

from ..training import padded
from . import PROBLEM_SETS, arith, path, problems, specs
from .common import LOG_EVERY, Optimizer, Recipe, log, log_start, save
from .evaluate import evaluate
from .reward import train_checker, train_reward
from .rollouts import label_rollouts

_IGNORE = -100
_RECIPES = {
    "arith-draft": Recipe(steps=4000, tokens=2048, lr=1.5e-2, seed=1),
    "arith-small": Recipe(steps=8000, tokens=2048, lr=1.5e-2, seed=2),
    "arith-large": Recipe(steps=2500, tokens=2048, lr=8e-3, seed=3),
}


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
        yield padded(rows, specs.PAD_ID), padded(labels, _IGNORE)


def train_policy(name: str) -> None:
    """Train one policy by next-token prediction of right solutions and save it in float16.

    name: ``arith-draft``, ``arith-small`` or ``arith-large``.

    >>> train_policy("arith-draft")  # doctest: +SKIP
    """
    recipe = _RECIPES[name]
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(specs.config(name))
    log_start(name, model, recipe)
    optimizer = Optimizer(model, recipe)
    held_out = list(itertools.islice(policy_batches("valid", 4096, seed=0), 8))
    start, total = time.perf_counter(), 0.0
    batches = itertools.islice(policy_batches("train", recipe.tokens, recipe.seed), recipe.steps)
    for step, (ids, labels) in enumerate(batches, 1):
        loss = _policy_loss(model, ids, labels)
        optimizer.step(loss)
        total += loss.item()
        if step % LOG_EVERY == 0:
            with torch.no_grad():
                valid = sum(_policy_loss(model, *batch).item() for batch in held_out) / 8
            seconds = time.perf_counter() - start
            log(
                f"  {name} {step:5d}  train {total / LOG_EVERY:.4f}  valid {valid:.4f}  "
                f"{seconds:6.0f} s"
            )
            total = 0.0
        if step % 500 == 0:
            save(model, name)
    save(model, name)


def _policy_loss(model: torch.nn.Module, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    # bfloat16 products halve the time of the larger models; weights and updates stay float32.
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.float().flatten(0, 1), labels[:, 1:].flatten())


def write_problems() -> None:
    """Write the problem sets: 100 problems of each difficulty for test, 20 for valid."""
    for name, per_band in zip(PROBLEM_SETS, (20, 100), strict=True):
        split = name.removeprefix("arith-")
        lines = [
            json.dumps(
                {
                    "id": f"{name}-{i:03d}",
                    "problem": p.text,
                    "answer": p.answer,
                    "difficulty": p.difficulty,
                    "n_ops": len(p.ops),
                }
            )
            for i, p in enumerate(arith.problem_set(split, per_band, seed=0))
        ]
        problems(name).write_text("\n".join(lines) + "\n")


_STAGES = ("problems", "draft", "small", "large", "rollouts", "checker", "prm", "evaluate")


def main() -> None:
    """Run the stages named on the command line, or all of them."""
    labelled = "prm-train.jsonl"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="*", help=f"of {', '.join(_STAGES)}; default all")
    parser.add_argument("--work", type=Path, default=Path("build/zoo"), help="for rollouts")
    parser.add_argument("--per-length", type=int, default=500, help="problems to roll out, each")
    parser.add_argument("--prm", type=Path, default=path("arith-prm"), help="the reward model")
    args = parser.parse_args()
    if unknown := set(args.stages) - set(_STAGES):
        parser.error(f"no such stage: {', '.join(sorted(unknown))}")
    stages = {
        "problems": lambda work: write_problems(),
        "draft": lambda work: train_policy("arith-draft"),
        "small": lambda work: train_policy("arith-small"),
        "large": lambda work: train_policy("arith-large"),
        "rollouts": lambda work: label_rollouts(work / labelled, args.per_length, log),
        "checker": lambda work: train_checker(args.prm),
        "prm": lambda work: train_reward(work / labelled, args.prm),
        "evaluate": lambda work: evaluate(log, args.prm),
    }
    args.work.mkdir(parents=True, exist_ok=True)
    for name in args.stages or _STAGES:
        stages[name](args.work)


if __name__ == "__main__":
    main()
