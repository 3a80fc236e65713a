"""Every strategy: nothing is computed twice, and little memory only costs work."""

from __future__ import annotations

import pytest
from every_strategy import SMALL
from scripted import walk
from test_batch_independence import make, problems, records  # noqa: F401
from ttc_runtime import Engine, SamplingParams
from ttc_runtime.records import read_problems
from ttc_runtime.strategies import STRATEGIES, make_strategy

SHORT = SamplingParams(max_tokens=100)
PAGE = 8
# Smaller or fitting the zoo: its answer line begins with "#", its steps are lines.
SETTINGS = {
    "mcts": {"simulations": 12},
    "budget_forcing": {"n": 4, "end": "#", "answer": "", "wait": "\n", "min_thinking": 60},
    "adaptive": {"bounds": (0.05, 0.1, 0.9)},
}
# These need a table, policies or a tool, or are large on their own.
SMALL_ONES = {"compute_optimal", "collective", "retrieval", "step_speculation", "plan_compare"}


def engine(pages=None):
    models = {"model": "zoo:arith-small", "reward": "zoo:arith-prm"}
    options = {**models, "device": "cpu", "page_size": PAGE, "policies": {"b": "zoo:arith-draft"}}
    made = Engine.from_pretrained(**options, kv_memory="256MiB")
    if pages is None:
        return made
    bytes_ = sum(lane.model.page_bytes for lane in lanes(made))
    return Engine.from_pretrained(**options, kv_memory=pages * bytes_)


def lanes(made):
    users = (made.policy, *made.policy.peers.values(), made.scorer)
    return [user.lane for user in users]


def free_everything(made):
    made.clear_cache()
    for lane in lanes(made):
        lane.model.run_copies()
        lane.model.pool.check_integrity()
        assert lane.model.pool.num_free == lane.model.pool.num_pages


def with_n(name):
    """Sixteen completions, where the strategy has that setting."""
    return {"n": 16} if "n" in STRATEGIES[name].__dataclass_fields__ else {}


def every_branch(result):
    found, stack = [], [result.tree]
    while stack:
        branch = stack.pop()
        tokens = branch.sequence.tokens
        found.append((branch.path, tokens, branch.step_scores, branch.stop_reason))
        stack += branch.children
    return sorted(found, key=lambda node: node[0])


def strategy_of(name):
    if name in SMALL_ONES:
        return SMALL[name]
    return make_strategy(name, sampling=SHORT, **{**with_n(name), **SETTINGS.get(name, {})})


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_quarter_of_the_memory_on_the_zoo(name):
    strategy = strategy_of(name)
    problem = read_problems("zoo:arith-test").records[210]["problem"]
    roomy = engine()
    expected = roomy.solve(problem, strategy)
    assert expected.usage.recomputed == 0
    free_everything(roomy)
    nodes = every_branch(expected)
    longest = max(len(tokens) for _, tokens, _, _ in nodes)
    peak = max(expected.usage.peak_kv_tokens, expected.usage.peak_reward_kv_tokens)
    # A quarter of the tree, but its longest branch must fit, and the page it is copied from.
    pages = max(peak // 4, longest + 2 * PAGE) // PAGE + 1
    tight = engine(pages)
    result = tight.solve(problem, strategy)
    assert every_branch(result) == nodes and result.answer == expected.answer
    # What plan_compare loses is finished and read no more.
    if peak > pages * PAGE * (1 + len(tight.policy.peers)) and name != "plan_compare":
        assert result.usage.recomputed > 0
    assert within(result, pages * PAGE)
    free_everything(tight)


def within(result, tokens):
    """Whether no model held more than it has memory for."""
    search = result.tree.search
    return all(x.peak <= tokens for x in (*search.ledgers.values(), search.reward_ledger))


@pytest.mark.parametrize("name", SMALL)
def test_a_quarter_of_the_memory_for_six_problems(make, name):  # noqa: F811
    asked, strategy = problems(6), SMALL[name]
    expected = make().solve_all(asked, strategy, seed=4)
    assert sum(result.usage.recomputed for result in expected) == 0
    nodes = [node for result in expected for node in walk(result.tree)]
    longest = max(len(node.sequence.tokens) for node in nodes)
    peak = max(x.peak for r in expected for x in r.tree.search.ledgers.values())
    pages = max(peak // 4, longest + 2 * 4) // 4 + 1
    tight = make(num_pages=pages)
    results = tight.solve_all(asked, strategy, seed=4)
    assert all(within(result, 4 * pages) for result in results)
    wanted, found = records(expected), records(results)
    for record in (*wanted.values(), *found.values()):
        del record["usage"]["recomputed"]
        if name == "step_speculation":
            # Of texts that it gave up, fewer count as scored anew: they count as recomputed.
            for key in ("scored", "flops", "reward_flops"):
                del record["usage"][key]
    assert found == wanted
    free_everything(tight)
