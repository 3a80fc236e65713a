"""Choosing by a calibration table, by hand and on scripted problems; thinking budgets."""

from __future__ import annotations

import pytest
from scripted import PROMPT, check_tree
from ttc_runtime.calibration import Calibration, Trial, calibrate
from ttc_runtime.strategies import BestOfN, BudgetForcing, ComputeOptimal, Greedy, make_strategy
from ttc_runtime.thinking_budget import Point, budget_metrics, smallest_budget, thinking_curve


def trial(difficulty, greedy, beam, tokens=(10, 100)):
    names = ("greedy", "beam")
    correct = dict(zip(names, (greedy, beam), strict=True))
    return Trial(difficulty, 5, correct, dict(zip(names, tokens, strict=True)))


EASY = [trial(0.1, True, True), trial(0.2, True, True), trial(0.15, False, True)]
HARD = [trial(0.8, False, True), trial(0.9, False, True), trial(0.7, True, False)]
TABLE = Calibration(
    {"greedy": {"name": "greedy"}, "beam": {"name": "beam", "n": 4, "width": 2}},
    2,
    "reward",
    [0.5],
    [*EASY, *HARD],
)


def test_choices_by_hand():
    """Easy: greedy 2/3 for 10 tokens, beam 3/3 for 100. Hard: greedy 1/3, beam 2/3."""
    assert TABLE.choose(0.1) == TABLE.choose(0.9) == "beam"
    assert TABLE.choose(0.1, tolerance=0.34) == "greedy"
    assert TABLE.choose(0.9, tolerance=0.33) == "beam"
    assert TABLE.choose(0.9, tokens=50) == "greedy"
    assert TABLE.choose(0.9, tokens=5) == "greedy"  # nothing is that cheap: the cheapest
    with pytest.raises(ValueError, match="no trials"):
        Calibration({}, 2, "reward", [0.5]).choose(0.1)


def test_cross_validation_by_hand():
    """Folds 0 2 4 and 1 3 5. Held out 0 2 (easy): by trial 1, where both are right, greedy: right,
    wrong. Held out 4 (hard): by 3 and 5, a tie at 1/2, greedy: wrong. Held out 1 (easy): by 0 and
    2, beam: right. Held out 3 and 5 (hard): by 4, beam: right, wrong."""
    accuracy, tokens = TABLE.cross_validate(2)
    assert accuracy == pytest.approx(3 / 6)
    assert tokens == pytest.approx((3 * 10 + 3 * 100) / 6 + 5)
    with pytest.raises(ValueError, match="folds must be 2 to 6 trials, got 1"):
        TABLE.cross_validate(1)


STEPS = {"": ["#1", "#2"]}
RECORDS = [{"id": i, "problem": PROMPT, "answer": str(1 + i % 2)} for i in range(4)]


def test_a_table_is_measured_saved_and_used(scripted, tmp_path):
    """Child 0 says 1, child 1 says 2, and the reward prefers 2: greedy is right where 1 is."""
    engine = scripted(STEPS, lambda text: 0.9 if "2" in text else 0.3)
    kinds = {"one": Greedy(), "two": BestOfN(2)}
    table = calibrate(engine, RECORDS, kinds, bins=2, samples=2)
    assert [t.correct for t in table.trials[:2]] == [
        {"one": True, "two": False},
        {"one": False, "two": True},
    ]
    assert table.trials[0].difficulty == pytest.approx(0.4) and table.trials[0].look == 6
    assert table.trials[0].tokens == {"one": 3, "two": 6}
    table.save(tmp_path / "table.json")
    strategy = make_strategy("compute_optimal", table=str(tmp_path / "table.json"))
    result = engine.solve(PROMPT, strategy)
    assert result.info == {"difficulty": 0.4, "route": "one"}  # as good as two, and cheaper
    assert len(result.branches) == 3
    check_tree(engine, result)


def test_wrong_tables(tmp_path, scripted):
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(ValueError, match=r"calibration table .*bad\.json"):
        ComputeOptimal(str(tmp_path / "bad.json"))
    with pytest.raises(ValueError, match="compute_optimal: needs the settings table"):
        make_strategy("compute_optimal")
    with pytest.raises(ValueError, match="problems must each have an 'answer'"):
        calibrate(scripted(STEPS, 0.5), [{"problem": PROMPT}], {"one": Greedy()})


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
