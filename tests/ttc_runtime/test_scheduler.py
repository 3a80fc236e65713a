"""The scheduler: problems that fail alone, stragglers, results that the batch does not touch."""

from __future__ import annotations

import pytest
from test_engine import PROBLEMS, StepBeam, free_everything, tree_of
from ttc_runtime import BestOfN, Budget, Generate, Outcome, SamplingParams, Score

SHORT = SamplingParams(max_tokens=40)


class Raises:
    """Fails on some problems, in one of several ways."""

    name = "raises"
    sampling = SHORT

    def __init__(self, how):
        self.how = how

    def run(self, search):
        branches = yield Generate(search.root.fork(3), self.sampling)
        if search.problem == PROBLEMS[1]:
            self.how(branches)
            yield "what is this?"
        yield Score(branches)
        return Outcome(branches, "naive")


def _divide(branches):
    return 1 / 0


def _ask_for_freed(branches):
    branches[0].free()
    branches[0].fork(2)


@pytest.mark.parametrize(
    "how, message",
    [
        (_divide, "ZeroDivisionError: division by zero"),
        (_ask_for_freed, "Branch.fork: branch .* was freed"),
        (lambda branches: None, "TypeError: strategy: expected it to yield Generate, Score,"),
    ],
)
def test_a_strategy_that_raises_fails_its_problem_alone(make_engine, how, message):
    engine = make_engine()
    expected = make_engine().solve_all(PROBLEMS, BestOfN(3, sampling=SHORT))
    results = engine.solve_all(PROBLEMS, Raises(how))
    assert [r.error is None for r in results] == [True, False, True, True, True]
    with pytest.raises(ValueError, match=message):
        engine.solve(PROBLEMS[1], Raises(how))
    for got, want in zip(results, expected, strict=True):
        assert got.error is not None or tree_of(got) == tree_of(want)
    assert results[1].usage.generated > 0  # what it cost is told
    free_everything(engine)


def test_outputs_that_are_not_finite_fail_their_problem_alone(make_engine):
    engine = make_engine()
    sampler, calls = engine.policy._sample, []

    def poisoned(logits, growths):
        logits = logits.clone()
        calls.append(1)
        for row, growth in enumerate(growths):
            if growth.search.problem == PROBLEMS[2] and len(calls) > 5:
                logits[row] = float("nan")
        sampler(logits, growths)

    engine.policy._sample = poisoned
    results = engine.solve_all(PROBLEMS, BestOfN(3, sampling=SHORT))
    assert [r.error is None for r in results] == [True, True, False, True, True]
    assert "are not finite" in results[2].error
    expected = make_engine().solve_all(PROBLEMS, BestOfN(3, sampling=SHORT))
    assert tree_of(results[4]) == tree_of(expected[4])
    free_everything(engine)


class Straggler:
    """One problem grows a single long step; the others many short ones."""

    name = "straggler"
    sampling = SamplingParams(max_tokens=300)

    def run(self, search):
        slow = search.problem == PROBLEMS[0]
        branches = search.root.fork(4)
        if slow:
            no_end = [search.policy.tokenizer.eos_token_id], -1e4
            yield Generate(branches, self.sampling, bias=lambda branch: no_end)
            return Outcome(branches)
        for _ in range(6):
            yield Generate(branches, SamplingParams(max_tokens=30), until_step=True)
            yield Score(branches)
        return Outcome(branches)


def test_a_straggler_does_not_stall_the_other_problems(make_engine):
    engine = make_engine()
    passes = []
    forward = engine.policy.lane.model.forward
    engine.policy.lane.model.forward = lambda *a: passes.append(len(a[3])) or forward(*a)
    order = [r.index for r in engine.stream([{"problem": p} for p in PROBLEMS], Straggler())]
    assert order[-1] == 0
    # The others never waited for it: they are through within their own number of passes.
    longest = 6 * 30 + 40
    assert max(passes) >= 16 and sum(rows > 4 for rows in passes) <= longest


@pytest.mark.parametrize("strategy", [BestOfN(5, sampling=SHORT), StepBeam()])
@pytest.mark.parametrize("budget", [None, Budget(tokens=70)])
def test_records_do_not_depend_on_the_batch(make_engine, strategy, budget):
    """100 problems together, in two halves and in reverse."""
    problems = [f"{a}+{a}*2=\n" for a in range(10, 110)]

    def records(parts, **arguments):
        engine = make_engine(kv_memory="128MiB", **arguments)
        found = {}
        for part in parts:
            for result in engine.solve_all(part, strategy, budget, seed=4):
                record = result.record()
                del record["usage"]["seconds"], record["id"]
                found[result.problem] = record
        return found

    together = records([problems])
    assert records([problems[:50], problems[50:]]) == together
    assert records([problems[::-1]], max_batch=16) == together
