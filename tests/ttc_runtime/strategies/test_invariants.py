"""What holds for every strategy: limits, ends, sums, pages; and nothing computed twice."""

from __future__ import annotations

import zlib

import pytest
from every_strategy import SMALL
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted import PROMPT, check_tree, walk
from ttc_runtime import Budget, Engine
from ttc_runtime.records import read_problems
from ttc_runtime.strategies import STRATEGIES


def made_up(seed):
    """A policy that draws letters, closes steps, answers and ends as a checksum decides."""

    def options(text):
        roll = zlib.crc32(f"{seed}/{text[-12:]}/{len(text)}".encode())
        letters = ["a", "b", "+", "=", "7", "\n", "#"]
        found = [letters[(roll >> 4 * i) % len(letters)] for i in range(1 + roll % 3)]
        return [] if roll % 13 == 0 else list(dict.fromkeys(found))

    return options


def test_all_strategies_are_here():
    assert set(SMALL) == set(STRATEGIES)


@pytest.mark.parametrize("name", SMALL)
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    st.integers(0, 2**20),
    st.one_of(st.none(), st.integers(1, 150)),
    st.one_of(st.none(), st.integers(1, 6)),
    st.one_of(st.none(), st.integers(1, 150)),
)
def test_limits_ends_sums_and_pages(scripted, name, seed, tokens, samples, scored):
    budget = Budget(tokens=tokens, samples=samples, scored_tokens=scored)
    score, peers = (lambda text: zlib.crc32(text.encode()) % 101 / 100), {"b": made_up(seed + 1)}
    engine = scripted(made_up(seed), score, peers=peers)
    result = engine.solve(PROMPT, SMALL[name], budget, seed)
    usage = result.usage
    assert usage.generated <= (tokens or usage.generated)
    assert usage.samples <= (samples or usage.samples)
    assert usage.scored <= (scored or usage.scored)
    assert usage.recomputed == 0
    assert result.stop_reason in ("finished", "budget")
    assert budget != Budget() or result.stop_reason == "finished"
    if name in ("mcts", "collective"):
        for node in walk(result.tree):
            steps = [c for c in node.children if c.end_reason != "rollout"]
            own = result.info["simulations"] if node is result.tree else node.visits
            assert own == sum(c.visits for c in steps) or node.finished
    check_tree(engine, result)


@pytest.fixture(scope="module")
def zoo():
    return Engine.from_pretrained(
        "zoo:arith-small",
        reward="zoo:arith-prm",
        device="cpu",
        policies={"draft": "zoo:arith-draft"},
    )


@pytest.mark.parametrize("name", SMALL)
def test_the_zoo_computes_nothing_twice(zoo, name):
    records = read_problems("zoo:arith-test").records[::100]
    zoo.clear_cache()
    results = zoo.solve_all(records, SMALL[name])
    assert [r.error for r in results] == [None] * len(records)
    assert sum(r.usage.recomputed for r in results) == 0
    for result in results:
        check_tree(zoo, result)


@pytest.mark.parametrize("name", SMALL)
def test_the_same_together_alone_and_reversed(zoo, name):
    records = read_problems("zoo:arith-test").records[::100]

    def trees(results):
        return {
            r.id: [(n.path, n.tokens, n.step_scores, n.stop_reason) for n in walk(r.tree)]
            for r in results
        }

    together = trees(zoo.solve_all(records, SMALL[name], seed=5))
    assert trees(zoo.solve_all(records[::-1], SMALL[name], seed=5)) == together
    alone = zoo.solve_all(records[1:2], SMALL[name], seed=5)
    assert trees(alone) == {alone[0].id: together[alone[0].id]}


@pytest.mark.parametrize("name", SMALL)
def test_a_policy_that_says_nothing_useful(scripted, name):
    """No separator, no answer, no end: it stops at max_tokens and says so."""
    engine = scripted(lambda text: ["x", "y"], 0.5, peers={"b": lambda text: ["y"]})
    result = engine.solve(PROMPT, SMALL[name])
    assert result.error is None
    assert result.answer is None or name == "budget_forcing"  # where it is made to answer
    assert all(b.stop_reason in ("length", "stop") for b in result.branches)
    check_tree(engine, result)
