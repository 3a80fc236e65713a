"""Training a process reward model: step labels from tree rollouts, then a two-label fine-tune."""

from __future__ import annotations

import itertools
import json
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttc_runtime.answers import equivalent
from ttc_runtime.branch import Branch
from ttc_runtime.engine import Engine
from ttc_runtime.rewards.format import Format
from ttc_runtime.rewards.spec import RewardSpec
from ttc_runtime.sampling import SamplingParams
from ttc_runtime.search import Generate, Search
from ttc_runtime.strategies.base import Outcome, Work, check_count

UNLABELLED = -1.0  # of a token that is not trained on
LOG_EVERY = 100
_FORMAT = "token_classification"
Batch = tuple[Tensor, Tensor]


class StepLabels:
    """Monte Carlo labels of the steps of sampled solutions, as a strategy.

    A step's label is the fraction of rollouts from it that reach the right answer; the last step's
    is whether its answer is right. Rollouts are forks of the solution at the step's end: they share
    its tokens and pages, and equal prefixes of two solutions share their rollouts. They land in the
    outcome's ``info["labelled"]``, a list of ``{"steps", "labels"}``. Soft estimation of
    Math-Shepherd, Wang et al., 2312.08935.

    solutions: sampled for each problem; those that do not come to an end are left out. rollouts:
    from each step. right: function of a problem and a solution's text. sampling: of both.
    """

    name = "step_labels"

    def __init__(
        self,
        solutions: int,
        rollouts: int,
        right: Callable[[str, str], bool],
        sampling: SamplingParams | None = None,
    ) -> None:
        self.solutions = check_count("StepLabels", "solutions", solutions)
        self.rollouts = check_count("StepLabels", "rollouts", rollouts)
        self.right, self.sampling = right, sampling or SamplingParams()

    def run(self, search: Search) -> Work:
        tips = yield Generate(search.root.fork(self.solutions), self.sampling)
        tips = [tip for tip in tips if tip.stop_reason in ("eos", "stop") and tip.steps]
        forks: dict[tuple[int, ...], list[Branch]] = {}
        for tip in tips:
            for prefix in _prefixes(tip):
                if prefix not in forks:
                    # A stem between them: the output after the prefix is computed again, but once.
                    stem = tip.fork(1, at=len(prefix))[0]
                    forks[prefix] = stem.fork(self.rollouts)
        yield Generate([branch for group in forks.values() for branch in group], self.sampling)
        right = lambda branch: self.right(search.problem, branch.text)  # noqa: E731
        labels = {prefix: sum(map(right, group)) / self.rollouts for prefix, group in forks.items()}
        labelled = [
            {
                "steps": tip.steps[:],
                "labels": [*(labels[prefix] for prefix in _prefixes(tip)), float(right(tip))],
            }
            for tip in tips
        ]
        for branch in [branch for group in forks.values() for branch in group]:
            branch.free("rollout")
        return Outcome(tips, info={"labelled": labelled})


def _prefixes(tip: Branch) -> list[tuple[int, ...]]:
    """Generated tokens up to the end of each step but the last."""
    ends = [start - tip.prompt_tokens for start in tip.step_starts[1 : len(tip.steps)]]
    return [tuple(tip.tokens[:end]) for end in ends]


def label_steps(
    engine: Engine,
    problems: list[dict],
    solutions: int,
    rollouts: int,
    *,
    sampling: SamplingParams | None = None,
    seed: int = 0,
) -> Iterator[dict]:
    """Labelled solutions ``{"problem", "steps", "labels"}`` of problems, as they get done.

    engine: holds the policy that solves. problems: dicts with ``problem`` and ``answer``, each
    problem once. solutions, rollouts, sampling: as for `StepLabels`. Raises ValueError for a
    problem without an answer.
    """
    keys = {record["problem"]: record.get("answer") for record in problems}
    missing = [problem for problem, answer in keys.items() if answer is None]
    if missing:
        raise ValueError(f"label_steps: problems need an answer, {missing[0]!r} has none")

    def right(problem: str, text: str) -> bool:
        return equivalent(engine.extract(text), str(keys[problem]))

    strategy = StepLabels(solutions, rollouts, right, sampling)
    for result in engine.stream(problems, strategy, seed=seed):
        for row in result.info.get("labelled", []):
            yield {"problem": result.problem, **row}


def train_prm(
    rows: list[dict],
    base: str | Path,
    out: str | Path,
    *,
    steps: int,
    tokens: int = 2048,
    lr: float = 3e-4,
    seed: int = 0,
    trains: Callable[[str], bool] = lambda name: True,
    beside: Iterator[Batch] | None = None,
    log: Callable[[str], None] = print,
) -> None:
    """Fine-tune a model of two labels on labelled steps and save it as TRL's PRMTrainer does.

    A label is trained as a probability at its step's closing newline. Labels count up to the first
    that is 0, as annotators of PRM800K stop at the first wrong step (Lightman et al., 2305.20050).

    rows: of `label_steps`. base: local directory of a causal model or a token classifier that
    transformers loads. out: directory to write. steps: updates. tokens: about how many a batch
    holds. lr: peak learning rate of AdamW, warmed up over 50 steps, then cosine to 0. trains:
    whether a parameter, by name, is trained. beside: batches of another source to alternate with.
    Raises ValueError for rows without a step.
    """
    from transformers import AutoModelForTokenClassification

    from ttc_runtime.loading import load_tokenizer, model_directory

    path = model_directory(base)
    tokenizer = load_tokenizer(path)
    torch.manual_seed(seed)
    model = AutoModelForTokenClassification.from_pretrained(
        path, num_labels=2, dtype=torch.float32, local_files_only=True
    )
    written = Format(RewardSpec.load(_FORMAT), tokenizer)
    longest = model.config.max_position_embeddings
    examples = [e for e in (_example(written, row) for row in rows) if len(e[0]) <= longest]
    if not examples:
        raise ValueError(f"train_prm: no labelled solution fits {longest} tokens")
    batches = rollout_batches(examples, tokens, seed, tokenizer.pad_token_id or 0)
    if beside is not None:
        batches = (batch for pair in zip(batches, beside, strict=False) for batch in pair)
    fit(model, batches, steps=steps, lr=lr, trains=trains, log=log)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def _example(written: Format, row: dict) -> tuple[list[int], list[float]]:
    """Tokens of a labelled solution, and the label of each."""
    text = written.prompt(row["problem"])
    labels, hopeful = [UNLABELLED] * len(text.tokens), True
    for step, label in zip(row["steps"], row["labels"], strict=True):
        text = written.extend(text, step)
        labels += [UNLABELLED] * (len(text.tokens) - len(labels))
        if hopeful:
            labels[-1] = label
        hopeful = hopeful and label > 0
    return text.tokens, labels


def rollout_batches(
    examples: Sequence[tuple[list[int], list[float]]], tokens: int, seed: int, pad: int
) -> Iterator[Batch]:
    """Endless random batches of about so many tokens: ids int64 and labels float32, ``[B, T]``."""
    rng = random.Random(seed)
    mean = sum(len(ids) for ids, _ in examples) / len(examples)
    count = max(1, min(len(examples), round(tokens / mean)))
    while True:
        chosen = rng.sample(examples, count)
        ids, labels = zip(*chosen, strict=True)
        yield padded(ids, pad), padded(labels, UNLABELLED)


def fit(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    steps: int,
    lr: float,
    trains: Callable[[str], bool] = lambda name: True,
    log: Callable[[str], None] = print,
) -> None:
    """Train a two-label token classifier on soft labels, in place."""
    trained = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trains(name))
        if parameter.requires_grad:
            trained.append(parameter)
    optimizer = torch.optim.AdamW(trained, lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1, (step + 1) / 50) * (1 + math.cos(math.pi * step / steps)) / 2,
    )
    started, total, number = time.perf_counter(), 0.0, 0
    for number, (ids, labels) in enumerate(batches, 1):
        loss = soft_label_loss(model, ids, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        total += loss.item()
        if number % LOG_EVERY == 0:
            seconds = time.perf_counter() - started
            log(f"  {number:5d}  train {total / LOG_EVERY:.4f}  {seconds:6.0f} s")
            total = 0.0
        if number == steps:
            break


def soft_label_loss(model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy against labels that are probabilities, where there are any."""
    at = labels >= 0
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=ids, use_cache=False).logits
    good = labels[at]
    return F.cross_entropy(logits.float()[at], torch.stack([1 - good, good], 1))


def padded(rows: Sequence[Sequence[float]], value: float) -> Tensor:
    """Rows of different lengths as [B, T], filled up on the right with ``value``.

    int64 or float32, as the numbers are.

    >>> padded([[1, 2], [3]], 0).tolist()
    [[1, 2], [3, 0]]
    """
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def read_labels(path: Path) -> list[dict]:
    """Rows that `label_steps` gave, from a file of one JSON object a line.

    A last line that a crash tore is left out.
    """
    content = path.read_bytes()
    lines = content[: content.rfind(b"\n") + 1].splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def write_labels(
    path: Path,
    problems: list[dict],
    label: Callable[[list[dict]], Iterator[dict]],
    on_row: Callable[[], None] = lambda: None,
) -> None:
    """Label problems into a file, or the rest of them where a run that was killed left its part.

    path: the file; it appears when all is labelled, until then there is ``path.part``. problems:
    dicts with ``problem``. label: gives the rows of some of them, those of a problem together, such
    as `label_steps` with its other arguments. on_row: called for each row, old ones too.
    """
    part = path.with_suffix(".part")
    rows = read_labels(part) if part.is_file() else []
    last = rows[-1]["problem"] if rows else None  # perhaps not all of its rows came to the file
    rows = [row for row in rows if row["problem"] != last]
    done = {row["problem"] for row in rows}
    with part.open("w") as file:
        for row in itertools.chain(rows, label([p for p in problems if p["problem"] not in done])):
            file.write(json.dumps(row) + "\n")
            on_row()
    part.rename(path)
