"""The pictures of docs/frontier.md."""

from __future__ import annotations

import math
from pathlib import Path

from .samples import BANDS


def draw(found: dict, docs: Path) -> None:
    """Draw the searches, the votes and part (d) as frontier-*.svg.

    Args:
        found: the parts' figures, by letter.
        docs: where the pictures are written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "frontier"
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, cost in (
        (left, lambda r: r["policy_flops"][0] + r["reward_flops"][0]),
        (right, lambda r: r["generated"][0]),
    ):
        for row in found["a"]["rows"]:
            for band, color in zip(("all", *BANDS), ("0.2", "C2", "C1", "C3"), strict=True):
                rate, low, high = (100 * x for x in row["accuracy"][band])
                error = [[rate - low], [high - rate]]
                axes.errorbar(cost(row), rate, error, fmt="o", capsize=2, color=color, ms=4)
            rate = 100 * row["accuracy"]["all"][0]
            axes.annotate(row["name"], (cost(row), rate), xytext=(4, 4), textcoords="offset points")
        axes.set_xscale("log")
        axes.grid(alpha=0.3)
    left.set_ylabel("accuracy %: all (dark), easy, medium, hard")
    left.set_xlabel("FLOPs a problem, both models")
    right.set_xlabel("tokens generated a problem")
    _save(figure, docs / "frontier-searches.svg")

    figure = Figure(figsize=(10, 4), layout="constrained")
    sizes = found["b"]["sizes"]
    for axes, band in zip(figure.subplots(1, 2, sharey=True), ("all", "hard"), strict=True):
        for name, curve in found["b"]["curves"].items():
            axes.plot(sizes, [100 * at[band] for at in curve], marker=".", label=name)
        law = found["b"]["laws"][band]
        fitted = [100 * math.exp(law["a"] * n ** law["b"]) for n in sizes]
        axes.plot(sizes, fitted, "k:", label="exp(a N^b)")
        axes.set_xscale("log", base=2)
        axes.set_xlabel(f"N, {band} problems")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.axes[0].set_ylabel("accuracy or coverage %")
    _save(figure, docs / "frontier-votes.svg")

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*((t, 100 * a) for t, a in found["d"]["uniform"]), strict=True), marker=".")
    for key, name, mark in (("rows", "compute-optimal", "s"), ("routed", "routed", "^")):
        whole = [row["bands"]["all"] for row in found["d"][key]]
        points = [(point["tokens"], 100 * point["accuracy"]) for point in whole]
        axes.plot(*zip(*points, strict=True), mark, label=name)
    axes.lines[0].set_label("uniform best-of-N")
    axes.set_xscale("log")
    axes.set_xlabel("tokens generated a problem")
    axes.set_ylabel("accuracy %")
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, docs / "frontier-optimal.svg")


def _save(figure, file: Path) -> None:
    figure.savefig(file, metadata={"Date": None})
