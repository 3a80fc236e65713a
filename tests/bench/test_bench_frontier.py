"""The frontier's arithmetic on problems small enough to check by hand, and the page it makes."""

from __future__ import annotations

import itertools
import json
import math
import random

import numpy as np
import pytest

from bench.frontier import optimal, parts, voting
from bench.frontier.__main__ import AGGREGATION
from bench.frontier.page import write_page
from bench.frontier.samples import BANDS, SAMPLES, Drawn, chosen
from bench.frontier.search import RUNS


def drawn(seed, difficulty, rate):
    """Samples right at a rate, scored a little better where they are right."""
    rng = random.Random(seed)
    right = np.array([rng.random() < rate for _ in range(SAMPLES)])
    answers = ["1" if r else rng.choice(["2", "3", None]) for r in right]
    scores = [[0.9, 0.2 * bool(r) + 0.7 * rng.random()] for r in right]
    tokens = np.array([rng.randint(10, 20) for _ in right])
    return Drawn(f"p{seed}", difficulty, right, answers, tokens, scores)


@pytest.fixture(scope="module")
def problems():
    rates = {"easy": 0.7, "medium": 0.3, "hard": 0.05}
    return [drawn(i, band, rates[band]) for i, band in enumerate(BANDS * 5)]


def test_choices_are_those_of_the_runtime():
    from ttc_runtime.strategies import vote

    rng = random.Random(1)
    for _ in range(300):
        n = rng.randint(1, 9)
        answers = [rng.choice(["1", "2", "3", None]) for _ in range(n)]
        scores = [rng.random() for _ in range(n)]
        votes = vote(answers, scores)
        for select in voting.SELECTS:
            expected = getattr(votes, select)
            place = voting.choose(answers, scores, select)
            assert (place is None) == (expected is None)
            assert place is None or answers[place] == answers[expected]


def test_coverage_is_the_mean_over_all_subsets():
    right = np.array([True, False, False, True, False, False])
    problem = Drawn("p", "easy", right, ["1"] * 6, np.ones(6), [[0.5]] * 6)
    for k in (1, 2, 4):
        subsets = [any(right[list(s)]) for s in itertools.combinations(range(6), k)]
        assert voting.coverage([problem], k)[0] == pytest.approx(np.mean(subsets))


def test_the_fitted_law_finds_the_law():
    rates = [math.exp(-1.7 * k**-0.45) for k in voting.SIZES]
    a, b = voting.fit_coverage(voting.SIZES, rates)
    assert (a, b) == pytest.approx((-1.7, -0.45))
    assert voting.fit_coverage([1, 2], [0.0, 1.0]) == (0.0, 0.0)


def test_accuracy_of_groups(problems):
    one = voting.accuracy_at(problems, voting.aggregated(problems, "min"), 1, "naive")
    assert one == pytest.approx([p.correct.mean() for p in problems])
    every = voting.accuracy_at(problems, voting.aggregated(problems, "min"), SAMPLES, "majority")
    assert set(every) <= {0.0, 1.0} and every.mean() < 1


def test_tokens_are_paid_once_and_in_full(problems):
    table = optimal.problem_set(problems, {}, AGGREGATION)
    edges = optimal.edges_of(table)
    for n in (4, 16, 64):
        even = (f"best-of-{n}",) * optimal.NUM_BINS
        expected = optimal.uniform(table)[voting.SIZES.index(n)]
        assert optimal.spend_by_bin(table, edges, even) == pytest.approx(expected)
        # A route that never stops costs what its largest best-of-N costs, not the sum.
        route = (tuple(f"best-of-{m}" for m in (4, n)) if n > 4 else ("best-of-4",), 2.0)
        assert optimal.spend_in_turn(table, route)[0] == pytest.approx(expected[0])
    stopped = optimal.spend_in_turn(table, (("best-of-4", "best-of-128"), -1.0))
    assert stopped == pytest.approx(optimal.uniform(table)[2])


def test_a_search_beside_the_probe_pays_for_it(problems):
    record = {"correct": True, "usage": {"generated": 7}, "agg_scores": [0.5, None]}
    table = optimal.problem_set(problems, {"beam": [record] * len(problems)}, AGGREGATION)
    edges = optimal.edges_of(table)
    tokens, accuracy = optimal.spend_by_bin(table, edges, ("beam",) * optimal.NUM_BINS)
    assert accuracy == 1 and tokens == pytest.approx(7 + table.probe_tokens.mean())
    # It is far better and cheaper than anything else, so no price keeps an allocation from it.
    assert optimal.allocate(table, edges, 1e-6) == ("beam",) * optimal.NUM_BINS


def test_tokens_of_a_curve_that_never_gets_there():
    curve = [(10.0, 0.2), (100.0, 0.5), (1000.0, 0.4)]
    assert optimal.tokens_for(curve, 0.1) == (10.0, False)
    assert optimal.tokens_for(curve, 0.6) == (100.0, True)


def test_the_sign_test():
    test = parts.sign_test([True] * 6 + [False], [False] * 6 + [True])
    assert test["p"] == pytest.approx(2 * (1 + 7) / 2**7)


def records(name, problems, rng):
    found = []
    for problem in problems:
        usage = {"generated": rng.randint(5, 99), "scored": 9, "flops": 300, "reward_flops": 90}
        usage |= {"run": 10, "recomputed": 0, "seconds": {"decode": 0.1, "total": 1.0}}
        right = rng.random() < 0.5
        record = {"id": problem.id, "difficulty": problem.difficulty, "correct": right}
        found.append({**record, "usage": usage, "agg_scores": [rng.random()]})
    return found


def test_the_page_tells_every_part(problems, tmp_path):
    rng = random.Random(3)
    runs = {name: records(name, problems, rng) for name in RUNS}
    sets = (problems, {name: runs[name] for name in ("beam-16", "DVTS-16")})
    found = {
        "a": parts.searches(runs),
        "b": voting.votes(problems, AGGREGATION, lambda _: None),
        "c": voting.aggregations(problems, lambda _: None),
        "d": optimal.compute_optimal(sets, sets, AGGREGATION, lambda _: None),
        "e": parts.matched(runs, problems, AGGREGATION),
        "f": parts.forcing(runs),
        "g": parts.rejection(runs, problems, AGGREGATION),
    }
    machine = {"cpu": "a CPU", "versions": {"torch": "2"}}
    for part, figures in found.items():
        document = {"machine": machine, "seed": 0, "problems": 15, "calibration_problems": 15}
        (tmp_path / f"{part}.json").write_text(json.dumps({**document, **figures}))
    write_page(tmp_path, tmp_path / "docs")
    page = (tmp_path / "docs" / "frontier.md").read_text()
    assert [line[3:6] for line in page.splitlines() if line.startswith("## ")] == [
        f"({part})" for part in "abcdefg"
    ]
    right = sum(r["correct"] for r in runs["beam-16"])
    assert f"| beam-16 | {100 * right / 15:.1f} [" in page
    pictures = sorted(p.name for p in (tmp_path / "docs").glob("*.svg"))
    assert pictures == [f"frontier-{n}.svg" for n in ("optimal", "searches", "votes")]
    assert all(f"({name})" in page for name in pictures)
    # With the same problems for both, the settings reach the accuracy they were chosen for.
    assert all(
        row["tokens"] > 0 for name in ("compute_optimal", "routed") for row in found["d"][name]
    )


def test_limits_are_a_difficulty():
    few = chosen("arith-test", 2)
    assert [p["difficulty"] for p in few] == ["easy"] * 2 + ["medium"] * 2 + ["hard"] * 2
