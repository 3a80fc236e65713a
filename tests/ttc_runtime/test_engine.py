"""Solving end to end: accounting, determinism, prefix sharing, budgets, bad input."""

from __future__ import annotations

import math
import re
import time

import pytest
import torch
from ttc_runtime import (
    BestOfN,
    Budget,
    Engine,
    Generate,
    Greedy,
    Outcome,
    SamplingParams,
    Score,
    SelfConsistency,
)

SHORT = SamplingParams(max_tokens=40)
PROBLEMS = [f"{a}+{b}*3=\n" for a, b in ((12, 34), (99, 7), (5, 61), (12, 35), (70, 70))]


def tree_of(result):
    return [(b.path, b.tokens, b.logprobs, b.step_scores, b.stop_reason) for b in result.branches]


def free_everything(engine):
    engine.clear_cache()
    for lane in (engine.policy.lane, engine.scorer.lane):
        lane.model.pool.take_copies()
        lane.model.pool.check_integrity()
        assert lane.model.pool.num_free == lane.model.pool.num_pages


def test_best_of_64_computes_every_token_once(make_engine):
    engine = make_engine()
    result = engine.solve(PROBLEMS[0], BestOfN(64, sampling=SHORT))
    usage, prompt = result.usage, len(PROBLEMS[0])
    assert len(result.branches) == usage.samples == 64
    assert usage.generated == sum(len(branch.tokens) for branch in result.branches)
    assert usage.recomputed == usage.reused == 0
    # Unique tokens with KV: the prompt once, and of each branch all but the last token.
    unique = prompt + sum(len(branch.tokens) - 1 for branch in result.branches)
    assert usage.run == usage.peak_kv_tokens == unique
    assert usage.prompt == prompt
    # Of the reward model's: each step after the same steps once, with its separator.
    paths = {tuple(b.steps[: i + 1]) for b in result.branches for i in range(len(b.steps))}
    steps = sum(len(path[-1].strip()) + 1 for path in paths)
    assert usage.scored == usage.peak_reward_kv_tokens == prompt + steps
    policy, reward = engine.policy.lane.model, engine.reward.model
    assert usage.flops == 2 * (policy.num_weights * usage.run + reward.num_weights * usage.scored)
    assert usage.seconds["decode"] > 0 and usage.seconds["score"] > 0
    assert sum(v for k, v in usage.seconds.items() if k != "total") <= usage.seconds["total"]
    free_everything(engine)


def test_incremental_scores_equal_full_ones(make_engine):
    engine = make_engine()
    result = engine.solve(PROBLEMS[0], BestOfN(24, sampling=SamplingParams(max_tokens=160)))
    assert max(len(branch.steps) for branch in result.branches) >= 3
    for branch in result.branches:
        full = engine.reward.score(PROBLEMS[0], branch.steps) if branch.steps else []
        assert branch.step_scores == pytest.approx(full, abs=1e-5)


@pytest.mark.parametrize("strategy", [Greedy(SHORT), BestOfN(6, sampling=SHORT)])
def test_the_same_tree_together_alone_and_in_another_order(make_engine, strategy):
    alone = {}
    for problem in PROBLEMS:
        alone[problem] = tree_of(make_engine().solve(problem, strategy, seed=3))
    for order, arguments in ((PROBLEMS, {}), (PROBLEMS[::-1], {"max_batch": 3, "page_size": 8})):
        for result in make_engine(**arguments).solve_all(order, strategy, seed=3):
            assert tree_of(result) == alone[result.problem]


@pytest.mark.parametrize(
    "architecture, dtype",
    [("Mistral", torch.bfloat16), ("Gemma2", torch.float32), ("Qwen3", torch.bfloat16)],
)
def test_the_same_tree_with_windows_soft_caps_and_bfloat16(
    make_engine, tiny_model, architecture, dtype
):
    model = tiny_model(architecture, dtype=dtype)
    strategy = BestOfN(5, sampling=SHORT)
    together = make_engine(model=model).solve_all(PROBLEMS, strategy)
    alone = make_engine(model=model, page_size=32).solve(PROBLEMS[2], strategy)
    assert tree_of(alone) == tree_of(together[2])


def test_without_determinism_the_answers_are_as_good(make_engine):
    """Other bits, the same distribution: scores and log-probabilities agree to rounding."""
    exact = make_engine().solve(PROBLEMS[0], Greedy(SHORT)).branches[0]
    quick = make_engine(deterministic=False).solve(PROBLEMS[0], Greedy(SHORT)).branches[0]
    assert quick.tokens == exact.tokens
    engine = make_engine(deterministic=False)
    result = engine.solve(PROBLEMS[0], BestOfN(8, sampling=SHORT))
    assert result.usage.recomputed == 0
    for branch in result.branches:
        full = engine.reward.score(PROBLEMS[0], branch.steps) if branch.steps else []
        assert branch.step_scores == pytest.approx(full, abs=1e-5)


def test_chat_templates_are_used_where_there_is_one(make_engine, tiny_model, tmp_path):
    import shutil

    from transformers import AutoTokenizer

    shutil.copytree(tiny_model("Llama"), tmp_path / "chat")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "chat")
    tokenizer.chat_template = "user {{ messages[0]['content'] }} assistant"
    tokenizer.save_pretrained(tmp_path / "chat")
    engine = make_engine(model=tmp_path / "chat", reward=False)
    text = engine.policy.decode(engine.policy.encode_prompt("1+1="))
    assert text == "user 1+1= assistant"


def test_seeds_and_branches_differ(make_engine):
    engine = make_engine()
    first = engine.solve(PROBLEMS[0], SelfConsistency(8, SHORT), seed=0)
    second = engine.solve(PROBLEMS[0], SelfConsistency(8, SHORT), seed=1)
    assert len({tuple(branch.tokens) for branch in first.branches}) >= 5
    assert tree_of(first) != tree_of(second)


def test_greedy_equals_transformers_generate(make_engine, tiny_model):
    from transformers import AutoModelForCausalLM

    for architecture in ("Llama", "Gemma2"):
        directory = tiny_model(architecture)
        engine = make_engine(model=directory, reward=False)
        result = engine.solve(PROBLEMS[0], Greedy(SHORT))
        plain = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager")
        ids = engine.policy.tokenizer(PROBLEMS[0], return_tensors="pt")
        with torch.no_grad():
            out = plain.generate(**ids, do_sample=False, max_new_tokens=40)
        assert result.branches[0].tokens == out[0, ids["input_ids"].shape[1] :].tolist()


def test_logprobs_are_those_of_the_sampled_distribution(make_engine):
    engine = make_engine(reward=False)
    sampling = SamplingParams(temperature=0.7, max_tokens=12)
    branch = engine.solve(PROBLEMS[0], SelfConsistency(1, sampling)).branches[0]
    prompt = engine.policy.encode_prompt(PROBLEMS[0])
    ids = torch.tensor([prompt + branch.tokens])
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(engine.policy.lane.model.config.name_or_path)
    with torch.no_grad():
        logits = plain(ids).logits[0, len(prompt) - 1 : -1]
    expected = torch.log_softmax(logits / 0.7, -1).gather(1, ids[0, len(prompt) :, None])[:, 0]
    assert branch.logprobs == pytest.approx(expected.tolist(), abs=1e-3)


def test_a_shared_prompt_prefix_is_computed_once(make_engine):
    header = "some words in front of every problem and a few more "
    problems = [header + p for p in PROBLEMS]
    engine = make_engine()
    results = engine.solve_all(problems, BestOfN(2, sampling=SHORT))
    assert sum(r.usage.recomputed for r in results) == 0
    # On either model one problem, not always the same, runs the header for all.
    assert sum(r.usage.reused for r in results) >= 2 * len(header) * (len(problems) - 1)
    # What a problem costs does not depend on who ran its prefix.
    assert [r.usage.prompt for r in results] == [len(p) for p in problems]
    alone = make_engine().solve(problems[3], BestOfN(2, sampling=SHORT))
    assert tree_of(alone) == tree_of(results[3])
    again = engine.solve(problems[3], BestOfN(2, sampling=SHORT))
    assert tree_of(again) == tree_of(alone)
    assert again.usage.run == alone.usage.run and alone.usage.reused == 0
    # All of the prompt but the token whose output starts the answer, on both models.
    assert again.usage.reused >= len(problems[3]) - 1 + len(header)
    free_everything(engine)


class StepBeam:
    """Grow step by step, fork the best two, drop the rest: what a strategy of one's own can do."""

    name = "step_beam"
    sampling = SamplingParams(max_tokens=40)

    def run(self, search):
        growing, finished = search.root.fork(4), []
        while growing:
            yield Generate(growing, self.sampling, until_step=True)
            yield Score(growing)
            finished += [branch for branch in growing if branch.finished]
            open_ones = [branch for branch in growing if not branch.finished]
            open_ones.sort(key=lambda branch: -branch.step_scores[-1])
            for branch in open_ones[2:]:
                branch.free()
            growing = [child for branch in open_ones[:2] for child in branch.fork(2)]
        return Outcome(finished, "naive")


def nodes_of(result):
    nodes, stack = [], [result.tree]
    while stack:
        nodes.append(stack.pop())
        stack += nodes[-1].children
    return nodes


def test_forking_mid_text_runs_and_scores_nothing_twice(make_engine):
    engine = make_engine()
    results = [engine.solve(PROBLEMS[0], StepBeam(), seed=seed) for seed in range(12)]
    assert max(len(branch.path) for r in results for branch in r.branches) >= 3
    for result in results:
        usage, nodes = result.usage, nodes_of(result)
        assert usage.recomputed == 0
        # Each token is run by the branch it was appended to; a leaf's last token by nobody.
        leaves = [node for node in nodes if not node.children]
        own = sum(len(n.sequence.tokens) - n.sequence.fork_len for n in nodes)
        assert usage.run == own - len(leaves)
        steps = {
            (b.path[: len(b.path)], i): s
            for b in nodes
            for i, s in enumerate(b.steps)
            if b.step_starts[i + 1] > b.sequence.fork_len
        }
        expected = len(PROBLEMS[0]) + sum(len(step.strip()) + 1 for step in steps.values())
        assert usage.scored == expected
        for branch in result.branches:
            full = engine.reward.score(PROBLEMS[0], branch.steps) if branch.steps else []
            assert branch.step_scores == pytest.approx(full, abs=1e-5)
    together = make_engine().solve_all(PROBLEMS, StepBeam(), seed=1)
    assert tree_of(together[0]) == tree_of(results[1])
    free_everything(engine)


def test_token_budget_ends_the_whole_tree_exactly(make_engine):
    result = make_engine().solve(PROBLEMS[0], BestOfN(8, sampling=SHORT), Budget(tokens=50))
    assert result.usage.generated == 50
    assert result.stop_reason == "budget"
    assert {b.stop_reason for b in result.branches} <= {"budget", "eos"}
    assert len(result.branches) == 8 and any(b.step_scores for b in result.branches)


def test_sample_budget(make_engine):
    result = make_engine().solve(PROBLEMS[0], BestOfN(8, sampling=SHORT), Budget(samples=3))
    assert result.usage.samples == 3 and result.stop_reason == "budget"
    assert [bool(b.tokens) for b in result.branches] == [True] * 3 + [False] * 5


class Endless:
    """Samples until the budget ends it."""

    name = "endless"
    sampling = SHORT

    def run(self, search):
        branches = []
        while not search.budget_hit:
            branches = yield Generate(search.root.fork(4), self.sampling)
        return Outcome(branches)


def test_seconds_budget(make_engine):
    started = time.monotonic()
    result = make_engine().solve(PROBLEMS[0], Endless(), Budget(seconds=0.4))
    assert 0.4 <= time.monotonic() - started < 5
    assert result.stop_reason == "budget" and result.usage.generated > 0


def test_scored_token_budget(make_engine):
    result = make_engine().solve(PROBLEMS[0], BestOfN(8, sampling=SHORT), Budget(scored_tokens=100))
    assert 0 < result.usage.scored <= 100 and result.stop_reason == "budget"
    assert any(s == s for s in result.scores) and any(s != s for s in result.scores)
    assert result.pred_naive is None or result.answer == result.pred_naive


def test_one_bad_problem_does_not_stop_the_others(make_engine):
    engine = make_engine()
    results = engine.solve_all([PROBLEMS[0], "1" * 600, PROBLEMS[1]], BestOfN(2, sampling=SHORT))
    assert [r.error is None for r in results] == [True, False, True]
    assert "600 tokens" in results[1].error and results[1].stop_reason == "error"
    with pytest.raises(ValueError, match="600 tokens"):
        engine.solve("1" * 600, Greedy())
    free_everything(engine)


def test_an_abandoned_stream_gives_its_pages_back(make_engine):
    engine = make_engine()
    stream = engine.stream([{"problem": p} for p in PROBLEMS], BestOfN(4, sampling=SHORT))
    next(stream)
    stream.close()
    free_everything(engine)


def test_results_without_a_reward_model(make_engine):
    engine = make_engine(reward=False)
    result = engine.solve(PROBLEMS[0], SelfConsistency(4, SHORT))
    assert all(math.isnan(s) for s in result.scores) and result.usage.scored == 0
    with pytest.raises(ValueError, match="BestOfN: the engine was made without a reward model"):
        engine.solve(PROBLEMS[0], BestOfN(4, sampling=SHORT))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"speculate": "tree:8"}, "needs a draft model"),
        ({"kv_memory": "lots"}, "kv_memory: expected bytes"),
        ({"kv_memory": 100}, "kv_memory of 100 bytes is less"),
        ({"max_batch": 0}, "max_batch must be >= 1"),
        ({"device": "cuda:0"}, "no CUDA GPU"),
        ({"dtype": "float64"}, "dtype: expected 'auto', float32, .* got 'float64'"),
        ({"dtype": "int8"}, "dtype: expected 'auto', float32, .* got 'int8'"),
    ],
)
def test_bad_engine_arguments(tiny_model, arguments, message):
    with pytest.raises(ValueError, match=message):
        Engine.from_pretrained(tiny_model("Llama"), **arguments)


def test_bad_problems(make_engine):
    engine = make_engine(reward=False)
    with pytest.raises(ValueError, match="entry 1 needs a non-empty text"):
        engine.solve_all(["1+1=\n", ""], Greedy(SHORT))


class _Ends:
    """A strategy that ends at once, with what it was given."""

    name, sampling = "ends", SHORT

    def __init__(self, make):
        self.make = make

    def run(self, search):
        yield Generate([search.root], SHORT)
        return self.make(search.root)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda root: None, "strategy: expected its run to return an Outcome, got NoneType"),
        (lambda root: Outcome([root], "best"), "Outcome: select must be .* got 'best'"),
        (lambda root: Outcome([root], scores=[]), "each of the 1 branches, got 0"),
    ],
)
def test_a_strategy_that_ends_badly_fails_its_problem(make_engine, make, message):
    engine = make_engine()
    results = engine.solve_all(PROBLEMS[:2], _Ends(make))
    assert all(re.search(message, result.error) for result in results)
    free_everything(engine)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"strategy": "greedy"}, "strategy: expected an object .* got 'greedy'"),
        ({"strategy": Greedy}, "strategy: expected an object"),
        ({"budget": 500}, "budget: expected a Budget, got 500"),
        ({"problems": "1+1=\n"}, "problems: expected a list of them, got one str"),
    ],
)
def test_arguments_of_the_wrong_kind(make_engine, change, message):
    arguments = {"problems": PROBLEMS[:1], "strategy": Greedy(SHORT)} | change
    with pytest.raises(TypeError, match=message):
        make_engine(reward=False).solve_all(**arguments)


def test_settings_of_the_wrong_kind():
    for make, message in (
        (lambda: Budget(tokens=1.5), "Budget: tokens must be an integer"),
        (lambda: SamplingParams(temperature="hot"), "temperature must be a number, got 'hot'"),
        (lambda: SamplingParams(stop=5), "stop must be non-empty strings, got 5"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
