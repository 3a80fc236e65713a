"""MCTS: the rules by hand, a golden tree, the sums, and the cost of the books."""

from __future__ import annotations

import math
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import PROMPT, check_tree, texts
from scripted import walk as branches_below
from ttc_runtime.strategies import MCTS
from ttc_runtime.strategies.montecarlo import Node, Tree, path, puct, uct, walk

STEPS = {
    "": ["a\n", "b\n"],
    "a\n": ["#1", "#2"],
    "b\n": ["c\n", "#3"],
    "b\nc\n": ["#4", "#5"],
}
SCORES = {
    "a": 0.6, "b": 0.5, "a\n#1": 0.1, "a\n#2": 0.2,
    "b\nc": 0.7, "b\n#3": 0.3, "b\nc\n#4": 0.9, "b\nc\n#5": 0.4,
}  # fmt: skip


def test_the_rules_by_hand():
    """4 visits of the parent, 2 of the child bringing 1.0, a first value of 0.5: Q = 1.5 / 3."""
    parent = Node(None)
    child, sibling = Node(parent, value=0.5, prior=0.3), Node(parent, prior=0.1)
    parent.children, parent.visits = [child, sibling], 4
    child.visits, child.total = 2, 1.0
    assert uct(parent, child, 1.4) == pytest.approx(0.5 + 1.4 * math.sqrt(math.log(5) / 3))
    assert puct(parent, child, 1.4) == pytest.approx(0.5 + 1.4 * 0.75 * math.sqrt(5) / 4)
    child.flying = 1  # virtual loss: one more visit that brought nothing
    assert puct(parent, child, 1.4) == pytest.approx(1.5 / 4 + 1.4 * 0.75 * math.sqrt(5) / 5)


def test_a_golden_tree_without_exploration(scripted):
    """Exploration 0 follows Q alone.

    1: a (0.6 > 0.5), then #2: brings 0.2, so Q(a) = (0.6 + 0.2) / 2 = 0.4.
    2: b (0.5 > 0.4), c, #4: brings 0.9, so Q(b) = 0.7 and Q(c) = 0.8.
    3: b, c, #5 (#4 is closed): brings 0.4, so Q(b) = (0.5 + 0.9 + 0.4) / 3 = 0.6.
    """
    engine = scripted(STEPS, SCORES)
    result = engine.solve(PROMPT, MCTS(3, 2, exploration=0, parallel=1, select="naive"))
    seen = {b.text: (b.visits, round(b.value, 6)) for b in branches_below(result.tree)}
    assert seen[""][0] == 3 and result.info == {"simulations": 3}
    assert seen["a\n"] == (1, 0.4) and seen["b\n"] == (2, 0.6)
    assert seen["a\n#1"] == (0, 0.1) and seen["a\n#2"] == (1, 0.2)
    assert seen["b\nc\n"] == (2, pytest.approx((0.7 + 0.9 + 0.4) / 3)) and seen["b\n#3"][0] == 0
    assert texts(result) == ["a\n#1", "a\n#2", "b\nc\n#4", "b\nc\n#5", "b\n#3"]
    assert result.answer == "4" and result.usage.recomputed == 0
    check_tree(engine, result)


def test_virtual_loss_by_hand(scripted):
    """Two walks at once, exploration 0: the first goes to a (0.6), which counts as lost until it is
    back, 0.6 / 2; so the second goes to b (0.5). They bring 0.2 (#2) and, by way of c, 0.9 (#4)."""
    engine = scripted(STEPS, SCORES)
    result = engine.solve(PROMPT, MCTS(2, 2, exploration=0, parallel=2))
    seen = {b.text: (b.visits, round(b.value, 6)) for b in branches_below(result.tree)}
    assert seen["a\n"] == (1, 0.4) and seen["b\n"] == (1, 0.7) and seen["b\nc\n"] == (1, 0.8)
    assert seen[""][0] == 2
    check_tree(engine, result)


@pytest.mark.parametrize("rule, value", [("uct", "reward"), ("puct", "rollout")])
@pytest.mark.parametrize("parallel", [1, 3])
def test_it_stops_when_all_is_explored(scripted, rule, value, parallel):
    engine = scripted(STEPS, SCORES)
    result = engine.solve(PROMPT, MCTS(50, 2, rule, 1.0, value, parallel))
    assert result.info["simulations"] == 5 and "b\nc\n#4" in texts(result)
    check_tree(engine, result)


def test_rollouts_are_candidates(scripted):
    engine = scripted(STEPS, SCORES)
    result = engine.solve(PROMPT, MCTS(1, 2, value="rollout", exploration=0, parallel=1))
    # The rollout of a takes #1 (0.1), that of b takes c and #4 (0.9).
    rolled = [b for b in branches_below(result.tree) if b.end_reason == "rollout"]
    assert {b.text for b in rolled} >= {"a\n#1", "b\nc\n#4"} <= set(texts(result))
    assert next(b for b in branches_below(result.tree) if b.text == "b\n").visits == 1
    check_tree(engine, result)


def random_search(rng, simulations, width, rule, parallel, depth):
    """Simulations on a made-up tree whose nodes are final with a chance of 0.1, or at a depth."""
    tree, flying = Tree(rule, 1.25), []
    while True:
        room = simulations - tree.root.visits - len(flying)
        started = [tree.start() for _ in range(min(parallel - len(flying), room))]
        flying += [node for node in started if node is not None]
        if not flying:
            break
        still = []
        for node in flying:
            while node is not None and node.children:
                following = tree.step(node)
                if following is None:
                    tree.finish(node, math.nan)
                node = following
            if node is not None and node.final:
                tree.finish(node, node.value)
            elif node is not None:
                still.append(node)
        flying = still
        for node in dict.fromkeys(flying):
            deep = sum(1 for _ in path(node)) >= depth
            tree.expand(
                node,
                [
                    Node(node, None, rng.random(), rng.random() + 0.1, deep or rng.random() < 0.1)
                    for _ in range(width)
                ],
            )
    return tree


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(1, 60),
    st.integers(1, 4),
    st.sampled_from([uct, puct]),
    st.integers(1, 9),
    st.integers(1, 6),
)
def test_visits_add_up(seed, simulations, width, rule, parallel, depth):
    tree = random_search(random.Random(seed), simulations, width, rule, parallel, depth)
    for node in walk(tree.root):
        below = sum(child.visits for child in node.children)
        assert node.visits == below + (node.final and node.visits)
        assert node.total == pytest.approx(
            sum(child.total for child in node.children)
            + (node.visits * node.value if node.final else 0)
        )
        assert node.flying == 0 and node.visits <= (1 if node.final else simulations)
        if node.children:
            assert node.closed == all(child.closed for child in node.children)
    assert tree.root.visits == simulations or tree.root.closed


def test_the_books_cost_no_more_in_a_large_tree():
    """At 100,000 nodes a simulation takes at most a few times what it takes at 1,000: the tree is
    log(n) deep, and no step looks at more than one path and its siblings."""
    tree, costs = Tree(puct, 1.25), {}
    rng, nodes = random.Random(0), 1
    for mark in (1_000, 100_000):
        times = []
        while nodes < mark:
            started = time.perf_counter()
            node = tree.start()
            while node.children:
                node = tree.step(node)
            tree.expand(node, [Node(node, None, rng.random()) for _ in range(4)])
            tree.finish(node, node.value)
            times.append(time.perf_counter() - started)
            nodes += 4
        costs[mark] = sorted(times[-200:])[100]
    assert nodes >= 100_000
    # log4(100000) / log4(1000) = 1.7; a scan of the tree would be 100 times.
    assert costs[100_000] < 8 * costs[1_000], costs
    print(f"\nMCTS books, microseconds a simulation: {[round(1e6 * c) for c in costs.values()]}")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"simulations": 0}, "MCTS: simulations must be an integer >= 1, got 0"),
        ({"width": 1.5}, "MCTS: width must be an integer >= 1, got 1.5"),
        ({"rule": "ucb"}, "MCTS: rule must be 'uct' or 'puct', got 'ucb'"),
        ({"exploration": -1}, r"MCTS: exploration must be a number in \[0, 1000000"),
        ({"value": "oracle"}, "MCTS: value must be 'reward' or 'rollout', got 'oracle'"),
    ],
)
def test_wrong_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        MCTS(**arguments)


def test_needs_a_reward_model(scripted):
    with pytest.raises(ValueError, match="made without a reward model"):
        scripted(STEPS).solve(PROMPT, MCTS(4))
