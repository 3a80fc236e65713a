"""docs/frontier.md and its pictures, from the figures of the parts."""

from __future__ import annotations

import json
import math
from pathlib import Path

from .samples import BANDS

_BANDS = ("all", *BANDS)


def write_page(results: Path, docs: Path) -> None:
    """Write the page and its pictures.

    Args:
        results: directory of the parts' figures.
        docs: where frontier.md and frontier-*.svg are written.
    """
    found = {part: json.loads((results / f"{part}.json").read_text()) for part in "abcdefg"}
    docs.mkdir(parents=True, exist_ok=True)
    sections = [
        _head(found["a"]),
        _searches(found["a"]),
        _votes(found["b"]),
        _aggregations(found["c"]),
        _optimal(found["d"]),
        _matched(found["e"]),
        _forcing(found["f"]),
        _rejection(found["g"]),
    ]
    (docs / "frontier.md").write_text("\n\n".join(sections) + "\n")
    _draw(found, docs)


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _percent(accuracy: list[float]) -> str:
    text = f"{100 * accuracy[0]:.1f}"
    return (
        text if len(accuracy) < 3 else f"{text} [{100 * accuracy[1]:.0f}, {100 * accuracy[2]:.0f}]"
    )


def _accuracies(row: dict) -> list[str]:
    return [_percent(row["accuracy"][band]) for band in _BANDS]


def _mean(figure: list[float], style: str = ",.0f", scale: float = 1.0) -> str:
    return f"{figure[0] / scale:{style}}"


def _head(document: dict) -> str:
    where = document["machine"]
    return f"""# The frontier: what more compute at test time buys

Measured on `zoo:arith-test` ({document["problems"]} problems, a third each easy, medium and
hard) with the policy `arith-small`, the reward model `arith-prm` and seed {document["seed"]};
whatever had to be chosen was chosen on the {document["calibration_problems"]} problems of
`zoo:arith-valid`.
Sampling is at temperature 1, brackets are 95 % Wilson intervals, FLOPs are 2 · weights · tokens
run, and every figure is a mean over problems unless it says otherwise. `python -m
bench.frontier` makes this page anew; the figures are in `bench/results/frontier/`.

{where["cpu"]}, torch {where["versions"]["torch"]}."""


def _searches(document: dict) -> str:
    whole = document["problems"]
    rows = [
        [
            row["name"]
            if row["problems"] == whole
            else f"{row['name']} ({row['problems']} problems)",
            *_accuracies(row),
            _mean(row["generated"]),
            _mean(row["scored"]),
            _mean(row["policy_flops"], ",.2f", 1e9),
            _mean(row["reward_flops"], ",.2f", 1e9),
            _mean(row["seconds"], ".2f"),
        ]
        for row in document["rows"]
    ]
    head = ["", *_BANDS, "tokens generated", "tokens scored", "policy GFLOP", "reward GFLOP", "s"]
    lines = []
    for row in document["rows"]:
        test = document["hard"].get(row["name"])
        if test is None:
            continue
        lines.append(
            f"- {row['name']}, {test['times_the_tokens']:.1f} times its tokens on "
            f"{test['problems']} problems: solves "
            f"{test['only_ours']} hard problems that it does not, and misses "
            f"{test['only_theirs']} that it solves (sign test p = {test['p']:.2g})."
        )
    again = sum(row["recomputed"] for row in document["rows"])
    return (
        "## (a) Searches by difficulty\n\n"
        + table(head, rows)
        + "\n\nSeconds are model time a problem in shared batches, on a machine that did other "
        "work beside. MCTS-200 ran on the first 40 problems of each difficulty. On hard problems "
        "against best-of-16:\n\n"
        + "\n".join(lines)
        + f"\n\nTokens recomputed over all of these runs: {again:,}.\n\n"
        "![Accuracy against FLOPs and against tokens generated.](frontier-searches.svg)"
    )


def _votes(document: dict) -> str:
    sizes, curves = document["sizes"], document["curves"]
    rows = [
        [f"{name}, {band}", *(f"{100 * at[band]:.1f}" for at in curve)]
        for name, curve in curves.items()
        for band in ("all", "hard")
    ]
    laws = [
        [band, f"{law['a']:.3f}", f"{law['b']:.3f}", f"{100 * law['worst']:.1f}"]
        for band, law in document["laws"].items()
    ]
    return (
        "## (b) Votes over N samples, and coverage\n\n"
        f"Accuracy in percent over N; {sizes[-1]} samples a problem, cut into groups of N. A "
        f"sample's score is the {document['aggregation']} over its steps; *naive* takes the best "
        "sample, *weighted* the answer with the largest sum. Coverage is the chance that any of N "
        "samples is right.\n\n"
        + table(["N", *map(str, sizes)], rows)
        + "\n\nCoverage follows `exp(a · N^b)` (Brown et al., 2024):\n\n"
        + table(["", "a", "b", "largest error, points"], laws)
        + "\n\n![Accuracy of votes and coverage over N.](frontier-votes.svg)"
    )


def _aggregations(document: dict) -> str:
    columns = list(next(iter(document["table"].values())))
    rows = [
        [how, *(f"{100 * found[c]['all']:.1f} / {100 * found[c]['hard']:.1f}" for c in columns)]
        for how, found in document["table"].items()
    ]
    return (
        "## (c) One score from those of the steps\n\n"
        "Accuracy on all problems / on hard ones, in percent, of the best (naive) and the weighted "
        "choice among N.\n\n" + table(["", *columns], rows)
    )


def _optimal(document: dict) -> str:
    rows = []
    for name, title in (("compute_optimal", "compute-optimal"), ("routed", "routed")):
        for row in document[name]:
            setting = row["setting"]
            if name == "routed":
                text = f"{' → '.join(setting[0])} until {setting[1]:.2f}"
            else:
                text = ", ".join(setting)
            mark = "≥ " if row["uniform_never"] else ""
            share = f"{'≤ ' if row['uniform_never'] else ''}{row['share']:.2f}"
            figures = [f"{100 * row['accuracy']:.1f}", f"{row['tokens']:,.0f}"]
            rows.append([title, text, *figures, f"{mark}{row['uniform_tokens']:,.0f}", share])
    even = ", ".join(f"{100 * a:.1f} % for {t:,.0f}" for t, a in document["uniform"])
    head = ["", "setting", "accuracy %", "tokens", "uniform's tokens", "share"]
    return (
        "## (d) Compute where it helps\n\n"
        f"Uniform best-of-N, N = 1 to 128: {even} tokens. *Compute-optimal* looks at 4 samples and "
        "picks a strategy for each of 5 bins of difficulty, hardest first in the table; *routed* "
        "runs strategies in turn until a solution scores high enough. Settings come from "
        "`arith-valid`, accuracy and tokens from the test set. *Share* is tokens over those of "
        "uniform best-of-N at the same accuracy; ≤ where uniform never gets there and its tokens "
        "at its best are taken. Above 60 % uniform's curve is flat and one point of accuracy is "
        "worth many tokens, so shares there are rough.\n\n"
        + table(head, rows)
        + "\n\n![Accuracy against tokens generated.](frontier-optimal.svg)"
    )


def _matched(document: dict) -> str:
    rows = []
    for row in document["rows"]:
        policy, reward = row["policy_flops"][0] / 1e9, row["reward_flops"][0] / 1e9
        figures = [f"{policy:.3f}", f"{reward:.3f}", f"{policy + reward:.3f}"]
        rows.append([row["policy"], row["name"], *_accuracies(row), *figures])
    head = ["policy", "method", *_BANDS, "policy GFLOP", "reward GFLOP", "both"]
    return (
        "## (e) A small policy that searches, and one 14.5 times its size that does not\n\n"
        "`arith-large` answers greedily; majority of 16 is what `arith-small` can do for about the "
        "same policy FLOPs. Rows without intervals are computed from the samples of (b), every one "
        "scored as if it were alone. The reward model is larger than either policy.\n\n"
        + table(head, rows)
    )


def _forcing(document: dict) -> str:
    rows = [
        [row["name"], *_accuracies(row), _mean(row["generated"], ",.1f")]
        for row in document["rows"]
    ]
    return (
        "## (f) Budget forcing\n\n"
        "Greedy decoding whose thinking is cut after so many tokens and answered at once (*at "
        "most*), or whose end of thinking is taken back so many times (*waits*; a new line stands "
        "for the word).\n\n" + table(["", *_BANDS, "tokens generated"], rows)
    )


def _rejection(document: dict) -> str:
    rows = []
    for row in document["rows"]:
        full = row["best_of_n"]
        n = row["name"].split("-")[-1]
        base = [f"{100 * full['accuracy'][band]:.1f}" for band in _BANDS]
        rows.append([f"best-of-{n}", *base, f"{full['generated']:,.0f}", "", ""])
        test = full["against"]
        figures = [f"{100 * row['saved']:.0f} %", f"+{test['only_ours']} / -{test['only_theirs']}"]
        name = f"speculative rejection, {n}"
        rows.append([name, *_accuracies(row), _mean(row["generated"]), *figures])
    head = ["", *_BANDS, "tokens generated", "saved", "problems won / lost"]
    return (
        "## (g) Speculative rejection\n\n"
        "Every 12 tokens, about a line, the half of the completions with the lowest scores is "
        "given up. The samples are those of best-of-N.\n\n" + table(head, rows)
    )


def _draw(found: dict, docs: Path) -> None:
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
            for band, color in zip(_BANDS, ("0.2", "C2", "C1", "C3"), strict=True):
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
    for name, mark in (("compute_optimal", "s"), ("routed", "^")):
        points = [(row["tokens"], 100 * row["accuracy"]) for row in found["d"][name]]
        axes.plot(*zip(*points, strict=True), mark, label=name.replace("_", "-"))
    axes.lines[0].set_label("uniform best-of-N")
    axes.set_xscale("log")
    axes.set_xlabel("tokens generated a problem")
    axes.set_ylabel("accuracy %")
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, docs / "frontier-optimal.svg")


def _save(figure, file: Path) -> None:
    figure.savefig(file, metadata={"Date": None})
