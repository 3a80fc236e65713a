"""Searches run by the engine, each into a results file that a later call goes on with."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ttc_runtime import Engine, SamplingParams
from ttc_runtime.calibration import trial_of
from ttc_runtime.records import read_results
from ttc_runtime.runs import run_to_file
from ttc_runtime.strategies import (
    DVTS,
    MCTS,
    Adaptive,
    BeamSearch,
    BestOfN,
    BudgetForcing,
    Greedy,
    SpeculativeRejection,
    Strategy,
)

from .samples import MAX_TOKENS, chosen

_SAMPLING = SamplingParams(max_tokens=MAX_TOKENS)
_GREEDY = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
# The zoo has no words to think with: the mark of the answer line ends the thinking, and a new line
# stands for "Wait".
_FORCED = {"end": "#", "answer": "", "wait": "\n", "answer_tokens": 8, "sampling": _GREEDY}
_LINE = 12  # tokens of a step of the zoo, about
_TOGETHER = 40  # problems: the trees of so many fit into memory
CAPS = (6, 12, 24, 48, 96)
WAITS = (1, 2, 4)


@dataclass(frozen=True)
class Run:
    """A strategy on a policy.

    strategy: as run. policy: a model of the zoo. reward: whether the reward model is at hand.
    limit: only so many problems of each difficulty, where all would take too long.
    """

    strategy: Strategy
    policy: str = "arith-small"
    reward: bool = True
    limit: int | None = None


RUNS: dict[str, Run] = {
    "greedy": Run(Greedy(_SAMPLING), reward=False),
    "best-of-16": Run(BestOfN(16, sampling=_SAMPLING)),
    "beam-16": Run(BeamSearch(16, sampling=_SAMPLING)),
    "DVTS-16": Run(DVTS(16, sampling=_SAMPLING)),
    "MCTS-50": Run(MCTS(50, sampling=_SAMPLING)),
    "MCTS-200": Run(MCTS(200, sampling=_SAMPLING), limit=40),
    "large greedy": Run(Greedy(_SAMPLING), "arith-large", reward=False),
    **{
        f"at most {cap}": Run(BudgetForcing(max_thinking=cap, **_FORCED), reward=False)
        for cap in CAPS
    },
    **{
        f"{waits} waits": Run(
            BudgetForcing(min_thinking=150, max_thinking=150, max_waits=waits, **_FORCED),
            reward=False,
        )
        for waits in WAITS
    },
    "rejection-16": Run(SpeculativeRejection(16, segment=_LINE, sampling=_SAMPLING)),
    "rejection-64": Run(SpeculativeRejection(64, segment=_LINE, sampling=_SAMPLING)),
}

HARD: dict[str, Run] = {
    **{name: RUNS[name] for name in ("best-of-16", "beam-16", "DVTS-16")},
    "MCTS-50": Run(MCTS(50, sampling=_SAMPLING), limit=120),
}
"""Run on many more hard problems."""

PROBE = 2  # completions that tell the difficulty
_LABELS: dict[str, Strategy] = {
    "best-of-2": BestOfN(2),  # the probe itself
    "best-of-4": BestOfN(4),
    "best-of-16": BestOfN(16),
    "rejection-16": SpeculativeRejection(16, segment=_LINE),
    "beam-16": BeamSearch(16),
    "DVTS-8": DVTS(8),
    "DVTS-16": DVTS(16),
    "DVTS-32": DVTS(32),
}
TRIALS = {label: trial_of(s, PROBE, sampling=_SAMPLING) for label, s in _LABELS.items()}
"""What `ComputeOptimal` chooses among, each run as it would be once it is chosen."""
ROUTED: dict[str, Run] = {
    "routed": Run(
        Adaptive(
            PROBE,
            bounds=(0.3, 0.6),
            routes=("best_of_n:n=4", f"speculative_rejection:segment={_LINE}", "dvts"),
            select=None,
            sampling=_SAMPLING,
        )
    ),
}
_ALL = {**RUNS, **ROUTED, **{f"trial {label}": Run(t) for label, t in TRIALS.items()}}


def run(
    name: str, problems: str, directory: Path, seed: int, limit: int | None, say: Callable
) -> list[dict]:
    """The records of a run, solving the problems that its file does not have yet.

    Args:
        name: a key of `RUNS`, `HARD` or `ROUTED`, or ``trial`` and one of `TRIALS`.
        problems: as for `chosen`.
        directory: where the results files are.
        seed: of all randomness.
        limit: only so many problems of each difficulty.
        say: takes a line of text about what is done.
    """
    plan = HARD[name] if problems == "more-hard" else _ALL[name]
    records = chosen(problems, min(filter(None, (limit, plan.limit)), default=None))
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / f"{problems}_{name.replace(' ', '_').replace(',', '')}_{seed}.jsonl"
    models = {"model": f"zoo:{plan.policy}", "reward": "zoo:arith-prm" if plan.reward else None}
    started, solved = time.monotonic(), []

    @functools.cache
    def engine() -> Engine:
        return Engine.from_pretrained(**models, device="cpu", max_batch=512, kv_memory="6GiB")

    done = {r["id"] for r in read_results(file)} if file.is_file() else set()
    missing = [record for record in records if record["id"] not in done]
    parts = [missing[i : i + _TOGETHER] for i in range(0, len(missing), _TOGETHER)]
    for part in [*parts, records]:  # in the end all of them, to be put in order
        run_to_file(
            file, part, plan.strategy, engine, seed=seed, models=models, on_result=solved.append
        )
    if solved:
        say(f"{name}: {len(solved)} problems in {time.monotonic() - started:.0f} s")
    wanted = {record["id"]: record for record in records}
    found = {r["id"]: r for r in read_results(file) if r["id"] in wanted}
    failed = [r for r in found.values() if "error" in r]
    if failed:
        raise RuntimeError(f"{name}: problem {failed[0]['id']}: {failed[0]['error']}")
    return [{**found[i], "difficulty": wanted[i]["difficulty"]} for i in wanted]
