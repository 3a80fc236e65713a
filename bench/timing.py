"""Time several contenders in turn, so that the machine's moods fall on all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

# More than the last-level caches of today's CPUs.
_FLUSH_BYTES = 1 << 28


@dataclass(frozen=True)
class Timing:
    """Median and spread of one contender's rounds, in seconds."""

    median: float
    low: float
    high: float


def in_turn(
    contenders: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 1
) -> dict[str, Timing]:
    """Run all contenders once a round, the order reversed every other round.

    Before each timed call the caches are filled with other data: in a model the weights of a
    layer pass through them between two calls of attention.

    Args:
        contenders: what to time, by name.
        rounds: timed calls of each.
        warmup: untimed calls of each beforehand.
    """
    for fn in contenders.values():
        for _ in range(warmup):
            fn()
    other_data = torch.zeros(_FLUSH_BYTES // 4)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(rounds):
        names = list(contenders) if i % 2 == 0 else list(contenders)[::-1]
        for name in names:
            other_data.sum()
            start = time.perf_counter()
            contenders[name]()
            seconds[name].append(time.perf_counter() - start)
    return {name: Timing(float(np.median(t)), min(t), max(t)) for name, t in seconds.items()}
