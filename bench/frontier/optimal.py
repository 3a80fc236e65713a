"""Part (d): tokens at equal accuracy, spent where they help instead of evenly.

*Uniform* is best-of-N, the same N for every problem. *Compute-optimal* is the shipped strategy:
every strategy it may choose was run on every problem behind the estimate of the difficulty, as
`ttc calibrate` does, and each half of the problems gets what the table of the other half says. That
is what `ComputeOptimal` with that table would have done, tree by tree, so nothing is run again.
*Routed* is the shipped `Adaptive`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from ttc_runtime.calibration import tabulate

from .samples import BANDS, Drawn
from .search import TRIALS
from .voting import SIZES, accuracy_at, aggregated

BINS, FOLDS = 3, 2
BUDGETS = (100, 150, 200, 250, 300, 400, 500, 600, 700, 800, 1000, None)
LEVELS = (8, 16, 32, 64)  # of uniform best-of-N, at whose accuracy tokens are compared
LARGEST = 128  # samples; of those drawn, twice as many
_RESAMPLES = 2000

Point = tuple[float, float]
"""Mean tokens generated a problem, and accuracy."""


def tokens_for(curve: Sequence[Point], accuracy: float) -> tuple[float, bool]:
    """Tokens at which a curve first reaches an accuracy, on straight lines over log tokens.

    Where it never does: the tokens of its best point, and True.

    >>> tokens_for([(10, 0.2), (1000, 0.4)], 0.3)
    (100.0, False)
    """
    if curve[0][1] >= accuracy:
        return curve[0][0], False
    for (t0, a0), (t1, a1) in itertools.pairwise(curve):
        if a1 >= accuracy > a0:
            part = (accuracy - a0) / (a1 - a0)
            tokens = math.exp(math.log(t0) + part * (math.log(t1) - math.log(t0)))
            return round(tokens, 6), False
    return max(curve, key=lambda point: point[1])[0], True


class Resampled:
    """Means over the problems of a band, and over as many drawn from them with replacement.

    The same draws serve every figure, so that comparisons are paired. Efron, 1979.
    """

    def __init__(self, here: np.ndarray, seed: int = 0) -> None:
        places = np.flatnonzero(here)
        rng = np.random.default_rng(seed)
        drawn = rng.integers(len(places), size=(_RESAMPLES, len(places)))
        counts = np.array([np.bincount(row, minlength=len(places)) for row in drawn])
        self._places = places
        self._weights = np.vstack([np.ones(len(places)), counts]) / len(places)

    def means(self, values: np.ndarray) -> np.ndarray:
        """float[1 + resamples, ...]: the mean itself, then those of the draws.

        values: [problems, ...].
        """
        return self._weights @ values[self._places]

    @staticmethod
    def interval(figures: np.ndarray) -> list[float]:
        """The figure, and the 2.5 % and 97.5 % quantiles of its draws."""
        low, high = np.quantile(figures[1:], (0.025, 0.975), method="inverted_cdf")
        return [float(figures[0]), float(low), float(high)]


def _curves(resampled: Resampled, tokens: np.ndarray, right: np.ndarray) -> list[list[Point]]:
    """A curve for the problems themselves, then one for each draw. tokens, right: [problems, k]."""
    paired = zip(resampled.means(tokens), resampled.means(right), strict=True)
    return [sorted(zip(t.tolist(), a.tolist(), strict=True)) for t, a in paired]


def _share(resampled: Resampled, curves: list[list[Point]], tokens, right) -> dict:
    """Tokens over those of the curves at the same accuracy."""
    spent, rates = resampled.means(tokens), resampled.means(right)
    found = [tokens_for(curve, a) for curve, a in zip(curves, rates, strict=True)]
    shares = spent / np.array([even for even, _ in found])
    return {
        "accuracy": float(rates[0]),
        "tokens": float(spent[0]),
        "uniform_tokens": found[0][0],
        "uniform_never": found[0][1],
        "share": Resampled.interval(shares),
    }


def _at_level(ours: list[list[Point]], even: list[list[Point]], place: int) -> dict:
    """Tokens of our curves where they reach the accuracy of a place of the others."""
    found = [tokens_for(mine, curve[place][1]) for mine, curve in zip(ours, even, strict=True)]
    shares = [
        math.inf if never else needed / curve[place][0]
        for (needed, never), curve in zip(found, even, strict=True)
    ]
    return {
        "accuracy": even[0][place][1],
        "uniform_tokens": even[0][place][0],
        "tokens": None if found[0][1] else found[0][0],
        "share": [x if math.isfinite(x) else None for x in Resampled.interval(np.array(shares))],
    }


def compute_optimal(
    trials: dict[str, list[dict]],
    routed: dict[str, list[dict]],
    drawn: list[Drawn],
    aggregation: str,
    say: Callable[[str], None],
) -> dict:
    """Part (d): accuracy and tokens of choosing by difficulty, beside uniform best-of-N.

    Args:
        trials: records of every strategy of `TRIALS`, in the problems' order.
        routed: records of `Adaptive`, by names.
        drawn: the problems' samples.
        aggregation: of a sample's step scores.
        say: takes a line of text about what was found.
    """
    _same_samples(trials, drawn)
    table = tabulate(trials, TRIALS, BINS)
    values, sizes = aggregated(drawn, aggregation), [n for n in SIZES if n <= LARGEST]
    even_right = np.stack([accuracy_at(drawn, values, n, "naive") for n in sizes], 1)
    even_tokens = np.stack([[d.tokens.mean() * n for d in drawn] for n in sizes], 1)
    chosen = [table.held_out(FOLDS, budget) for budget in BUDGETS]
    right = np.array([[t.correct[k] for t, k in zip(table.trials, c, strict=True)] for c in chosen])
    tokens = np.array([[t.tokens[k] for t, k in zip(table.trials, c, strict=True)] for c in chosen])
    right, tokens = right.T.astype(float), tokens.T.astype(float)
    bands = np.array([d.difficulty for d in drawn])
    rows: list[dict] = [{"budget": b, "setting": table.allocate(b), "bands": {}} for b in BUDGETS]
    levels: list[dict] = [{"n": n, "bands": {}} for n in LEVELS]
    routes: list[dict] = [{"name": name, "bands": {}} for name in routed]
    for band in ("all", *BANDS):
        resampled = Resampled((bands == band) | (band == "all"))
        even = _curves(resampled, even_tokens, even_right)
        ours = _curves(resampled, tokens, right)
        for i, row in enumerate(rows):
            row["bands"][band] = _share(resampled, even, tokens[:, i], right[:, i])
        for level in levels:
            level["bands"][band] = _at_level(ours, even, sizes.index(level["n"]))
        for row in routes:
            records = routed[row["name"]]
            spent = np.array([r["usage"]["generated"] for r in records], float)
            solved = np.array([r["correct"] for r in records], float)
            row["bands"][band] = _share(resampled, even, spent, solved)
    for level in levels:
        share = level["bands"]["all"]["share"]
        say(f"(d) at the accuracy of best-of-{level['n']}: share of its tokens {share}")
    uniform = list(zip(even_tokens.mean(0).tolist(), even_right.mean(0).tolist(), strict=True))
    return {"sizes": sizes, "uniform": uniform, "levels": levels, "rows": rows, "routed": routes}


def _same_samples(trials: dict[str, list[dict]], drawn: list[Drawn]) -> None:
    """Best-of-N behind an estimate has the very samples that best-of-N draws alone."""
    for label, records in trials.items():
        if label.startswith("best-of-"):
            n = int(label.removeprefix("best-of-"))
            for record, problem in zip(records, drawn, strict=True):
                if record["usage"]["generated"] != problem.tokens[:n].sum():
                    raise RuntimeError(f"(d) {label}, {record['id']}: other samples were drawn")
