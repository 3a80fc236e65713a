"""The zoo's models in the runtime, and the demonstration."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console
from rich.progress import Progress
from ttc_runtime import BestOfN, Engine
from ttc_runtime.demo import run_demo
from ttc_runtime.rewards import RewardModel


@pytest.fixture(scope="module")
def engine():
    return Engine.from_pretrained("zoo:arith-small", reward="zoo:arith-prm", kv_memory="64MiB")


def test_demo_prints_every_figure():
    text = io.StringIO()
    run_demo(Console(file=text, width=120), lambda: Progress(disable=True), n=4, limit=6, seed=0)
    for figure in (
        "greedy",
        "self_consistency",
        "best_of_n",
        "accuracy",
        "hard",
        "generated",
        "scored",
        "reused",
        "recomputed",
        "peak unique KV",
        "per second",
    ):
        assert figure in text.getvalue()
    recomputed = next(line for line in text.getvalue().splitlines() if "recomputed" in line)
    assert [cell.strip() for cell in recomputed.split("│")[2:5]] == ["0", "0", "0"]


def test_zoo_steps_are_lines_and_scores_incremental(engine):
    result = engine.solve("17+25*3-8=\n", BestOfN(16))
    assert result.answer is not None
    for branch in result.branches:
        assert "".join(branch.steps) == branch.text
        assert branch.step_scores == pytest.approx(
            engine.reward.score(result.problem, branch.steps), abs=1e-5
        )
    usage = result.usage
    prompt = len(result.problem)
    assert usage.run == prompt + usage.generated - 16 and usage.recomputed == 0
    steps = [[step.rstrip("\n") for step in branch.steps] for branch in result.branches]
    once = {tuple(path[: i + 1]) for path in steps for i in range(len(path))}
    assert usage.scored == prompt + sum(len(path[-1]) + 1 for path in once)


def test_a_decoder_without_its_head_is_loaded_without_a_report():
    from transformers.utils import logging as verbosity

    logger, records = logging.getLogger("transformers"), []
    handler = logging.Handler()
    handler.emit = records.append
    logger.addHandler(handler)
    before = verbosity.get_verbosity()
    try:
        RewardModel.from_pretrained("zoo:arith-prm")
    finally:
        logger.removeHandler(handler)
    assert [record.getMessage() for record in records] == []
    assert verbosity.get_verbosity() == before
