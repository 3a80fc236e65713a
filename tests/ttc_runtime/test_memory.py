"""Memory pressure: evict, wait, preempt; only a problem that does not fit alone fails."""

from __future__ import annotations

import random

import pytest
from test_engine import PROBLEMS, StepBeam, free_everything, tree_of
from ttc_runtime import BestOfN, Generate, Outcome, SamplingParams, Score

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
    if isinstance(strategy, BestOfN):  # they start one after the other
        assert sum(r.usage.recomputed for r in results) == 0
    for result in results:
        assert result.usage.run <= result.usage.prompt + result.usage.generated
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


class RandomWalk:
    """Forks, grows, scores and frees at random; the same moves for the same problem."""

    name = "random_walk"
    sampling = LONG

    def run(self, search):
        rng = random.Random(search.problem)
        alive, every = search.root.fork(3), []
        every += alive
        for _ in range(12):
            chosen = rng.sample(alive, rng.randint(1, min(4, len(alive))))
            move = rng.random()
            if move < 0.45:
                yield Generate(chosen, self.sampling, until_step=rng.random() < 0.8)
            elif move < 0.65:
                yield Score(chosen)
            elif move < 0.85 and len(alive) < 6:
                kids = chosen[0].fork(2)
                alive += kids
                every += kids
            elif len(alive) > 2:
                alive.remove(chosen[0])
                chosen[0].free()
        yield Generate(alive, self.sampling)
        yield Score(alive)
        return Outcome(every, "naive")


def test_any_moves_give_the_same_trees_under_pressure(make_engine):
    problems = [f"{a}+{a}=\n" for a in range(30, 42)]
    roomy = make_engine()
    expected = [tree_of(r) for r in roomy.solve_all(problems, RandomWalk())]
    for result in make_engine(max_batch=1).solve_all(problems, RandomWalk()):
        assert tree_of(result) == expected[result.index]
        usage, own = result.usage, 0
        nodes = {id(n): n for b in result.branches for n in _ancestry(b)}
        own = sum(len(n.sequence.tokens) - n.sequence.fork_len for n in nodes.values())
        assert usage.recomputed == 0 and usage.run <= own
        for branch in result.branches:
            known = [i for i, s in enumerate(branch.step_scores) if s == s]
            if known:
                full = roomy.reward.score(result.problem, branch.steps[: known[-1] + 1])
                assert [branch.step_scores[i] for i in known] == pytest.approx(
                    [full[i] for i in known], abs=1e-5
                )
    for pages in (36, 48, 70):
        tight = make_engine(kv_memory=memory(roomy, pages))
        results = tight.solve_all(problems, RandomWalk())
        assert [r.error for r in results] == [None] * len(problems)
        assert [tree_of(r) for r in results] == expected
        free_everything(tight)


def _ancestry(branch):
    while branch is not None:
        yield branch
        branch = branch.parent


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_one_problem_goes_on_with_memory_for_a_part_of_its_tree(make_engine, share):
    """Branches wait for room and are run again; what comes out is the same."""
    roomy = make_engine()
    expected = roomy.solve(PROBLEMS[0], BestOfN(16, sampling=LONG))
    assert expected.usage.recomputed == 0
    pages = int(share * expected.usage.peak_kv_tokens / 16)
    tight = make_engine(kv_memory=memory(roomy, pages))
    result = tight.solve(PROBLEMS[0], BestOfN(16, sampling=LONG))
    assert tree_of(result) == tree_of(expected)
    assert result.usage.recomputed > 0
    assert (result.usage.run, result.usage.scored) == (expected.usage.run, expected.usage.scored)
    assert result.usage.peak_kv_tokens <= pages * 16
    free_everything(tight)


class Valued:
    """Eight branches, of which the strategy likes some better."""

    name = "valued"
    sampling = LONG
    values = (0.3, 0.9, 0.1, 0.7, 0.2, 0.8, 0.5, 0.6)

    def run(self, search):
        branches = search.root.fork(len(self.values))
        for branch, value in zip(branches, self.values, strict=True):
            branch.value = value
        yield Generate(branches, self.sampling)
        return Outcome(branches)


def test_what_is_worth_least_waits(make_engine):
    roomy = make_engine()
    expected = roomy.solve(PROBLEMS[0], Valued())
    tight = make_engine(kv_memory=memory(roomy, 9))
    policy, held, growing = tight.policy, [], []
    hold = policy.hold

    def noted(search):
        before = {g.branch.value for g in (*policy._decoding, *policy._waiting) if not g.held}
        done = hold(search)
        after = {g.branch.value for g in (*policy._decoding, *policy._waiting) if not g.held}
        if done:
            held.extend(before - after)
            growing.append(before)
        return done

    policy.hold = noted
    result = tight.solve(PROBLEMS[0], Valued())
    assert tree_of(result) == tree_of(expected)
    assert len(held) >= 4 and all(v == min(g) for v, g in zip(held, growing, strict=True))
