"""Accuracy against compute: what each strategy gets right and what it pays."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from ttc_runtime.report import wilson


@dataclass(frozen=True)
class Point:
    """One strategy over a set of problems; lists have an entry a problem.

    name: for tables. correct: whether the answer is right. generated: tokens sampled. scored:
    tokens run through the reward model. policy_flops, reward_flops: 2 * weights * tokens run.
    seconds: of model time, a shared batch's split by rows.
    """

    name: str
    correct: list[bool]
    generated: list[int]
    scored: list[int]
    policy_flops: list[int]
    reward_flops: list[int]
    seconds: list[float]

    @property
    def accuracy(self) -> float:
        return sum(self.correct) / len(self.correct)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy."""
        return wilson(sum(self.correct), len(self.correct))

    @property
    def flops(self) -> float:
        """Mean over problems, both models."""
        return (sum(self.policy_flops) + sum(self.reward_flops)) / len(self.correct)


def point_of(name: str, records: list[dict]) -> Point:
    """The point that records of a results file make; failed problems count as wrong.

    Raises ValueError for none at all, or where no answer is known.

    >>> usage = {"generated": 9, "scored": 0, "flops": 50, "reward_flops": 0,
    ...          "seconds": {"decode": 0.5, "total": 2.0}}
    >>> point_of("greedy", [{"id": 1, "correct": True, "usage": usage}]).seconds
    [0.5]
    """
    if not records or any(record["correct"] is None for record in records):
        raise ValueError(f"compare: {name}: needs results with known answers")
    usages = [record["usage"] for record in records]
    return Point(
        name,
        [bool(record["correct"]) for record in records],
        [usage["generated"] for usage in usages],
        [usage["scored"] for usage in usages],
        [usage["flops"] - usage["reward_flops"] for usage in usages],
        [usage["reward_flops"] for usage in usages],
        [sum(v for k, v in usage["seconds"].items() if k != "total") for usage in usages],
    )


def mean_interval(values: list) -> tuple[float, float]:
    """Mean and half of its 95 % interval, by the normal approximation.

    >>> mean_interval([1.0, 1.0])
    (1.0, 0.0)
    """
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return mean, 1.96 * math.sqrt(variance / len(values))


def compare_table(points: list[Point], title: str) -> Table:
    """Accuracy and what a problem costs, each with its 95 % interval.

    points: one a row. title: above the table.
    """
    table = Table(title=title, caption="per problem, with 95 % intervals; FLOPs are 2·N·T")
    table.add_column("strategy")
    heads = ("accuracy %", "tokens generated", "policy GFLOPs", "reward GFLOPs", "seconds")
    for head in heads:
        table.add_column(head, justify="right")
    for point in points:
        low, high = point.interval
        table.add_row(
            point.name,
            f"{100 * point.accuracy:.1f} [{100 * low:.0f}, {100 * high:.0f}]",
            _figure(point.generated, ".0f"),
            _figure([flops / 1e9 for flops in point.policy_flops], ".3g"),
            _figure([flops / 1e9 for flops in point.reward_flops], ".3g"),
            _figure(point.seconds, ".3g"),
        )
    return table


def _figure(values: list, style: str) -> str:
    mean, half = mean_interval(values)
    return f"{mean:{style}}" if not half > 0 else f"{mean:{style}} ± {half:.2g}"


def frontier(points: list[Point]) -> list[Point]:
    """The points that no other one beats at less or equal FLOPs, cheapest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.flops, -p.accuracy)):
        if not best or point.accuracy > best[-1].accuracy:
            best.append(point)
    return best


def draw_frontier(points: list[Point], file: Path) -> None:
    """Draw accuracy against FLOPs and against tokens, and the frontier; needs matplotlib.

    points: one a mark. file: its ending says the format, such as .png or .svg.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    tokens = {point.name: sum(point.generated) / len(point.generated) for point in points}
    for axes, cost, label in (
        (left, {p.name: p.flops for p in points}, "FLOPs a problem, both models"),
        (right, tokens, "tokens generated a problem"),
    ):
        for point in points:
            low, high = point.interval
            y = 100 * point.accuracy
            axes.errorbar(
                cost[point.name], y, [[y - 100 * low], [100 * high - y]], fmt="o", capsize=3
            )
            axes.annotate(
                point.name, (cost[point.name], y), xytext=(5, 5), textcoords="offset points"
            )
        axes.set_xscale("log")
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    best = frontier(points)
    left.plot([p.flops for p in best], [100 * p.accuracy for p in best], color="0.6", zorder=0)
    left.set_ylabel("accuracy %, 95 % intervals")
    figure.savefig(file, dpi=120)
