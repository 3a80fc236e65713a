"""Memory pressure: evict, wait, preempt; only a problem that does not fit alone fails."""

from __future__ import annotations

import pytest
from test_engine import PROBLEMS, StepBeam, free_everything, tree_of
from ttc_runtime import BestOfN, SamplingParams

LONG = SamplingParams(max_tokens=60)


def memory(engine, pages):
    """kv_memory that gives so many pages to each model."""
    return pages * (engine.policy.lane.model.page_bytes + engine.reward.model.page_bytes)


@pytest.mark.parametrize("strategy", [BestOfN(6, sampling=LONG), StepBeam()])
def test_little_memory_changes_nothing_but_the_work(make_engine, strategy):
    roomy = make_engine()
    expected = [tree_of(r) for r in roomy.solve_all(PROBLEMS, strategy)]
    # Enough for one problem (6 branches of 60 + 8 tokens are 30 pages), too little for five.
    tight = make_engine(kv_memory=memory(roomy, 40))
    results = tight.solve_all(PROBLEMS, strategy)
    assert [r.error for r in results] == [None] * 5
    assert [tree_of(r) for r in results] == expected
    if isinstance(strategy, BestOfN):
        assert sum(r.usage.recomputed for r in results) > 0
    for result in results:
        usage, once = result.usage, result.usage.run - result.usage.recomputed
        assert once <= usage.prompt + usage.reused + usage.generated
    free_everything(tight)


def test_a_problem_that_cannot_fit_fails_alone(make_engine):
    roomy = make_engine()
    tight = make_engine(kv_memory=memory(roomy, 9))
    problems = [PROBLEMS[0], PROBLEMS[1] + "abcdefgh " * 20, PROBLEMS[2]]
    results = tight.solve_all(problems, BestOfN(1, sampling=LONG))
    assert [r.error is None for r in results] == [True, False, True]
    assert "needs more than the 9 pages of 16 tokens" in results[1].error
    assert "kv_memory" in results[1].error
    expected = make_engine().solve_all([problems[0], problems[2]], BestOfN(1, sampling=LONG))
    assert [tree_of(results[0]), tree_of(results[2])] == [tree_of(r) for r in expected]
    free_everything(tight)


def test_cached_prompts_are_given_up_first(make_engine):
    roomy = make_engine()
    engine = make_engine(kv_memory=memory(roomy, 36))
    for problem in PROBLEMS:
        result = engine.solve(problem, BestOfN(6, sampling=LONG))
        assert result.usage.recomputed == 0
    free_everything(engine)


def test_pressure_in_the_reward_lane_only(make_engine):
    """Scores are the same when the reward model's pages are few and its work is done again."""
    roomy = make_engine()
    expected = [tree_of(r) for r in roomy.solve_all(PROBLEMS, BestOfN(6, sampling=LONG))]
    engine = make_engine()
    held = [engine.reward.model.pool.new_branch() for _ in range(1)]
    held[0].append((engine.reward.model.pool.num_pages - 40) * 16)
    results = engine.solve_all(PROBLEMS, BestOfN(6, sampling=LONG))
    assert [tree_of(r) for r in results] == expected
    held[0].free()
    free_everything(engine)
