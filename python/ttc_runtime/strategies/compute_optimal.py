"""Compute-optimal search: the strategy that a calibration found best for such problems."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ttc_runtime.calibration import Calibration
from ttc_runtime.sampling import SamplingParams
from ttc_runtime.search import Search
from ttc_runtime.strategies.base import SELECTS, Outcome, Work, check_choice
from ttc_runtime.strategies.difficulty import estimate_difficulty, search_further


@dataclass(frozen=True)
class ComputeOptimal:
    """Estimates a problem's difficulty and searches as a calibration table says.

    table: a `Calibration`, or the file of one; see `ttc_runtime.calibration.calibrate`. tokens:
    mean tokens that the chosen strategy took in calibration, at most. tolerance: accuracy that may
    be given up for fewer tokens. select: how the answer is chosen among the samples of the estimate
    and those of the strategy. sampling: of the estimate. Snell et al., "Scaling LLM Test-Time
    Compute Optimally can be More Effective than Scaling Model Parameters", 2024. Raises ValueError
    for a file that is no table.
    """

    table: Calibration | str
    tokens: int | None = None
    tolerance: float = 0.0
    select: str = "weighted"
    sampling: SamplingParams = SamplingParams()
    name: ClassVar[str] = "compute_optimal"

    def __post_init__(self) -> None:
        check_choice("ComputeOptimal", "select", self.select, SELECTS)
        if not isinstance(self.table, Calibration):
            Calibration.load(self.table)

    def run(self, search: Search) -> Work:
        table = self.table
        if not isinstance(table, Calibration):
            table = Calibration.load(table)
        difficulty, samples = yield from estimate_difficulty(
            search, table.samples, self.sampling, table.estimate
        )
        label = table.choose(difficulty, self.tokens, self.tolerance)
        found = yield from search_further(search, table.strategy(label))
        info = {"difficulty": round(difficulty, 6), "route": label, **found.info}
        return Outcome([*samples, *found.branches], self.select, info)
