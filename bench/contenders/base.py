"""What every contender is given and what it reports."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..model_dir import NUM_WORDS

# The greedy check: tokens of the prompt that are read, and tokens that are generated.
_CHECK_PROMPT, CHECK_NEW = 48, 16


class NotInstalled(Exception):
    """A contender's package is missing."""


@dataclass(frozen=True)
class Workload:
    """Best-of-N decoding: n sampled continuations of one prompt, temperature 1, no filters.

    Attributes:
        model: local directory in Hugging Face format.
        dtype: "bf16" or "fp32", the dtype of the weights in that directory.
        n: number of continuations.
        prompt: number of tokens in the prompt.
        new: number of new tokens of each continuation.
        vocab: size of the vocabulary.
        threads: threads to compute with.
    """

    model: Path
    dtype: str
    n: int
    prompt: int
    new: int
    vocab: int
    threads: int

    @property
    def prompt_ids(self) -> list[int]:
        """The prompt, random tokens but the same for all contenders."""
        return np.random.default_rng(0).integers(0, NUM_WORDS, self.prompt).tolist()

    @property
    def check_ids(self) -> list[int]:
        """The short prompt whose greedy continuation all contenders must agree on."""
        return self.prompt_ids[:_CHECK_PROMPT]

    def save(self, path: Path) -> None:
        """Write the workload as JSON."""
        path.write_text(json.dumps({**asdict(self), "model": str(self.model)}))

    @classmethod
    def load(cls, path: Path) -> Workload:
        """Read what `save` wrote."""
        fields = json.loads(path.read_text())
        return cls(**{**fields, "model": Path(fields["model"])})


@dataclass
class Outcome:
    """What a contender measured.

    Attributes:
        prefill_s: from the prompt until the first token of every continuation is sampled.
        step_s: seconds of every further step, which gives each continuation one token.
        greedy: greedy continuation of the short prompt.
        peak_gib: the process's largest resident memory; filled in by the runner.
    """

    prefill_s: float
    step_s: list[float]
    greedy: list[int]
    peak_gib: float = float("nan")


def time_steps(prefill: Callable[[], None], step: Callable[[], None], new: int) -> tuple:
    """Run a prefill and new - 1 steps; returns prefill_s and step_s of an `Outcome`."""
    marks = [time.perf_counter()]
    prefill()
    marks.append(time.perf_counter())
    for _ in range(new - 1):
        step()
        marks.append(time.perf_counter())
    prefill_s, *step_s = np.diff(marks).tolist()
    return prefill_s, step_s
