"""Parts (a), (e), (f) and (g): what the engine's searches cost and get right."""

from __future__ import annotations

import math

import numpy as np
from ttc_runtime.compare import mean_interval, point_of
from ttc_runtime.report import wilson

from .samples import Drawn
from .search import CAPS, WAITS
from .voting import accuracy_at, aggregated, by_band, choose

Records = dict[str, list[dict]]

SEARCHES = ("greedy", "best-of-16", "beam-16", "DVTS-16", "MCTS-50", "MCTS-200")


def row_of(name: str, records: list[dict]) -> dict:
    """Accuracy with its interval, by difficulty, and mean cost of a problem."""
    point = point_of(name, records)
    bands: dict[str, list] = {"all": point.correct}
    for record, right in zip(records, point.correct, strict=True):
        bands.setdefault(record["difficulty"], []).append(right)
    return {
        "name": name,
        "problems": len(records),
        "accuracy": {b: [sum(v) / len(v), *wilson(sum(v), len(v))] for b, v in bands.items()},
        "generated": mean_interval(point.generated),
        "scored": mean_interval(point.scored),
        "policy_flops": mean_interval(point.policy_flops),
        "reward_flops": mean_interval(point.reward_flops),
        "recomputed": sum(record["usage"]["recomputed"] for record in records),
    }


def sign_test(ours: list[bool], theirs: list[bool]) -> dict:
    """Problems that only one of two methods solves, and the two-sided chance of that by luck.

    >>> sign_test([True, True, False], [True, False, False])
    {'only_ours': 1, 'only_theirs': 0, 'p': 1.0}
    """
    won = sum(a and not b for a, b in zip(ours, theirs, strict=True))
    lost = sum(b and not a for a, b in zip(ours, theirs, strict=True))
    n, k = won + lost, min(won, lost)
    tail = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
    return {"only_ours": won, "only_theirs": lost, "p": min(1.0, 2 * tail)}


def difference(ours: list[bool], theirs: list[bool]) -> list[float]:
    """Difference of two methods' accuracies on the same problems, with its 95 % interval.

    By the normal approximation for paired proportions.

    >>> [round(x, 3) for x in difference([True] * 6 + [False] * 4, [False] * 5 + [True] * 5)]
    [0.1, -0.534, 0.734]
    """
    n = len(ours)
    steps = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean = sum(steps) / n
    half = 1.96 * math.sqrt(sum(step * step for step in steps) / n - mean * mean) / math.sqrt(n)
    return [mean, mean - half, mean + half]


def against(ours: list[dict], base: list[dict]) -> dict:
    """What one run solves that another does not, on the problems that both have, and at what cost.

    ours, base: records, of which the usage may lack FLOPs.
    """
    theirs = {r["id"]: r for r in base}
    ours = [r for r in ours if r["id"] in theirs]
    both = ours, [theirs[r["id"]] for r in ours]
    solved = [[bool(r["correct"]) for r in some] for some in both]

    def times(figure: str) -> float | None:
        if not all(figure in r["usage"] for some in both for r in some):
            return None
        mine, other = (sum(r["usage"][figure] for r in some) for some in both)
        return mine / other

    return {
        "problems": len(ours),
        "times_the_tokens": times("generated"),
        "times_the_flops": times("flops"),
        "difference": difference(*solved),
        **sign_test(*solved),
    }


def best_of_drawn(drawn: list[Drawn], n: int, aggregation: str) -> list[dict]:
    """Best-of-N with the first samples of hard problems, as records."""
    hard = [problem for problem in drawn if problem.difficulty == "hard"]
    found = []
    for problem, scores in zip(hard, aggregated(hard, aggregation), strict=True):
        place = choose(problem.answers[:n], scores[:n], "naive")
        right = place is not None and bool(problem.correct[place])
        usage = {"generated": int(problem.tokens[:n].sum())}
        found.append({"id": problem.id, "correct": right, "usage": usage})
    return found


def searches(runs: Records, more: Records, drawn: list[Drawn], aggregation: str) -> dict:
    """Part (a): every search on the test set and on more hard problems; MCTS at equal tokens.

    runs, more: records on the test set and on `more_hard`. drawn: samples of the test set.
    """
    found = [
        {"name": name, "base": "best-of-16", **against(records, more["best-of-16"])}
        for name, records in more.items()
        if name != "best-of-16"
    ]
    for name, n in (("MCTS-50", 128), ("MCTS-200", 256)):
        base = best_of_drawn(drawn, n, aggregation)
        found.append({"name": name, "base": f"best-of-{n}, test set", **against(runs[name], base)})
    return {
        "rows": [row_of(name, runs[name]) for name in SEARCHES],
        "hard_rows": [row_of(name, records) for name, records in more.items()],
        "hard": found,
    }


def matched(runs: Records, drawn: list[Drawn], aggregation: str) -> dict:
    """Part (e): the small policy with search beside the large one alone.

    FLOPs of best-of-N and votes over the drawn samples are 2 * weights * tokens, every sample
    scored as if it were alone.
    """
    rows = [row_of(name, runs[name]) for name in ("large greedy", "greedy", *SEARCHES[1:])]
    for row, policy in zip(rows, ["arith-large"] + ["arith-small"] * 6, strict=True):
        row["policy"] = policy
    one, scored = runs["greedy"][0]["usage"], runs["best-of-16"][0]["usage"]
    weights = one["flops"] / one["run"], scored["reward_flops"] / scored["scored"]
    tokens = float(np.mean([problem.tokens.mean() for problem in drawn]))
    values = aggregated(drawn, aggregation)
    for select, size in (("majority", 16), ("naive", 16), ("naive", 256), ("weighted", 256)):
        rates = by_band(drawn, accuracy_at(drawn, values, size, select))
        reward = 0.0 if select == "majority" else weights[1] * tokens * size
        rows.append(
            {
                "name": {"naive": "best", "weighted": "weighted"}.get(select, select)
                + f" of {size}",
                "policy": "arith-small",
                "accuracy": {band: [rate] for band, rate in rates.items()},
                "policy_flops": [weights[0] * tokens * size, 0.0],
                "reward_flops": [reward, 0.0],
            }
        )
    return {"rows": rows}


def forcing(runs: Records) -> dict:
    """Part (f): greedy decoding whose thinking is cut at a cap, or goes on against its will."""
    names = [f"at most {cap}" for cap in CAPS] + [f"{waits} waits" for waits in WAITS]
    return {"rows": [row_of(name, runs[name]) for name in ("greedy", *names)]}


def rejection(runs: Records, drawn: list[Drawn], aggregation: str) -> dict:
    """Part (g): speculative rejection against best-of-N with the same first samples."""
    values, rows = aggregated(drawn, aggregation), []
    for n in (16, 64):
        name = f"rejection-{n}"
        first = [
            Drawn(d.id, d.difficulty, d.correct[:n], d.answers[:n], d.tokens[:n], d.scores[:n])
            for d in drawn
        ]
        rates = accuracy_at(first, [v[:n] for v in values], n, "naive")
        full = float(np.mean([d.tokens.sum() for d in first]))
        ours = row_of(name, runs[name])
        ours["best_of_n"] = {
            "accuracy": by_band(first, rates),
            "generated": full,
            "against": sign_test([r["correct"] for r in runs[name]], [bool(x) for x in rates]),
        }
        ours["saved"] = 1 - ours["generated"][0] / full
        rows.append(ours)
    return {"rows": rows}
