"""Part (d): tokens at equal accuracy, spent where they help instead of evenly.

Three ways to spend tokens on problems:

- *uniform*: best-of-N, the same N for every problem;
- *compute-optimal*: the mean score of the first `PROBE` samples tells a difficulty bin, the bin
  tells the strategy, as in Snell et al., "Scaling LLM Test-Time Compute Optimally", 2024; which one
  is best for a bin at a price of tokens is measured on arith-valid;
- *routed*: strategies of growing cost, one after the other, until the best score so far reaches a
  threshold, which is found on arith-valid; the answer with the best score counts.

What the probe and earlier strategies generated is paid for, and searches score their own samples.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .samples import Drawn
from .voting import SIZES, aggregated, choose

PROBE = 4
NUM_BINS = 5
LARGEST = 128  # samples to a group; the 256 of a problem make two groups
_PRICES = np.geomspace(1e-6, 1e-2, 80)  # accuracy that a token must buy
_THRESHOLDS = (*np.linspace(0.05, 0.9, 18), *np.linspace(0.91, 0.999, 10))
_LEVELS = tuple(n for n in SIZES if 4 <= n <= LARGEST)


@dataclass(frozen=True)
class Option:
    """What one strategy makes of each problem, for each group of samples.

    right: float[problems, groups], whether its answer is right. tokens: generated for it. best:
    score of its answer. probed: whether the probe's samples are among its own.
    """

    right: np.ndarray
    tokens: np.ndarray
    best: np.ndarray
    probed: bool


@dataclass(frozen=True)
class ProblemSet:
    """Options by name, cheapest best-of-N first, and the probe's mean score and tokens."""

    options: dict[str, Option]
    probe: np.ndarray
    probe_tokens: np.ndarray


def best_of(drawn: list[Drawn], values: list[list[float]], n: int) -> Option:
    """Best-of-N from the first N samples of each group."""
    starts = range(0, len(drawn[0].answers), LARGEST)
    right, tokens, best = np.zeros((3, len(drawn), len(starts)))
    for i, (problem, scores) in enumerate(zip(drawn, values, strict=True)):
        for g, start in enumerate(starts):
            part = slice(start, start + n)
            place = choose(problem.answers[part], scores[part], "naive")
            if place is not None:
                right[i, g], best[i, g] = problem.correct[start + place], scores[start + place]
            tokens[i, g] = problem.tokens[part].sum()
    return Option(right, tokens, np.nan_to_num(best), n >= PROBE)


def from_run(records: list[dict], groups: int) -> Option:
    """A search that the engine ran once, beside each group."""
    best = [max((s for s in r["agg_scores"] if s is not None), default=0.0) for r in records]
    columns = [r["correct"] for r in records], [r["usage"]["generated"] for r in records], best
    right, tokens, scores = (np.repeat(np.array(c, float)[:, None], groups, 1) for c in columns)
    return Option(right, tokens, scores, False)


def problem_set(drawn: list[Drawn], runs: dict[str, list[dict]], aggregation: str) -> ProblemSet:
    """All options of a problem set. runs: the records of searches in the problems' order."""
    values = aggregated(drawn, aggregation)
    options = {f"best-of-{n}": best_of(drawn, values, n) for n in SIZES if n <= LARGEST}
    groups = options["best-of-1"].right.shape[1]
    options |= {name: from_run(records, groups) for name, records in runs.items()}
    starts = [g * LARGEST for g in range(groups)]
    probe = [[np.nansum(v[s : s + PROBE]) / PROBE for s in starts] for v in values]
    return ProblemSet(options, np.array(probe), options[f"best-of-{PROBE}"].tokens)


Point = tuple[float, float]
"""Mean tokens generated a problem, and accuracy."""


def uniform(problems: ProblemSet) -> list[Point]:
    """A point for each N."""
    names = [f"best-of-{n}" for n in SIZES if n <= LARGEST]
    picked = [problems.options[name] for name in names]
    return [(float(o.tokens.mean()), float(o.right.mean())) for o in picked]


def edges_of(problems: ProblemSet) -> np.ndarray:
    """Borders between the difficulty bins: equally many problems in each."""
    return np.quantile(problems.probe, np.arange(1, NUM_BINS) / NUM_BINS)


def _paid(problems: ProblemSet, name: str) -> np.ndarray:
    option = problems.options[name]
    return option.tokens + (0 if option.probed else problems.probe_tokens)


def allocate(problems: ProblemSet, edges: np.ndarray, price: float) -> tuple[str, ...]:
    """For each bin the option whose accuracy, less the price of its tokens, is largest."""
    bins = np.searchsorted(edges, problems.probe)
    names = [name for name in problems.options if name not in ("best-of-1", "best-of-2")]

    def gain(name: str, here: np.ndarray) -> float:
        right = problems.options[name].right[here].mean()
        return float(right - price * _paid(problems, name)[here].mean())

    return tuple(max(names, key=lambda n: gain(n, bins == b)) for b in range(NUM_BINS))


def spend_by_bin(problems: ProblemSet, edges: np.ndarray, chosen: tuple[str, ...]) -> Point:
    """What an allocation makes of a problem set."""
    bins = np.searchsorted(edges, problems.probe)
    tokens, right = np.zeros(bins.shape), np.zeros(bins.shape)
    for b, name in enumerate(chosen):
        here = bins == b
        tokens[here] = _paid(problems, name)[here]
        right[here] = problems.options[name].right[here]
    return float(tokens.mean()), float(right.mean())


Route = tuple[tuple[str, ...], float]
"""Strategies in turn, and the score that ends it."""


def spend_in_turn(problems: ProblemSet, route: Route) -> Point:
    """What a route makes of a problem set."""
    names, threshold = route
    shape = problems.probe.shape
    tokens, right, best = np.zeros(shape), np.zeros(shape), np.full(shape, -1.0)
    going, drawn = np.ones(shape, bool), np.zeros(shape)
    for name in names:
        option = problems.options[name]
        # Best-of-N goes on with the samples that a smaller one has drawn.
        new = option.tokens - drawn if name.startswith("best-of") else option.tokens
        drawn = np.where(going, option.tokens, drawn) if name.startswith("best-of") else drawn
        tokens += np.where(going, new, 0)
        better = going & (option.best >= best)
        right = np.where(better, option.right, right)
        best = np.where(better, option.best, best)
        going &= best < threshold
    return float(tokens.mean()), float(right.mean())


def routes(searches: list[str]) -> list[tuple[str, ...]]:
    """Some best-of-N, each four times the one before, then none, one or two of the searches."""
    starts = [
        tuple(f"best-of-{n}" for n in sizes)
        for sizes in ((4,), (4, 16), (4, 16, 64), (8, 32), (8, 32, 128))
    ]
    tails = [tail for k in range(3) for tail in itertools.combinations(searches, k)]
    return [start + tail for start in starts for tail in tails]


def tokens_for(curve: list[Point], accuracy: float) -> tuple[float, bool]:
    """Tokens at which a curve first reaches an accuracy, on straight lines over log tokens.

    Where it never does: the tokens of its best point, and True.

    >>> tokens_for([(10, 0.2), (1000, 0.4)], 0.3)
    (100.0, False)
    """
    if curve[0][1] >= accuracy:
        return curve[0][0], False
    for (t0, a0), (t1, a1) in itertools.pairwise(curve):
        if a1 >= accuracy:
            part = (accuracy - a0) / (a1 - a0)
            tokens = math.exp(math.log(t0) + part * (math.log(t1) - math.log(t0)))
            return round(tokens, 6), False
    return max(curve, key=lambda point: point[1])[0], True


def compute_optimal(
    valid: tuple[list[Drawn], dict[str, list[dict]]],
    test: tuple[list[Drawn], dict[str, list[dict]]],
    aggregation: str,
    say: Callable[[str], None],
) -> dict:
    """Part (d): settings from the validation set, figures from the test set.

    valid, test: samples and the searches' records. For each accuracy that some N reaches on the
    validation set, and for the highest that anything reaches there, the cheapest setting of either
    way that reaches it is taken to the test set.
    """
    calibration, table = problem_set(*valid, aggregation), problem_set(*test, aggregation)
    edges, base = edges_of(calibration), uniform(table)
    allocations = dict.fromkeys(allocate(calibration, edges, price) for price in _PRICES)
    by_bin = {a: spend_by_bin(calibration, edges, a) for a in allocations}
    turns = [(names, float(t)) for names in routes(list(test[1])) for t in _THRESHOLDS]
    in_turn = {route: spend_in_turn(calibration, route) for route in turns}
    found: dict[str, list] = {"uniform": base, "compute_optimal": [], "routed": []}
    for name, settings in (("compute_optimal", by_bin), ("routed", in_turn)):
        targets = [
            a for n, (_, a) in zip(SIZES, uniform(calibration), strict=False) if n in _LEVELS
        ]
        seen = set()
        for target in [*targets, max(a for _, a in settings.values())]:
            good = [s for s, (_, accuracy) in settings.items() if accuracy >= target]
            if not good:
                continue
            setting = min(good, key=lambda s: settings[s][0])
            if setting in seen:
                continue
            seen.add(setting)
            if name == "routed":
                tokens, accuracy = spend_in_turn(table, setting)
            else:
                tokens, accuracy = spend_by_bin(table, edges, setting)
            even, at_least = tokens_for(base, accuracy)
            row = {
                "setting": setting,
                "tokens": tokens,
                "accuracy": accuracy,
                "uniform_tokens": even,
                "uniform_never": at_least,
                "share": tokens / even,
            }
            found[name].append(row)
            say(
                f"(d) {name}: {100 * accuracy:.1f} %, {tokens:.0f} tokens, share {row['share']:.2f}"
            )
    return found
