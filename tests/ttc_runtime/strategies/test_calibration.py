"""Choosing by a calibration table, by hand and on scripted problems; thinking budgets."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import PROMPT, check_tree, texts
from ttc_runtime import Engine
from ttc_runtime.calibration import Calibration, Trial, calibrate
from ttc_runtime.records import settings as recorded
from ttc_runtime.strategies import (
    BeamSearch,
    BestOfN,
    BudgetForcing,
    ComputeOptimal,
    Confidence,
    Greedy,
    make_strategy,
)
from ttc_runtime.thinking_budget import Point, budget_metrics, smallest_budget, thinking_curve


def trial(difficulty, greedy, beam, tokens=(15, 105)):
    names = ("greedy", "beam")
    correct = dict(zip(names, (greedy, beam), strict=True))
    return Trial(difficulty, correct, dict(zip(names, tokens, strict=True)))


EASY = [trial(0.1, True, True), trial(0.2, True, True), trial(0.15, False, True)]
HARD = [trial(0.8, False, True), trial(0.9, False, True), trial(0.7, True, False)]
TABLE = Calibration(
    {"greedy": {"name": "greedy"}, "beam": {"name": "beam", "n": 4, "width": 2}},
    2,
    "reward",
    None,
    [0.5],
    [*EASY, *HARD],
)


def test_choices_by_hand():
    """Easy: greedy 2/3 for 15 tokens, beam 3/3 for 105. Hard: greedy 1/3, beam 2/3.

    All greedy costs 15 a problem, beam for one of the bins 60. Both bins gain 1 right answer, so
    the first gets it; with two more right answers among the hard it is theirs.
    """
    assert TABLE.allocate() == ["beam", "beam"]
    assert TABLE.choose(0.1) == TABLE.choose(0.9) == "beam"
    assert TABLE.allocate(tokens=60) == ["beam", "greedy"]
    assert TABLE.allocate(tokens=59) == ["greedy", "greedy"]
    assert TABLE.allocate(tokens=5) == ["greedy", "greedy"]  # nothing is that cheap: the cheapest
    more = replace(TABLE, trials=[*TABLE.trials, trial(0.6, False, True)])
    assert more.allocate(tokens=70) == ["greedy", "beam"]
    with pytest.raises(ValueError, match="no trials"):
        replace(TABLE, trials=[]).choose(0.1)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 3), st.one_of(st.none(), st.integers(0, 120)))
def test_an_allocation_against_all_others(seed, bins, tokens):
    """By brute force: without a limit no allocation is right more often, and none as often for
    less; with one it is kept, no single bin could be better for what is left, and what a better
    allocation gains over it is less than one bin's step (the greedy bound of such knapsacks)."""
    rng = random.Random(seed)
    labels = ["a", "b", "c"]
    trials = [
        Trial(
            rng.random(),
            {k: rng.random() < 0.5 for k in labels},
            {k: rng.randint(1, 100) for k in labels},
        )
        for _ in range(rng.randint(1, 12))
    ]
    table = Calibration({}, 2, "reward", None, [i / bins for i in range(1, bins)], trials)

    def worth(allocation):
        kept = [(t, allocation[table.bin_of(t.difficulty)]) for t in trials]
        return sum(t.correct[k] for t, k in kept), sum(t.tokens[k] for t, k in kept)

    right, spent = worth(table.allocate(tokens))
    every = [worth(a) for a in itertools.product(labels, repeat=bins)]
    if tokens is None:
        best = max(r for r, _ in every)
        assert right == best and spent == min(s for r, s in every if r == best)
        return
    room = tokens * len(trials)
    affordable = [r for r, s in every if s <= room]
    if not affordable:
        assert spent == min(s for _, s in every)
        return
    assert spent <= room
    found = table.allocate(tokens)
    for b, k in itertools.product(range(bins), labels):
        other = worth([*found[:b], k, *found[b + 1 :]])
        assert other[0] <= right or other[1] > room
    largest = max(sum(table.bin_of(t.difficulty) == b for t in trials) for b in range(bins))
    assert max(affordable) - right <= largest


def test_cross_validation_by_hand():
    """Folds 0 2 4 and 1 3 5. Held out 0 2 (easy): by trial 1, where both are right, greedy: right,
    wrong. Held out 4 (hard): by 3 and 5, a tie at 1/2, greedy: wrong. Held out 1 (easy): by 0 and
    2, beam: right. Held out 3 and 5 (hard): by 4, beam: right, wrong."""
    assert TABLE.held_out(2) == ["greedy", "beam", "greedy", "beam", "greedy", "beam"]
    accuracy, tokens = TABLE.cross_validate(2)
    assert accuracy == pytest.approx(3 / 6)
    assert tokens == pytest.approx((3 * 15 + 3 * 105) / 6)
    with pytest.raises(ValueError, match="folds must be 2 to 6 trials, got 1"):
        TABLE.cross_validate(1)


STEPS = {"": ["#1", "#2"]}
RECORDS = [{"id": i, "problem": PROMPT, "answer": str(1 + i % 2)} for i in range(4)]


def prefers_two(text):
    return 0.9 if "2" in text else 0.3


def test_a_table_is_measured_saved_and_used(scripted, tmp_path):
    """The samples say 1 and 2, and the reward prefers 2; greedy adds another 1, and votes by
    majority. Of "#1" and the end 3 tokens are drawn."""
    engine = scripted(STEPS, prefers_two)
    kinds = {"one": Greedy(), "two": BestOfN(2)}
    table = calibrate(engine, RECORDS, kinds, bins=2, samples=2)
    assert [t.correct for t in table.trials[:2]] == [
        {"one": True, "two": False},
        {"one": False, "two": True},
    ]
    assert table.trials[0].difficulty == pytest.approx(0.4)
    assert table.trials[0].tokens == {"one": 9, "two": 6}
    assert table.strategies == {"one": {"name": "greedy"}, "two": {"name": "best_of_n", "n": 2}}
    table.save(tmp_path / "table.json")
    assert Calibration.load(tmp_path / "table.json") == table
    strategy = make_strategy("compute_optimal", table=str(tmp_path / "table.json"))
    result = engine.solve(PROMPT, strategy)
    assert result.info == {"difficulty": 0.4, "route": "two"}  # as good as one, and cheaper
    assert texts(result) == ["#1", "#2"] and result.answer == "2"
    check_tree(engine, result)


def test_held_out_figures_are_what_the_strategy_does(scripted):
    """Each half solved by `ComputeOptimal` with the other half's table, tree by tree."""
    engine = scripted(STEPS, lambda text: (0.9 if "2" in text else 0.3) * (1 - len(text) / 20))
    kinds = {"one": Greedy(), "two": BestOfN(2), "four": BestOfN(4), "beam": BeamSearch(2, 2)}
    table = calibrate(engine, RECORDS, kinds, bins=2, samples=2)
    for tokens in (7, 9, None):
        for i, label in enumerate(table.held_out(2, tokens)):
            others = [t for j, t in enumerate(table.trials) if j % 2 != i % 2]
            strategy = ComputeOptimal(replace(table, trials=others), tokens)
            [result] = engine.solve_all(RECORDS[i : i + 1], strategy)
            assert result.info["route"] == label
            assert result.correct == table.trials[i].correct[label]
            assert result.usage.generated == table.trials[i].tokens[label]


def test_records_tell_tables_apart(tmp_path):
    """Results by one table are not taken for those by another of the same file name."""
    digests = []
    for table in (TABLE, replace(TABLE, trials=EASY), TABLE):
        table.save(tmp_path / "table.json")
        strategy = ComputeOptimal(str(tmp_path / "table.json"))
        digests.append(recorded(strategy)["digest"])
        assert recorded(strategy)["table"] == str(tmp_path / "table.json")
    assert digests[0] == digests[2] != digests[1]


def test_wrong_tables(tmp_path, scripted):
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(ValueError, match=r"calibration table .*bad\.json"):
        ComputeOptimal(str(tmp_path / "bad.json"))
    with pytest.raises(ValueError, match="compute_optimal: needs the settings table"):
        make_strategy("compute_optimal")
    with pytest.raises(ValueError, match=r"ComputeOptimal: tokens must be a number in \[1, inf\]"):
        ComputeOptimal(TABLE, tokens=0)
    engine = scripted(STEPS, 0.5)
    with pytest.raises(ValueError, match="problems must each have an 'answer'"):
        calibrate(engine, [{"problem": PROMPT}], {"one": Greedy()})
    with pytest.raises(ValueError, match="bins must be >= 1 and strategies given, got 0"):
        calibrate(engine, RECORDS, {"one": Greedy()}, bins=0)
    with pytest.raises(ValueError, match=r"no problem was solved.*; one: .*without a reward model"):
        calibrate(scripted(STEPS), RECORDS, {"one": Greedy()})
    own = {"own": BeamSearch(4, value=Confidence())}
    with pytest.raises(ValueError, match=r"beam: value = Confidence\(\) cannot be put in a table"):
        calibrate(engine, RECORDS, own)


def test_the_module_can_be_imported_first():
    """The guide imports this one before any other."""
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    code = "import ttc_runtime.calibration as c; c.calibrate, c.Calibration"
    subprocess.run([sys.executable, "-c", code], check=True, env=here)


def test_the_commands(scripted, tmp_path, monkeypatch, capsys):
    """``ttc calibrate`` writes a table, runs nothing twice; ``ttc solve`` uses it. The routes of
    ``adaptive`` are set there too."""
    from ttc_runtime import cli

    engine = scripted(STEPS, prefers_two)
    monkeypatch.setattr(Engine, "from_pretrained", lambda *_, **__: engine)
    problems, out = tmp_path / "problems.jsonl", tmp_path / "table.json"
    problems.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))

    def ttc(*arguments):
        monkeypatch.setattr(sys, "argv", ["ttc", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return exit_.value.code or 0, *capsys.readouterr()

    common = ["--model", "m", "--problems", problems]
    measure = ["calibrate", *common, "--strategies", "greedy,best_of_n:n=2", "--samples", 2]
    status, said, _ = ttc(*measure, "--bins", 2, "--out", out)
    assert status == 0 and f"--set table={out}" in said.replace("\n", "")
    kinds = {"greedy": Greedy(), "best_of_n n=2": BestOfN(2)}
    assert Calibration.load(out) == calibrate(engine, RECORDS, kinds, bins=2, samples=2)
    assert re.search(r"greedy .* 50.0 / 9 .* 50.0 / 9 ", said)
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "stream", lambda *_: pytest.fail("nothing is left to run"))
        assert ttc(*measure, "--bins", 2, "--out", out)[0] == 0

    solve = ["solve", *common, "--out", tmp_path / "results.jsonl"]
    routes = '["greedy", "beam:n=2:width=2"]'
    adaptive = ["--set", "samples=2", "--set", "bounds=[0.3]", "--set", f"routes={routes}"]
    assert ttc(*solve, "--strategy", "compute_optimal", "--set", f"table={out}")[0] == 0
    assert ttc(*solve, "--strategy", "adaptive", *adaptive)[0] == 0
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").open()]
    routes_taken = [(r["strategy"], r["info"]["route"]) for r in records]
    assert routes_taken == [("compute_optimal", "best_of_n n=2")] * 4 + [("adaptive", "beam")] * 4
    status, _, said = ttc("calibrate", *common, "--strategies", "greedy,magic", "--out", out)
    assert status == 1 and "strategy: expected one of greedy, " in said


def test_a_thinking_budget_is_calibrated(scripted):
    """Thinking is right after 8 tokens, however much longer it goes on."""
    engine = scripted(
        {
            "": ["abcdefghijklmnop"],
            "abcd\n#": ["1"],
            "abcdefgh\n#": ["2"],
            "abcdefghijkl\n#": ["2"],
        }
    )
    chain = BudgetForcing(end="#", answer="")
    points = thinking_curve(engine, [{"problem": PROMPT, "answer": "2"}], chain, [4, 8, 12])
    assert points == [Point(4, 0.0, 4.0), Point(8, 1.0, 8.0), Point(12, 1.0, 12.0)]
    assert smallest_budget(points) == 8
    metrics = budget_metrics(points)
    assert metrics["control"] == 1.0 and metrics["performance"] == 1.0
    # Slopes of the pairs: 1/4 (4 to 8), 1/8 (4 to 12), 0 (8 to 12), mean 1/8.
    assert metrics["scaling"] == pytest.approx(1 / 8)
    with pytest.raises(ValueError, match="budgets must be increasing positive"):
        thinking_curve(engine, RECORDS, chain, [8, 4])
