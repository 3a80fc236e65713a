"""Scores in a search: each token run once, twins share, scoring overlaps generation."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ttc_runtime import Budget, Generate, RewardModel, SamplingParams, Score
from ttc_runtime.branch import Branch
from ttc_runtime.scoring import Scorer
from ttc_runtime.search import Search
from ttc_runtime.strategies import Outcome

PROBLEM = "1+2+4=\n"


@pytest.fixture
def scorer(tiny_model):
    reward = RewardModel.from_pretrained(tiny_model("Llama", "ForTokenClassification"))
    reward.model.allocate(2000)
    return Scorer(reward)


def new_search(scorer: Scorer, budget: Budget | None = None) -> Search:
    lane = SimpleNamespace(model=SimpleNamespace(max_positions=10**6, num_weights=0))
    lane.release = lane.release_all = lambda sequences: None
    policy = SimpleNamespace(separator="\n", encode_prompt=lambda text: [1], lane=lane)
    return Search(PROBLEM, policy, scorer, budget or Budget(), 0)


def grow(branch: Branch, *steps: str) -> Branch:
    for step in steps:
        branch.steps.append(step)
        branch.sequence.tokens.append(5)
        branch.step_starts.append(len(branch.sequence.tokens))
    return branch


def score(scorer: Scorer, *branches: Branch) -> list[list[float]]:
    scorer.submit(Score(list(branches)))
    while any(branch in branch.search.running for branch in branches):
        scorer.step(idle=True)
    return [branch.step_scores for branch in branches]


def test_twins_share_tokens_and_scores(scorer) -> None:
    search = new_search(scorer)
    kids = [grow(kid, text) for kid, text in zip(search.root.fork(4), "aaba", strict=True)]
    first = score(scorer, *kids)
    assert first[0] == first[1] == first[3] != first[2]
    prompt = len(scorer.reward.format.prompt(PROBLEM).tokens)
    assert search.reward_ledger.run == prompt + 2 * 2  # a and b, each with its newline
    # A twin goes on where the other, now given up, had its tokens.
    kids[0].free()
    (scores,) = score(scorer, grow(kids[3], "c"))
    assert search.reward_ledger.run == prompt + 3 * 2 and search.reward_ledger.recomputed == 0
    assert scores == pytest.approx(scorer.reward.score(PROBLEM, ["a", "c"]), abs=1e-5)
    # What was scored before is known, whoever asks.
    late = grow(search.root.fork(1)[0], "a", "c")
    assert score(scorer, late) == [scores] and search.reward_ledger.run == prompt + 3 * 2
    search.close()


def test_a_wide_and_long_search_runs_each_token_once(scorer) -> None:
    """64 wide, 12 steps, the best 16 kept and forked to 4: the trie of the texts is what is run."""
    search, prompt = new_search(scorer), len(scorer.reward.format.prompt(PROBLEM).tokens)
    beams, texts = search.root.fork(64), set()
    for depth in range(12):
        for i, beam in enumerate(beams):
            grow(beam, f"{i % 24}+{depth}")
            texts |= {tuple(beam.steps[: k + 1]) for k in range(len(beam.steps))}
        score(scorer, *beams)
        ranked = sorted(beams, key=lambda b: (-b.step_scores[-1], b.path))
        kept, dropped = ranked[:16], ranked[16:]
        children = [kid for beam in kept for kid in beam.fork(4)]
        for beam in dropped:
            beam.free()
        beams = children
    unique = prompt + sum(len(text[-1]) + 1 for text in texts)
    assert search.reward_ledger.recomputed == 0
    assert search.reward_ledger.run == unique
    full = scorer.reward.score(PROBLEM, beams[0].steps)
    assert beams[0].step_scores == pytest.approx(full, abs=1e-5)
    search.close()
    scorer.lane.cache.evict()
    assert scorer.lane.model.pool.num_free == scorer.lane.model.pool.num_pages


def test_a_budget_of_scored_tokens_counts_twins_once(scorer) -> None:
    prompt = len(scorer.reward.format.prompt(PROBLEM).tokens)
    search = new_search(scorer, Budget(scored_tokens=prompt + 2))
    kids = [grow(kid, text) for kid, text in zip(search.root.fork(3), "aab", strict=True)]
    scores = score(scorer, *kids)
    assert scores[0] == scores[1] and scores[0][0] == scores[0][0]
    assert scores[2][0] != scores[2][0] and kids[2].score_error == "budget"
    assert search.budget_hit and search.reward_ledger.run <= prompt + 2
    search.close()


class _Overlapping:
    """Generates steps, scored as they finish or afterwards."""

    name, sampling = "overlapping", SamplingParams(max_tokens=60)

    def __init__(self, overlap: bool) -> None:
        self.overlap = overlap

    def run(self, search):
        branches = search.root.fork(12)
        for _ in range(3):
            yield Generate(branches, self.sampling, until_step=True, score=self.overlap)
            if not self.overlap:
                yield Score(branches)
            assert all(len(b.step_scores) == len(b.steps) for b in branches)
        return Outcome(branches)


def test_scoring_overlaps_generation_and_changes_nothing(make_engine, monkeypatch) -> None:
    engine = make_engine()
    while_growing = []
    run = engine.scorer._read

    def read(nodes, outputs):
        while_growing.append(engine.policy.num_growing if nodes else 0)
        return run(nodes, outputs)

    monkeypatch.setattr(engine.scorer, "_read", read)
    results = []
    for overlap in (True, False):
        while_growing.clear()
        engine.clear_cache()
        results.append(engine.solve(PROBLEM, _Overlapping(overlap), seed=3))
        assert any(while_growing) == overlap
    together, after = results
    assert [b.tokens for b in together.branches] == [b.tokens for b in after.branches]
    assert [b.step_scores for b in together.branches] == [b.step_scores for b in after.branches]
    assert together.usage.scored == after.usage.scored and together.usage.recomputed == 0


def test_generate_with_scores_needs_a_reward_model(make_engine) -> None:
    with pytest.raises(ValueError, match="score=True needs an engine with a reward model"):
        make_engine(reward=False).solve(PROBLEM, _Overlapping(True))


def test_a_problem_the_format_refuses_fails_alone(tiny_model) -> None:
    """The text of one problem is too long for the reward model; the other is solved."""
    short = tiny_model("Llama", "ForTokenClassification", max_position_embeddings=24)
    from ttc_runtime import Engine

    engine = Engine.from_pretrained(
        tiny_model("Llama"), reward=short, kv_memory="32MiB", step_separator="a", device="cpu"
    )
    good, bad = engine.solve_all([PROBLEM, "1" * 30], _Overlapping(True))
    assert good.error is None and "the text has" in bad.error
