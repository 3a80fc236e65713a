"""The frontier's arithmetic on problems small enough to check by hand, and the page it makes."""

from __future__ import annotations

import itertools
import json
import math
import random

import numpy as np
import pytest
from ttc_runtime.calibration import tabulate

from bench.frontier import optimal, parts, voting
from bench.frontier.__main__ import AGGREGATION
from bench.frontier.page import write_page
from bench.frontier.samples import BANDS, SAMPLES, Drawn, chosen, more_hard
from bench.frontier.search import HARD, ROUTED, RUNS, TRIALS


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


def trials(problems, seed=5):
    """Records of every strategy that may be chosen; best-of-N pays for the drawn samples."""
    rng, found = random.Random(seed), {}
    difficulties = [rng.random() for _ in problems]
    for label in TRIALS:
        found[label] = records(label, problems, rng)
        for record, problem, difficulty in zip(found[label], problems, difficulties, strict=True):
            record["info"] = {"difficulty": difficulty, "route": label}
            if label.startswith("best-of-"):
                tokens = problem.tokens[: int(label.removeprefix("best-of-"))].sum()
                record["usage"] = {**record["usage"], "generated": int(tokens)}
    return found


def measured(problems):
    routed = {name: records(name, problems, random.Random(7)) for name in ROUTED}
    made = trials(problems)
    return optimal.compute_optimal(made, routed, problems, AGGREGATION, lambda _: None), made


def test_compute_optimal_is_the_shipped_table(problems):
    """Accuracy and tokens are those that the table's own cross-validation tells."""
    found, made = measured(problems)
    table = tabulate(made, TRIALS, optimal.BINS)
    for row in found["rows"]:
        whole = row["bands"]["all"]
        expected = table.cross_validate(optimal.FOLDS, row["budget"])
        assert (whole["accuracy"], whole["tokens"]) == pytest.approx(expected)
        assert row["setting"] == table.allocate(row["budget"])
        assert whole["share"][0] == pytest.approx(whole["tokens"] / whole["uniform_tokens"])
        assert whole["share"][1] <= whole["share"][0] * 1.5 and whole["share"][2] > 0
        of_bands = [row["bands"][band]["accuracy"] for band in BANDS]
        assert np.mean(of_bands) == pytest.approx(whole["accuracy"])  # as many of each
    for level in found["levels"]:
        even = found["uniform"][found["sizes"].index(level["n"])]
        cell = level["bands"]["all"]
        assert [cell["uniform_tokens"], cell["accuracy"]] == pytest.approx(list(even))
        if cell["tokens"] is not None:
            assert cell["share"][0] == pytest.approx(cell["tokens"] / even[0])


def test_other_samples_are_noticed(problems):
    made = trials(problems)
    made["best-of-4"][3]["usage"]["generated"] += 1
    with pytest.raises(RuntimeError, match=r"best-of-4, p3: other samples were drawn"):
        optimal.compute_optimal(made, {}, problems, AGGREGATION, lambda _: None)


def test_resampling_finds_the_interval_of_a_mean():
    """Of 400 values of variance 1 the mean has a standard error of 0.05."""
    values = np.random.default_rng(1).normal(size=500)
    values[:400] = (values[:400] - values[:400].mean()) / values[:400].std()
    resampled = optimal.Resampled(np.arange(500) < 400)
    mean, low, high = resampled.interval(resampled.means(values))
    assert mean == pytest.approx(0, abs=1e-12)
    assert low == pytest.approx(-0.098, abs=0.01) and high == pytest.approx(0.098, abs=0.01)
    # The same draws for both sides: a difference that is the same everywhere has no spread.
    assert np.ptp(resampled.means(values + 2) - resampled.means(values)) < 1e-12


def test_tokens_of_a_curve_that_never_gets_there():
    curve = [(10.0, 0.2), (100.0, 0.5), (1000.0, 0.4)]
    assert optimal.tokens_for(curve, 0.1) == (10.0, False)
    assert optimal.tokens_for(curve, 0.6) == (100.0, True)


def test_equal_accuracy_by_hand():
    """Even is at 0.5 for 100 tokens and ours for 25; a level that ours never reaches is open."""
    ours, even = [(10.0, 0.3), (62.5, 0.7)], [(50.0, 0.4), (100.0, 0.5), (200.0, 0.8)]
    cell = optimal._at_level([ours, ours], [even, even], 1)
    assert cell["tokens"] == pytest.approx(25) and cell["share"] == pytest.approx([0.25] * 3)
    assert optimal._at_level([ours, ours], [even, even], 2)["share"] == [None] * 3


def test_against_by_hand():
    """Of 4 problems in both, ours solves 2 that theirs misses and misses 1, for half the tokens."""

    def made(place, right, tokens):
        usage = {"generated": tokens, "flops": 3 * tokens}
        return {"id": place, "correct": right, "usage": usage}

    ours = [made(i, right, 5) for i, right in enumerate([True, True, False, True])]
    base = [made(i, right, 10) for i, right in enumerate([False, False, True, True, True])]
    found = parts.against(ours, base)
    assert (found["problems"], found["only_ours"], found["only_theirs"]) == (4, 2, 1)
    assert found["times_the_tokens"] == found["times_the_flops"] == 0.5 and found["p"] == 1.0
    # Differences 1 1 -1 0: mean 1/4, variance 3/4 - 1/16.
    half = 1.96 * math.sqrt(11 / 16 / 4)
    assert found["difference"] == pytest.approx([0.25, 0.25 - half, 0.25 + half])


def test_more_hard_problems_are_new_and_untrained():
    from ttc_runtime.records import read_problems
    from ttc_runtime.zoo.arith import parse, split_of

    found = more_hard()
    texts = {record["problem"] for record in found}
    assert len(found) == len(texts) == len({record["id"] for record in found}) == 300
    assert not texts & {r["problem"] for r in read_problems("zoo:arith-test").records}
    assert {split_of(text) for text in texts} == {"test"}
    assert {parse(r["problem"]).answer == r["answer"] for r in found} == {True}
    assert [len(parse(r["problem"]).ops) for r in found[::50]] == [6, 6, 7, 7, 8, 8]


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
    more = {name: records(name, problems[2::3], rng) for name in HARD}
    found = {
        "a": parts.searches(runs, more, problems, AGGREGATION),
        "b": voting.votes(problems, AGGREGATION, lambda _: None),
        "c": voting.aggregations(problems, lambda _: None),
        "d": measured(problems)[0],
        "e": parts.matched(runs, problems, AGGREGATION),
        "f": parts.forcing(runs),
        "g": parts.rejection(runs, problems, AGGREGATION),
    }
    machine = {"cpu": "a CPU", "versions": {"torch": "2"}}
    for part, figures in found.items():
        document = {"machine": machine, "seed": 0, "problems": 15}
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
    rows = [line for line in page.splitlines() if line.startswith("| MCTS-50 against best-of-")]
    assert len(rows) == 2 and "| 5 |" in rows[0]
    assert "| best-of-64 | hard | " in page and "| at most any | " in page


def test_limits_are_a_difficulty():
    few = chosen("arith-test", 2)
    assert [p["difficulty"] for p in few] == ["easy"] * 2 + ["medium"] * 2 + ["hard"] * 2
