"""How long to think: accuracy against a forced budget, and the smallest one that is enough."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING

from ttc_runtime.strategies.budget_forcing import BudgetForcing

if TYPE_CHECKING:
    from ttc_runtime.engine import Engine


@dataclass(frozen=True)
class Point:
    """One budget. budget: most tokens of thinking. accuracy: share of right answers. tokens: mean
    tokens of thinking."""

    budget: int
    accuracy: float
    tokens: float


def thinking_curve(
    engine: Engine,
    problems: Iterable[dict],
    strategy: BudgetForcing,
    budgets: list[int],
    seed: int = 0,
) -> list[Point]:
    """Solve problems with known answers under each budget.

    problems: dicts with ``problem`` and ``answer``. strategy: its ``max_thinking`` is replaced.
    budgets: tokens, increasing. seed: of all randomness. Raises ValueError for other budgets.

    >>> thinking_curve(engine, problems, BudgetForcing(), [256, 512])    # doctest: +SKIP
    """
    if not budgets or budgets != sorted(set(budgets)) or budgets[0] < 1:
        raise ValueError(f"thinking_curve: budgets must be increasing positive, got {budgets!r}")
    records, points = list(problems), []
    for budget in budgets:
        least = min(strategy.min_thinking, budget)
        forced = replace(strategy, max_thinking=budget, min_thinking=least)
        results = engine.solve_all(records, forced, seed=seed)
        spent = [note["tokens"] for result in results for note in result.info.get("thinking", [])]
        right = sum(bool(result.correct) for result in results) / len(results)
        points.append(Point(budget, right, sum(spent) / max(1, len(spent))))
    return points


def smallest_budget(points: list[Point], tolerance: float = 0.0) -> int:
    """The smallest budget whose accuracy is within `tolerance` of the best.

    >>> smallest_budget([Point(64, 0.5, 60.0), Point(128, 0.8, 99.0), Point(256, 0.8, 150.0)])
    128
    """
    best = max(point.accuracy for point in points)
    return min(point.budget for point in points if point.accuracy >= best - tolerance)


def budget_metrics(points: list[Point]) -> dict[str, float]:
    """The three measures of Muennighoff et al., "s1: Simple test-time scaling", 2025.

    control: share of budgets that the mean thinking kept to. scaling: mean slope of accuracy over
    tokens, of all pairs of budgets; NaN for one. performance: best accuracy.
    """
    slopes = [
        (b.accuracy - a.accuracy) / (b.tokens - a.tokens)
        for a, b in combinations(points, 2)
        if b.tokens != a.tokens
    ]
    return {
        "control": sum(point.tokens <= point.budget for point in points) / len(points),
        "scaling": sum(slopes) / len(slopes) if slopes else float("nan"),
        "performance": max(point.accuracy for point in points),
    }
