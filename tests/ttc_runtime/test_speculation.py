"""Speculative decoding: the text is the text without it, for every strategy, draft and limit."""

from __future__ import annotations

import pytest
import torch
from every_strategy import SMALL
from test_engine import PROBLEMS, StepBeam, free_everything, nodes_of
from ttc_runtime import (
    BestOfN,
    Budget,
    Engine,
    Generate,
    Greedy,
    Outcome,
    SamplingParams,
    Speculation,
)
from ttc_runtime.speculation import Draft

SHORT = SamplingParams(max_tokens=40)
KINDS = ["none", "chain:1", "chain:5", "tree:3", "tree:14", "ngram:2", "ngram:5"]


def text_of(result):
    """All that was generated, branch by branch, and why each branch stopped."""
    assert result.error is None
    return [(b.path, b.tokens, b.steps, b.step_scores, b.stop_reason) for b in nodes_of(result)]


@pytest.mark.parametrize("name", [*SMALL, "step_beam"])
def test_the_text_is_independent_of_the_drafts(speculating, tiny_model, name: str) -> None:
    strategy = SMALL.get(name, StepBeam())
    several = name in ("collective", "step_speculation")
    others = {"b": tiny_model("Llama", intermediate_size=160)} if several else {}
    kinds = KINDS if name == "step_beam" else KINDS[::2]
    want = None
    for kind in kinds:
        engine = speculating(kind, policies=others)
        found = [text_of(r) for r in engine.solve_all(PROBLEMS[:2], strategy, seed=3)]
        want = found if want is None else want
        assert found == want, kind
        free_everything(engine)


def test_every_policy_speculates(speculating, tiny_model) -> None:
    """With two policies, works that run beside each other, and little to spend."""
    others = {"b": tiny_model("Llama", intermediate_size=160)}
    want = None
    for kind in ("none", "chain:4", "tree:9"):
        engine = speculating(kind, same=True, policies=others)
        result = engine.solve(PROBLEMS[0], SMALL["collective"], Budget(tokens=60))
        want = want or (text_of(result), result.usage.generated)
        assert (text_of(result), result.usage.generated) == want
        if kind != "none":
            assert all(p.speculator._lengths for p in (engine.policy, engine.policy.peers["b"]))
            assert result.usage.accepted > 0
        free_everything(engine)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_a_draft_that_is_always_right(speculating, temperature: float) -> None:
    sampling = SamplingParams(temperature=temperature, top_p=0.9, max_tokens=41)
    strategy = BestOfN(3, sampling=sampling)
    want = speculating("none").solve(PROBLEMS[0], strategy)
    engine = speculating("chain:4", same=True)
    engine.policy.speculator.settings = Speculation("chain", 4, adaptive=False)
    got = engine.solve(PROBLEMS[0], strategy)
    assert text_of(got) == text_of(want)
    usage = got.usage
    # The first token comes with the prompt's pass, then five from every verification. Drafts that
    # no more could be taken from were not made.
    whole = all(len(b.tokens) == 41 for b in got.branches)
    if whole:
        assert usage.accepted == usage.drafted == usage.passes_saved == 3 * 32
        assert usage.acceptance_length == 5
    assert usage.accepted == usage.generated - 3 - usage.verifications
    assert usage.recomputed == 0 and want.usage.drafted == 0
    assert usage.seconds["draft"] > 0 and usage.flops > want.usage.flops
    free_everything(engine)


def test_trees_find_more_than_chains(speculating) -> None:
    found = {}
    for kind in ("chain:4", "tree:12"):
        engine = speculating(kind)
        results = engine.solve_all(PROBLEMS, BestOfN(4, sampling=SHORT))
        found[kind] = sum(r.usage.accepted for r in results) / sum(
            r.usage.verifications for r in results
        )
    assert found["tree:12"] > found["chain:4"] > 0


def test_trees_in_one_row_move_what_they_keep(speculating) -> None:
    """Without determinism a tree is one row of `draft_parents`, and `commit_kv` moves its path."""
    want = [text_of(r) for r in speculating("none").solve_all(PROBLEMS, BestOfN(3, sampling=SHORT))]
    engine = speculating("tree:12", same=True, deterministic=False)
    results = engine.solve_all(PROBLEMS, BestOfN(3, sampling=SHORT))
    assert sum(r.usage.accepted for r in results) > 0
    assert [text_of(r)[-1][1] for r in results] == [text[-1][1] for text in want]
    free_everything(engine)


def test_bfloat16_stays_exact(tiny_model, make_engine) -> None:
    model = tiny_model("Qwen3", dtype=torch.bfloat16)
    texts = [
        [text_of(r) for r in make_engine(model=model, draft=draft, speculate=kind).solve_all(
            PROBLEMS, BestOfN(4, sampling=SHORT))]
        for draft, kind in ((None, "none"), (model, "chain:3"), (model, "tree:10"))
    ]  # fmt: skip
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize("limit", [1, 7, 50, 83])
def test_token_budgets(speculating, limit: int) -> None:
    for strategy in (BestOfN(5, sampling=SHORT), StepBeam()):
        want = speculating("none").solve(PROBLEMS[0], strategy, Budget(tokens=limit))
        for kind, same in (("chain:6", True), ("tree:12", False), ("ngram:5", False)):
            engine = speculating(kind, same)
            got = engine.solve(PROBLEMS[0], strategy, Budget(tokens=limit))
            assert got.usage.generated == want.usage.generated <= limit
            assert text_of(got) == text_of(want), kind


def test_stop_strings_and_lengths(speculating) -> None:
    sampling = SamplingParams(max_tokens=23, stop=("b", "12", "a\n"))
    strategy = BestOfN(8, sampling=sampling)
    want = text_of(speculating("none").solve(PROBLEMS[1], strategy))
    assert {stop for *_, stop in want} > {"stop"}
    for kind, same in (("chain:6", True), ("tree:12", True), ("ngram:5", False)):
        assert text_of(speculating(kind, same).solve(PROBLEMS[1], strategy)) == want


class Edited:
    """Grows a little, is given text, goes on, forks in the middle, and asks something else."""

    name, sampling = "edited", SamplingParams(max_tokens=60)

    def run(self, search):
        branches = yield Generate(search.root.fork(3), self.sampling, new_tokens=9)
        for i, branch in enumerate(branches):
            branch.extend("12+3"[: i + 1])
        yield Generate(branches, self.sampling, new_tokens=7)
        middle = branches[0].fork(2, at=4)
        probe = branches[1].ask("1+1=\n")
        bias = lambda branch: ([5], 2.0)  # noqa: E731
        yield Generate([*middle, probe], self.sampling, new_tokens=6)
        yield Generate(middle, self.sampling, new_tokens=5, bias=bias)
        branches[2].fork(1)
        yield Generate([*branches, *middle, *branches[2].children], self.sampling)
        return Outcome([*branches, *middle])


def test_edits_forks_probes_and_bias(speculating) -> None:
    want = text_of(speculating("none").solve(PROBLEMS[0], Edited()))
    for kind, same in (("chain:6", True), ("tree:12", True), ("tree:6", False), ("ngram:5", False)):
        engine = speculating(kind, same)
        assert text_of(engine.solve(PROBLEMS[0], Edited())) == want
        free_everything(engine)


def test_a_context_that_ends(speculating) -> None:
    strategy = BestOfN(3, sampling=SamplingParams(max_tokens=600))
    policy = {"max_position_embeddings": 48}
    want = text_of(speculating("none", policy=policy).solve(PROBLEMS[0], strategy))
    assert "context" in {stop for *_, stop in want}
    for kind in ("chain:6", "tree:12", "ngram:5"):
        engine = speculating(kind, policy=policy)
        assert text_of(engine.solve(PROBLEMS[0], strategy)) == want


def test_drafts_shorten_where_they_are_refused(speculating, tiny_model, make_engine) -> None:
    wrong = tiny_model("Llama", num_hidden_layers=1, initializer_range=0.5, hidden_size=64)
    engine = make_engine(draft=wrong, speculate="chain:12", reward=False)
    result = engine.solve(PROBLEMS[0], Greedy(SamplingParams(temperature=0, max_tokens=200)))
    usage = result.usage
    assert usage.drafted < 6 * usage.verifications


def test_paths_of_a_draft() -> None:
    draft = Draft([5, 6, 7, 8, 9], [-1, 0, 0, -1, 2])
    assert draft.depths() == [1, 2, 2, 1, 3] and not draft.is_chain
    assert draft.paths() == [[0, 1], [3], [0, 2, 4]]
    assert Draft().paths() == [] and Draft().is_chain and Draft([1, 2], [-1, 0]).is_chain


@pytest.mark.parametrize(
    ("text", "message"),
    [("best:3", "kind must be one of"), ("chain:0", "length must be"), ("chain:99", "length must"),
     ("tree:", "expected a text such as"), ("8", "expected a text")],
)  # fmt: skip
def test_settings_are_checked(text: str, message: str) -> None:
    with pytest.raises(ValueError, match="Speculation: " + message):
        Speculation.parse(text)


def test_a_draft_of_another_vocabulary_is_refused(tiny_model) -> None:
    with pytest.raises(ValueError, match="draft model must have the policy's vocabulary"):
        Engine.from_pretrained(tiny_model("Llama"), draft="zoo:arith-draft", device="cpu")
