"""Every strategy on the zoo: nothing is computed twice, and little memory only costs work."""

from __future__ import annotations

import pytest
from test_engine import free_everything
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
NEEDS_MORE = {
    "compute_optimal",
    "collective",
    "step_speculation",
    "retrieval",
}  # table, policies, tool
OWN_PROMPTS = {"decomposition"}  # what these share is counted for each, so the peak is too high
BY_TIMING = {"plan_compare"}  # its generators fork one branch side by side, in order of arrival


def engine(pages=None):
    model = ("zoo:arith-small", "zoo:arith-prm")
    made = Engine.from_pretrained(*model, device="cpu", page_size=PAGE, kv_memory="256MiB")
    if pages is None:
        return made
    bytes_ = pages * (made.policy.lane.model.page_bytes + made.reward.model.page_bytes)
    return Engine.from_pretrained(*model, device="cpu", page_size=PAGE, kv_memory=bytes_)


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


@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - NEEDS_MORE - BY_TIMING))
def test_a_quarter_of_the_memory(name):
    strategy = make_strategy(name, sampling=SHORT, **{**with_n(name), **SETTINGS.get(name, {})})
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
    if peak > pages * PAGE and name not in OWN_PROMPTS:
        assert result.usage.recomputed > 0
    free_everything(tight)
