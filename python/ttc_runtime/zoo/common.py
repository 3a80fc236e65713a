"""What the training stages share: recipe, optimizer, log, padding and saving."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, LlamaForTokenClassification

from . import path, specs

LOG_EVERY = 50
_LOG = Path(__file__).parent / "train.log"


@dataclass(frozen=True)
class Recipe:
    """Steps, size of a batch in tokens (about), peak learning rate and seed of one training."""

    steps: int
    tokens: int
    lr: float
    seed: int


class Optimizer:
    """Muon for the matrices inside the layers, AdamW for the rest; warm-up, then cosine to 0.

    Muon (Keller Jordan, 2024), with its step scaled to AdamW's, learns this task in about half of
    AdamW's steps. ``step(loss)`` does the backward pass and one update. Frozen parameters stay.

    >>> Optimizer(model, Recipe(100, 2048, 1e-2, 0)).step(loss)  # doctest: +SKIP
    """

    def __init__(self, model: torch.nn.Module, recipe: Recipe) -> None:
        self._model = model
        inner: list[torch.nn.Parameter] = []
        outer: list[torch.nn.Parameter] = []
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            in_layer = parameter.ndim == 2 and ".layers." in name
            (inner if in_layer else outer).append(parameter)
        self._optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(
                inner, lr=recipe.lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
            ),
            torch.optim.AdamW(outer, lr=min(recipe.lr, 3e-3), betas=(0.9, 0.98), weight_decay=0.01),
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


def log(line: str) -> None:
    """Print a line and append it to train.log beside this file."""
    print(line, flush=True)
    with _LOG.open("a") as file:
        file.write(line + "\n")


def log_start(name: str, model: torch.nn.Module, recipe: Recipe) -> None:
    """Log what is trained: name, number of parameters, recipe."""
    size = sum(p.numel() for p in model.parameters())
    log(f"{name}: {size} parameters, {recipe}")


def save(
    model: LlamaForCausalLM | LlamaForTokenClassification, name: str, directory: Path | None = None
) -> None:
    """Write a model's weights, rounded to float16, and the tokenizer into its zoo directory.

    directory: another one to write to.
    """
    directory = directory or path(name)
    state = {key: value.to(torch.float16) for key, value in model.state_dict().items()}
    state.pop("lm_head.weight", None)  # tied to the embedding
    model.save_pretrained(directory, state_dict=state)
    (directory / "model.safetensors").chmod(0o644)
    specs.save_tokenizer(directory)
