"""Speculation in any company, from static buffers, with little memory, and after a kill."""

from __future__ import annotations

import json

import pytest
from test_engine import PROBLEMS, StepBeam, free_everything
from test_graphs import CalledAgain, with_static_buffers
from test_memory import memory
from test_speculation import SHORT, text_of
from ttc_runtime import BestOfN, SamplingParams
from ttc_runtime.runs import run_to_file

KINDS = ["chain:4", "tree:9", "ngram:4"]


@pytest.mark.parametrize("kind", KINDS)
def test_preempted_and_resumed(speculating, kind: str) -> None:
    """Pages for half of a problem: its branches wait, and run again what they lost."""
    roomy = speculating("none")
    strategy = BestOfN(6, sampling=SamplingParams(temperature=0.4, max_tokens=60))
    want = [text_of(r) for r in roomy.solve_all(PROBLEMS, strategy)]
    policies = [] if kind.startswith("ngram") else [roomy.policy.lane.model.page_bytes]
    tight = speculating(kind, kv_memory=memory(roomy, 16) + 16 * sum(policies))
    results = tight.solve_all(PROBLEMS, strategy)
    assert [text_of(r) for r in results] == want
    assert sum(r.usage.recomputed for r in results) > 0
    assert sum(r.usage.accepted for r in results) > 0
    free_everything(tight)


@pytest.mark.parametrize("kind", KINDS)
def test_in_any_company(speculating, kind: str) -> None:
    engine = speculating(kind, max_batch=9)
    strategy = StepBeam() if kind.startswith("tree") else BestOfN(4, sampling=SHORT)
    together = [text_of(r) for r in engine.solve_all(PROBLEMS[:3], strategy, seed=2)]
    turned = engine.solve_all(PROBLEMS[2::-1], strategy, seed=2)
    assert [text_of(r) for r in turned][::-1] == together
    alone = speculating(kind).solve(PROBLEMS[2], strategy, seed=2)
    assert text_of(alone) == together[2]


@pytest.mark.parametrize("kind", KINDS)
def test_from_static_buffers(speculating, kind: str) -> None:
    """The passes that a GPU replays from graphs run from static buffers, the draft model's too."""
    strategy = BestOfN(5, sampling=SHORT)
    want = [text_of(r) for r in speculating("none").solve_all(PROBLEMS[:2], strategy)]
    engine = with_static_buffers(speculating(kind))
    drafter, drafting = engine.policy.speculator.drafter, {}
    if kind != "ngram:4":
        drafter.model.runner._capture = CalledAgain
    assert [text_of(r) for r in engine.solve_all(PROBLEMS[:2], strategy)] == want
    if kind == "chain:4":  # whose guesses are single tokens; the policy only verifies
        drafting = drafter.model.runner.report()
    if kind != "tree:9":  # with trees no two passes have one shape
        assert "graph" in (engine.graph_report()["policy"] | drafting).values()


def test_a_run_is_taken_up_with_other_drafts(speculating, tmp_path) -> None:
    """Killed with one drafter and taken up with another, the results are those without any."""
    problems = [{"id": f"p{i}", "problem": text} for i, text in enumerate(PROBLEMS)]
    strategy = BestOfN(3, sampling=SHORT)

    def completions(path):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return [(r["id"], r["completions"], r["scores"], r["pred"]) for r in lines]

    def stop(_):
        raise KeyboardInterrupt

    run_to_file(tmp_path / "none", problems, strategy, lambda: speculating("none"))
    for kind in KINDS:
        with pytest.raises(KeyboardInterrupt):
            engine = speculating(kind, max_batch=3)
            run_to_file(tmp_path / "some", problems, strategy, lambda: engine, on_result=stop)  # noqa: B023
    assert 0 < len(completions(tmp_path / "some")) < len(problems)
    run_to_file(tmp_path / "some", problems, strategy, lambda: speculating("chain:7"))
    assert completions(tmp_path / "some") == completions(tmp_path / "none")
