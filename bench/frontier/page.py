"""docs/frontier.md and its pictures, from the figures of the parts."""

from __future__ import annotations

import json
from pathlib import Path

from .pictures import draw
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
    draw(found, docs)


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
hard) with the policy `arith-small`, the reward model `arith-prm` and seed {document["seed"]}.
Sampling is at temperature 1, brackets are 95 % Wilson intervals, FLOPs are 2 · weights · tokens
run, and every figure is a mean over problems unless it says otherwise. `python -m
bench.frontier` makes this page anew; the figures are in `bench/results/frontier/`.

{where["cpu"]}, torch {where["versions"]["torch"]}."""


def _costs(row: dict) -> list[str]:
    return [
        _mean(row["generated"]),
        _mean(row["scored"]),
        _mean(row["policy_flops"], ",.2f", 1e9),
        _mean(row["reward_flops"], ",.2f", 1e9),
    ]


_COSTS = ["tokens generated", "tokens scored", "policy GFLOP", "reward GFLOP"]


def _name(row: dict, whole: int) -> str:
    few = row["problems"] < whole
    return f"{row['name']} ({row['problems']} problems)" if few else row["name"]


def _searches(document: dict) -> str:
    rows = [
        [_name(row, document["problems"]), *_accuracies(row), *_costs(row)]
        for row in document["rows"]
    ]
    whole = document["hard_rows"][0]["problems"]
    hard = [
        [_name(row, whole), _percent(row["accuracy"]["hard"]), *_costs(row)]
        for row in document["hard_rows"]
    ]
    against = []
    for test in document["hard"]:
        mean, low, high = (100 * x for x in test["difference"])
        flops = test["times_the_flops"]
        against.append(
            [
                f"{test['name']} against {test['base']}",
                str(test["problems"]),
                f"{test['times_the_tokens']:.2f}",
                "" if flops is None else f"{flops:.2f}",
                f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]",
                f"{test['only_ours']} / {test['only_theirs']}",
                f"{test['p']:.2g}",
            ]
        )
    head = ["", "problems", "times its tokens", "times its FLOPs", "points", "won / lost", "p"]
    again = sum(row["recomputed"] for row in [*document["rows"], *document["hard_rows"]])
    return (
        "## (a) Searches by difficulty\n\n"
        + table(["", *_BANDS, *_COSTS], rows)
        + "\n\nMCTS-200 ran on the first 40 problems of each difficulty. Seconds are not compared: "
        "the machine did other work beside.\n\n"
        "![Accuracy against FLOPs and against tokens generated.](frontier-searches.svg)\n\n"
        f"### {whole} more hard problems\n\n"
        "A hundred hard problems are too few to tell differences of less than 10 points from luck. "
        "These are others of the same split and lengths (6 to 8 operations). None of them was "
        "trained on: the split is a property of a problem's text. They are ordered by length; "
        "MCTS ran on the first 120.\n\n"
        + table(["", "accuracy", *_COSTS], hard)
        + "\n\nProblem by problem; *points* is the difference in accuracy with its 95 % interval, "
        "p that of the two-sided sign test on the problems that only one of the two solves "
        "(McNemar's exact test), not corrected for the number of rows. The last two rows compare "
        "MCTS with best-of-N at about its tokens, on the hard problems of the test set.\n\n"
        + table(head, against)
        + f"\n\nTokens recomputed over all of these runs: {again:,}."
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


def _shared(cell: dict) -> str:
    """A share with its interval, open where resamples never got there."""
    share, low, high = ("∞" if x is None else f"{x:.2f}" for x in cell["share"])
    return f"{share} [{low}, {high}]"


def _verdict(document: dict) -> str:
    """Whether half of the tokens are enough for the accuracy of each best-of-N."""
    found = []
    for level in document["levels"]:
        share, _, high = level["bands"]["all"]["share"]
        if share is None:
            answer = "not known, it was never so accurate"
        elif share > 0.5:
            answer = f"no, {share:.2f} of them"
        elif high is None or high > 0.5:
            answer = f"yes as measured, {share:.2f} of them, but the interval goes beyond"
        else:
            answer = f"yes, {share:.2f} of them"
        found.append(f"best-of-{level['n']}: {answer}")
    return "Are half of the tokens enough for the accuracy of " + "; ".join(found) + "."


def _optimal(document: dict) -> str:
    levels = []
    for level in document["levels"]:
        for band in _BANDS:
            cell = level["bands"][band]
            ours = "never" if cell["tokens"] is None else f"{cell['tokens']:,.0f}"
            figures = [f"{100 * cell['accuracy']:.1f}", f"{cell['uniform_tokens']:,.0f}", ours]
            levels.append([f"best-of-{level['n']}", band, *figures, _shared(cell)])
    rows = []
    for row in document["rows"]:
        budget = "any" if row["budget"] is None else f"{row['budget']:,}"
        rows.append([f"at most {budget}", ", ".join(row["setting"]), *_paid(row)])
    for row in document["routed"]:
        rows.append([row["name"], "", *_paid(row)])
    even = ", ".join(f"{100 * a:.1f} % for {t:,.0f}" for t, a in document["uniform"])
    head = ["tokens", "easier, middle, harder bin", "accuracy %", "tokens spent"]
    return (
        "## (d) Compute where it helps\n\n"
        f"Uniform best-of-N, N = 1 to {document['sizes'][-1]}: {even} tokens. *Compute-optimal* "
        "is `ComputeOptimal` with a table of `ttc calibrate`: 2 samples, which are paid for, tell "
        "one of 3 bins of difficulty, and each bin has the strategy that the table gives it for so "
        "many tokens a problem. Each half of the problems is solved by the table of the other "
        "half. Brackets are 95 % bootstrap intervals over problems (2,000 resamples, the same for "
        "both sides, the tables kept).\n\n"
        "Tokens at equal accuracy: what each way needs to be as accurate as best-of-N, on straight "
        "lines between the measured points. The tokens are allotted over all problems, and then "
        "counted by difficulty; ∞ and *never* where compute-optimal was never as accurate.\n\n"
        + _verdict(document)
        + "\n\n"
        + table(
            ["as accurate as", "problems", "accuracy %", "its tokens", "compute-optimal", "share"],
            levels,
        )
        + "\n\nThe points themselves. *Share*: tokens over those of uniform best-of-N at the same "
        "accuracy, ≤ where that is never so accurate and its tokens at its best are taken. The "
        "strategies shown are those of all problems' table. *Routed* is `Adaptive` with 2 samples: "
        "best-of-4 below a difficulty of 0.3, speculative rejection of 16 below 0.6, DVTS-16 "
        "above.\n\n"
        + table([*head, "share, all", *(f"share, {band}" for band in BANDS)], rows)
        + "\n\n![Accuracy against tokens generated.](frontier-optimal.svg)"
    )


def _paid(row: dict) -> list[str]:
    """Accuracy, tokens and shares of a way to spend tokens."""
    whole = row["bands"]["all"]
    shares = []
    for band in _BANDS:
        cell = row["bands"][band]
        shares.append(("≤ " if cell["uniform_never"] else "") + _shared(cell))
    return [f"{100 * whole['accuracy']:.1f}", f"{whole['tokens']:,.0f}", *shares]


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
