"""Difficulty routing."""

from __future__ import annotations

import pytest
from scripted import PROMPT, check_tree, texts
from ttc_runtime import SamplingParams
from ttc_runtime.strategies import (
    Adaptive,
    BeamSearch,
    BestOfN,
    Greedy,
    SelfConsistency,
    make_strategy,
)
from ttc_runtime.strategies.named import parse_settings

STEPS = {"": ["#1", "#2", "#3", "#4"]}
ROUTES = (Greedy(), BestOfN(6), BeamSearch(4, 2))


def adaptive(**settings):
    return Adaptive(**{"samples": 4, "bounds": (0.3, 0.6), "routes": ROUTES, **settings})


@pytest.mark.parametrize(
    "reward, route, count", [(0.8, "greedy", 1), (0.7, "best_of_n", 2), (0.2, "beam", 4)]
)
def test_the_mean_reward_decides(scripted, reward, route, count):
    """Difficulty is 1 - reward: 0.2, 0.3 (on the bound: the harder route), 0.8. Best-of-6 counts
    the 4 samples and draws 2 more."""
    engine = scripted(STEPS, reward)
    result = engine.solve(PROMPT, adaptive())
    assert result.info == {"difficulty": round(1 - reward, 6), "route": route}
    assert texts(result)[:4] == ["#1", "#2", "#3", "#4"] and len(result.branches) == 4 + count
    assert all(branch.step_scores for branch in result.branches)
    check_tree(engine, result)


@pytest.mark.parametrize(
    "options, route",
    [(["#1"], "greedy"), (["#1", "#2"], "best_of_n"), (["#1", "#2", "#3", "#4"], "beam")],
)
def test_agreement_decides(scripted, options, route):
    """Difficulty 0, 0.5, and 0.75 of 4 samples."""
    engine = scripted({"": options}, 0.5)
    assert engine.solve(PROMPT, adaptive(estimate="agreement")).info["route"] == route


def test_answers_that_cannot_be_read_agree_with_nothing(scripted):
    result = scripted({"": ["none"]}, 0.5).solve(PROMPT, adaptive(estimate="agreement"))
    assert result.info["difficulty"] == 1.0 and result.answer is None


def test_best_of_n_goes_on_with_the_samples(scripted):
    """Best-of-6 after a look at 4 is best-of-6: the same completions, each drawn once."""
    plain = scripted(STEPS, 0.7).solve(PROMPT, BestOfN(6))
    routed = scripted(STEPS, 0.7).solve(PROMPT, adaptive(select=None))
    assert texts(routed) == texts(plain) and routed.answer == plain.answer
    assert routed.usage.generated == plain.usage.generated
    # With no more than the samples there is nothing to add, and other sampling is drawn anew.
    fewer = adaptive(routes=(BestOfN(3),) * 3, select=None)
    assert texts(scripted(STEPS, 0.7).solve(PROMPT, fewer)) == ["#1", "#2", "#3", "#4"]
    other = BestOfN(6, sampling=SamplingParams(top_k=9))
    result = scripted(STEPS, 0.7).solve(PROMPT, adaptive(routes=(other,) * 3))
    assert len(result.branches) == 4 + 6


@pytest.mark.parametrize(
    "select, scores, answer",
    [("majority", {}, "1"), ("naive", {"#2": 0.9}, "2"), ("weighted", {"#1": 0.1}, "2")],
)
def test_an_answer_is_chosen_among_all(scripted, select, scores, answer):
    """Samples 1 2 1, then greedy's 1: three to one; 2 has the best score, or the larger sum."""
    engine = scripted({"": ["#1", "#2"]}, lambda text: scores.get(text.strip(), 0.5))
    result = engine.solve(PROMPT, adaptive(samples=3, routes=(Greedy(),) * 3, select=select))
    assert texts(result) == ["#1", "#2", "#1", "#1"] and result.answer == answer


def test_routes_are_words_too():
    """As on a command line: --set bounds=[0.5] --set routes='["greedy", "beam:n=8:width=2"]'."""
    given = parse_settings(["bounds=[0.5]", 'routes=["greedy", "beam:n=8:width=2"]'])
    sampling = SamplingParams(max_tokens=9)
    strategy = make_strategy("adaptive", sampling=sampling, **given)
    assert strategy.routes == (Greedy(sampling), BeamSearch(8, 2, sampling=sampling))
    assert strategy == Adaptive(bounds=(0.5,), routes=strategy.routes, sampling=sampling)


def test_agreement_needs_no_reward_model_where_the_routes_do_not(scripted):
    strategy = adaptive(estimate="agreement", routes=(Greedy(), SelfConsistency(3), Greedy()))
    result = scripted({"": ["#1", "#2"]}).solve(PROMPT, strategy)
    assert result.info["route"] == "self_consistency" and result.answer == "1"
    with pytest.raises(ValueError, match="made without a reward model"):
        scripted(STEPS).solve(PROMPT, adaptive())


def test_confidence_decides(scripted):
    """The script's tokens have ranks 0, -1, -2 ...: a text with one way to go is certain."""
    sure = scripted({"": ["#1"]}, 0.5).solve(PROMPT, adaptive(estimate="confidence"))
    unsure = scripted(STEPS, 0.5).solve(PROMPT, adaptive(estimate="confidence"))
    assert sure.info["difficulty"] == pytest.approx(0, abs=1e-6)
    assert unsure.info["difficulty"] > 0.1


def test_wrong_settings():
    with pytest.raises(ValueError, match="bounds must increase and be one fewer than the 3 routes"):
        Adaptive(bounds=(0.5,), routes=ROUTES)
    with pytest.raises(ValueError, match="Adaptive: routes must be a list, got 'greedy'"):
        adaptive(routes="greedy")
    with pytest.raises(ValueError, match=r"Adaptive: bounds must be a list, got 0\.5"):
        adaptive(bounds=0.5)
    with pytest.raises(ValueError, match=r"strategy: expected one of greedy, .* got 'magic'"):
        adaptive(routes=("greedy", "magic", "mcts"))
    with pytest.raises(ValueError, match="expected NAME=VALUE, got '8'"):
        adaptive(routes=("greedy", "beam:8", "mcts"))
    with pytest.raises(ValueError, match="bounds must increase"):
        adaptive(bounds=(0.6, 0.3))
    with pytest.raises(ValueError, match="Adaptive: estimate must be 'reward' or 'agreement'"):
        adaptive(estimate="guess")
