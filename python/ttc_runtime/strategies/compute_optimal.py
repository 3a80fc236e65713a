"""Compute-optimal search: the strategy that a calibration found best for such problems."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import ClassVar

from ttc_runtime.calibration import Calibration
from ttc_runtime.sampling import SamplingParams
from ttc_runtime.search import Search
from ttc_runtime.strategies.base import Strategy, Work, check_number
from ttc_runtime.strategies.difficulty import look_and_search


@dataclass(frozen=True)
class ComputeOptimal:
    """Estimates a problem's difficulty and searches as a calibration table says.

    table: a `Calibration`, or the file of one; see `ttc_runtime.calibration.calibrate` and ``ttc
    calibrate``. tokens: generated for a problem, the estimate's included, at most so many in the
    mean over problems like those of the calibration; by default the most accurate strategies
    whatever they cost. sampling: of the estimate and the strategies. Snell et al., "Scaling LLM
    Test-Time Compute Optimally can be More Effective than Scaling Model Parameters", 2024. Raises
    ValueError for a file that is no table.

    >>> ComputeOptimal(Calibration({}, 4, "reward", None, []), tokens=500).tokens
    500
    """

    table: Calibration | str
    tokens: float | None = None
    sampling: SamplingParams = SamplingParams()
    name: ClassVar[str] = "compute_optimal"

    def __post_init__(self) -> None:
        if self.tokens is not None:
            check_number("ComputeOptimal", "tokens", self.tokens, 1, math.inf)
        table = self.table
        if not isinstance(table, Calibration):
            table = Calibration.load(table)
        # For records: results of another table under the same name are others.
        digest = hashlib.sha256(table.text().encode()).hexdigest()[:16]
        object.__setattr__(self, "digest", digest)
        object.__setattr__(self, "_calibration", table)

    def run(self, search: Search) -> Work:
        table: Calibration = self._calibration  # type: ignore[attr-defined]

        def choose(difficulty: float) -> tuple[str, Strategy]:
            label = table.choose(difficulty, self.tokens)
            return label, table.strategy(label, self.sampling)

        return look_and_search(
            search, table.samples, table.estimate, table.select, self.sampling, choose
        )
