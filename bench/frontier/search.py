"""Searches run by the engine, each into a results file that a later call goes on with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ttc_runtime import Engine, SamplingParams
from ttc_runtime.records import read_results
from ttc_runtime.runs import run_to_file
from ttc_runtime.strategies import DVTS, MCTS, BeamSearch, BestOfN, Greedy, Strategy

from .samples import MAX_TOKENS, chosen

_SAMPLING = SamplingParams(max_tokens=MAX_TOKENS)


@dataclass(frozen=True)
class Run:
    """A strategy on a policy.

    strategy: as run. policy: a model of the zoo. reward: whether the reward model is at hand.
    """

    strategy: Strategy
    policy: str = "arith-small"
    reward: bool = True


RUNS: dict[str, Run] = {
    "greedy": Run(Greedy(_SAMPLING), reward=False),
    "best-of-16": Run(BestOfN(16, sampling=_SAMPLING)),
    "beam-16": Run(BeamSearch(16, sampling=_SAMPLING)),
    "DVTS-16": Run(DVTS(16, sampling=_SAMPLING)),
    "MCTS-50": Run(MCTS(50, sampling=_SAMPLING)),
    "MCTS-200": Run(MCTS(200, sampling=_SAMPLING)),
    "large greedy": Run(Greedy(_SAMPLING), "arith-large", reward=False),
}


def run(
    name: str, problems: str, directory: Path, seed: int, limit: int | None, say: Callable
) -> list[dict]:
    """The records of a run, solving the problems that its file does not have yet.

    Args:
        name: a key of `RUNS`.
        problems: name of a problem set of the zoo.
        directory: where the results files are.
        seed: of all randomness.
        limit: only so many problems of each difficulty.
        say: takes a line of text about what is done.
    """
    plan, records = RUNS[name], chosen(problems, limit)
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / f"{problems}_{name.replace(' ', '_')}_{seed}.jsonl"
    models = {"model": f"zoo:{plan.policy}", "reward": "zoo:arith-prm" if plan.reward else None}
    started, solved = time.monotonic(), []
    run_to_file(
        file,
        records,
        plan.strategy,
        lambda: Engine.from_pretrained(**models, device="cpu", max_batch=512),
        seed=seed,
        models=models,
        on_result=solved.append,
    )
    if solved:
        say(f"{name}: {len(solved)} problems in {time.monotonic() - started:.0f} s")
    wanted = {record["id"]: record for record in records}
    found = {r["id"]: r for r in read_results(file) if r["id"] in wanted}
    failed = [r for r in found.values() if "error" in r]
    if failed:
        raise RuntimeError(f"{name}: problem {failed[0]['id']}: {failed[0]['error']}")
    return [{**found[i], "difficulty": wanted[i]["difficulty"]} for i in wanted]
