"""Results depend neither on what else is in the batch nor on how fast its parts are."""

from __future__ import annotations

import random
import zlib

import pytest
from every_strategy import SMALL
from test_engine import StepBeam
from ttc_runtime import Budget
from ttc_runtime.branch import branch_seed

STRATEGIES = {**SMALL, "step_beam": StepBeam()}
NEIGHBOURS = ("seconds", "reused")
HUNDRED = ("best_of_n", "beam", "mcts")


def made_up(text):
    """A policy that draws letters, closes steps, answers and ends as a checksum decides."""
    roll = zlib.crc32(f"{text[-12:]}/{len(text)}".encode())
    letters = ["a", "b", "+", "=", "7", "\n", "#"]
    found = [letters[(roll >> 4 * i) % len(letters)] for i in range(1 + roll % 3)]
    return [] if roll % 13 == 0 else list(dict.fromkeys(found))


def other(text):
    return made_up(text + "!")


def score(text):
    return zlib.crc32(text.encode()) % 101 / 100


@pytest.fixture
def make(scripted, monkeypatch):
    """Factory of scripted engines whose branches have their real seeds."""

    def engine(**arguments):
        made = scripted(made_up, score, peers={"b": other}, **arguments)
        made.scorer.lane.model.row_block = 64  # so that scores wait for more, as on real models
        return made

    monkeypatch.setattr("ttc_runtime.branch.branch_seed", branch_seed)
    return engine


def problems(count):
    """Some with a long prefix in common, in an order that mixes them."""
    return [f"{'a prefix that is shared ' * (i % 3 == 0)}{i * 37 % count}?" for i in range(count)]


def records(results):
    """By problem; only the clock may differ."""
    found = {}
    for result in results:
        assert result.error is None
        record = result.record()
        del record["id"], record["usage"]["seconds"]
        found[result.problem] = record
    return found


@pytest.mark.parametrize("name", STRATEGIES)
def test_together_in_halves_and_in_reverse(make, name):
    asked, strategy = problems(100 if name in HUNDRED else 16), STRATEGIES[name]
    half = len(asked) // 2
    together = records(make().solve_all(asked, strategy, seed=4))
    engine = make()
    halves = [engine.solve_all(part, strategy, seed=4) for part in (asked[:half], asked[half:])]
    assert records([*halves[0], *halves[1]]) == together
    assert records(make(max_batch=9).solve_all(asked[::-1], strategy, seed=4)) == together


BUDGETS = {
    "none": Budget(),
    "tokens": Budget(tokens=61),
    "few tokens": Budget(tokens=5),
    "scored": Budget(scored_tokens=80),
    "samples": Budget(samples=3),
    "all": Budget(tokens=45, samples=5, scored_tokens=60),
}


def delayed(engine, rng):
    """The engine, with its parts now and then slower: scores late, prompts late, steps left out."""

    def slow(user):
        step = user.step

        def maybe(**arguments):
            return True if rng.random() < 0.4 else step(**arguments) or user.lane.late

        user.step, user.lane.late = maybe, False

    def slow_prepare(lane):
        prepare = lane.prepare

        def maybe(sequence, *, sampled):
            lane.late = sampled and sequence.kv is None and rng.random() < 0.4
            return None if lane.late else prepare(sequence, sampled=sampled)

        lane.prepare = maybe

    for policy in (engine.policy, *engine.policy.peers.values()):
        slow(policy)
        slow_prepare(policy.lane)
    slow(engine.scorer)
    return engine


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", STRATEGIES)
def test_it_does_not_matter_what_is_slow(make, name, budget):
    asked = problems(3)
    expected = records(make().solve_all(asked, STRATEGIES[name], BUDGETS[budget]))
    for seed in range(2):
        engine = delayed(make(), random.Random(seed))
        results = engine.solve_all(asked, STRATEGIES[name], BUDGETS[budget])
        assert records(results) == expected
