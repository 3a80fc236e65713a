"""Parts (b) and (c): votes over N samples, the coverage law, one score from those of steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from ttc_runtime.rewards import AGGREGATIONS, aggregate

from .samples import BANDS, SAMPLES, Drawn

SIZES = tuple(2**i for i in range(SAMPLES.bit_length()))
SELECTS = ("majority", "naive", "weighted")


def choose(answers: Sequence[str | None], scores: Sequence[float], select: str) -> int | None:
    """Place of the chosen sample, as `ttc_runtime.strategies.vote` chooses; equal texts group.

    Args:
        answers: one a sample, None where it states none.
        scores: one a sample, NaN where it has none.
        select: ``majority``, ``naive`` or ``weighted``.
    """
    weights: dict[str, float] = {}
    first: dict[str, int] = {}
    for place, (answer, score) in enumerate(zip(answers, scores, strict=True)):
        if answer is None:
            continue
        known = 1.0 if select == "majority" else score if score == score else -math.inf
        if select == "naive":
            if answer not in weights or known > weights[answer]:
                weights[answer], first[answer] = known, place
            continue
        first.setdefault(answer, place)
        weights[answer] = weights.get(answer, 0.0) + (known if known > -math.inf else 0.0)
    if not weights:
        return None
    return first[max(weights, key=lambda a: (weights[a], -first[a]))]


def accuracy_at(
    drawn: list[Drawn], scores: list[list[float]], size: int, select: str
) -> np.ndarray:
    """Chance of a right answer of each problem with `size` samples: the mean over groups of them.

    Args:
        drawn: the problems' samples, each cut into groups of `size` in their order.
        scores: one a sample of each problem.
        size: samples to choose among, a divisor of their number.
        select: as for `choose`.
    """
    rates = []
    for problem, values in zip(drawn, scores, strict=True):
        groups = range(0, len(problem.answers), size)
        right = 0
        for start in groups:
            part = slice(start, start + size)
            place = choose(problem.answers[part], values[part], select)
            right += place is not None and bool(problem.correct[start + place])
        rates.append(right / len(groups))
    return np.array(rates)


def coverage(drawn: list[Drawn], size: int) -> np.ndarray:
    """Chance that any of `size` samples is right, without bias: Chen et al., 2021 (pass@k)."""
    rates = []
    for problem in drawn:
        n, right = len(problem.correct), int(problem.correct.sum())
        missing = math.comb(n - right, size) / math.comb(n, size)
        rates.append(1.0 - missing)
    return np.array(rates)


def fit_coverage(sizes: Sequence[int], rates: Sequence[float]) -> tuple[float, float]:
    """The law ``coverage = exp(a * k**b)`` by weighted least squares of its double logarithm.

    Args:
        sizes: numbers of samples k.
        rates: coverage at each; those of exactly 0 and 1 are left out.

    Brown et al., "Large Language Monkeys", 2024. Returns a and b, 0 where too few are left.

    >>> a, b = fit_coverage([1, 4, 16], [math.exp(-2 * k**-0.5) for k in (1, 4, 16)])
    >>> round(a, 6), round(b, 6)
    (-2.0, -0.5)
    """
    known = [(k, rate) for k, rate in zip(sizes, rates, strict=True) if 0 < rate < 1]
    if len(known) < 2:
        return 0.0, 0.0
    x = np.log([k for k, _ in known])
    y = np.log(-np.log([rate for _, rate in known]))
    # An error of the logarithms weighs what it does in the coverage itself.
    weights = [abs(rate * math.log(rate)) for _, rate in known]
    slope, intercept = np.polyfit(x, y, 1, w=weights)
    return -math.exp(intercept), float(slope)


def aggregated(drawn: list[Drawn], how: str) -> list[list[float]]:
    """One score a sample of each problem."""
    return [[aggregate(scores, how) for scores in problem.scores] for problem in drawn]


def by_band(drawn: list[Drawn], rates: np.ndarray) -> dict[str, float]:
    """Means over all problems and over those of each difficulty."""
    bands = np.array([problem.difficulty for problem in drawn])
    return {
        "all": float(rates.mean()),
        **{band: float(rates[bands == band].mean()) for band in BANDS if (bands == band).any()},
    }


def votes(drawn: list[Drawn], aggregation: str, say: Callable[[str], None]) -> dict:
    """Part (b): accuracy of each vote and coverage at every N, by difficulty."""
    scores = aggregated(drawn, aggregation)
    curves: dict[str, list] = {}
    for select in SELECTS:
        curves[select] = [by_band(drawn, accuracy_at(drawn, scores, n, select)) for n in SIZES]
        say(f"(b) {select}: {100 * curves[select][-1]['all']:.1f} % at N = {SIZES[-1]}")
    curves["coverage"] = [by_band(drawn, coverage(drawn, n)) for n in SIZES]
    laws = {}
    for band in curves["coverage"][0]:
        rates = [at[band] for at in curves["coverage"]]
        a, b = fit_coverage(SIZES, rates)
        fitted = [math.exp(a * n**b) for n in SIZES]
        worst = max(abs(x - y) for x, y in zip(rates, fitted, strict=True))
        laws[band] = {"a": a, "b": b, "worst": worst}
    return {"sizes": SIZES, "aggregation": aggregation, "curves": curves, "laws": laws}


def aggregations(drawn: list[Drawn], say: Callable[[str], None]) -> dict:
    """Part (c): best and weighted choice with each way to make one score of the steps'."""
    table: dict[str, dict] = {}
    for how in AGGREGATIONS:
        scores = aggregated(drawn, how)
        table[how] = {
            f"{select}@{n}": by_band(drawn, accuracy_at(drawn, scores, n, select))
            for select in ("naive", "weighted")
            for n in (16, 64, 256)
        }
        say(f"(c) {how}: best of 16 {100 * table[how]['naive@16']['all']:.1f} %")
    return {"table": table}
