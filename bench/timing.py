"""Time several contenders in turn, so that the machine's moods fall on all of them alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass

import numpy as np

from .devices import Call, Clock, CpuClock


@dataclass(frozen=True)
class Timing:
    """Median and spread of one contender's rounds, in seconds."""

    median: float
    low: float
    high: float
    rounds: InitVar[Sequence[float]] = ()  # not among the fields: results are stored without them

    def __post_init__(self, rounds: Sequence[float]) -> None:
        object.__setattr__(self, "_rounds", np.array(rounds))

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        """Summary of some measurements."""
        return cls(float(np.median(seconds)), min(seconds), max(seconds), seconds)

    def over(self, other: Timing) -> float:
        """Median of the ratios to another contender's times in the same rounds.

        What slows the machine for some rounds slows both; medians may fall on different ones.
        """
        return float(np.median(self._rounds / other._rounds))  # type: ignore[attr-defined]


def in_turn(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 1,
    clock: Clock | None = None,
    mode: str = "cold",
) -> dict[str, Timing]:
    """Run all contenders once a round, the order reversed every other round.

    Before each timed call the caches are filled with other data, unless the mode says otherwise:
    in a model the weights of a layer pass through them between two calls of attention.

    Args:
        contenders: what to time, by name. One that the mode cannot prepare (a call that cannot be
            captured in a graph) is missing from the result.
        rounds: timed calls of each.
        warmup: untimed calls of each beforehand.
        clock: of the device; default the CPU's.
        mode: one of the clock's modes.
    """
    clock = clock or CpuClock()
    prepared: dict[str, Call] = {}
    for name, fn in contenders.items():
        for _ in range(warmup):
            fn()
        try:
            prepared[name] = clock.prepare(fn, mode)
        except Exception as error:
            print(f"{name} cannot be prepared for {mode}: {error}".splitlines()[0], flush=True)
    seconds: dict[str, list[float]] = {name: [] for name in prepared}
    for i in range(rounds):
        for name in list(prepared)[:: 1 if i % 2 == 0 else -1]:
            seconds[name].append(clock.seconds(prepared[name], mode))
    return {name: Timing.of(measured) for name, measured in seconds.items()}
