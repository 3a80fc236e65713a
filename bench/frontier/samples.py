"""Samples and their step scores, drawn once and used by every part that needs only samples."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ttc_runtime import Engine, Generate, Outcome, SamplingParams, Score
from ttc_runtime.records import read_problems
from ttc_runtime.zoo import arith

SAMPLES = 256
MAX_TOKENS = 160
BANDS = ("easy", "medium", "hard")


@dataclass(frozen=True)
class Drawn:
    """The samples of one problem, in the order in which they were asked for.

    id, difficulty: of the problem. correct: bool[n]. answers: an answer or None for each. tokens:
    int[n], generated. scores: the reward model's score of every step of each sample.
    """

    id: object
    difficulty: str
    correct: np.ndarray
    answers: list[str | None]
    tokens: np.ndarray
    scores: list[list[float]]


class SampleOnce:
    """`n` completions, as best-of-N would draw them; equal texts are scored once."""

    name = "samples"

    def __init__(self, n: int) -> None:
        self.n, self.sampling = n, SamplingParams(max_tokens=MAX_TOKENS)

    def run(self, search):
        branches = yield Generate(search.root.fork(self.n), self.sampling)
        first = {tuple(branch.tokens): branch for branch in reversed(branches)}
        yield Score(list(first.values()))
        for branch in branches:
            branch.step_scores = first[tuple(branch.tokens)].step_scores
        return Outcome(branches, "naive")


def draw(problems: str, file: Path, seed: int, limit: int | None) -> None:
    """Draw the samples of a problem set that the file does not have yet.

    Args:
        problems: name of a problem set of the zoo.
        file: JSON lines, one a problem; made if missing, gone on with if there.
        seed: of all randomness.
        limit: only so many problems of each difficulty.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
    whole = [line for line in lines if line.endswith(b"\n")]
    done = {json.loads(line)["id"] for line in whole}
    todo = [record for record in chosen(problems, limit) if record["id"] not in done]
    if not todo:
        return
    file.write_bytes(b"".join(whole))
    engine = Engine.from_pretrained(
        "zoo:arith-small", reward="zoo:arith-prm", device="cpu", max_batch=1024
    )
    with file.open("a") as out:
        for result in engine.stream(todo, SampleOnce(SAMPLES), seed=seed):
            line = {
                "id": result.id,
                "seed": seed,
                "answers": [arith.extract_answer(branch.text) for branch in result.branches],
                "tokens": [len(branch.tokens) for branch in result.branches],
                "scores": [[round(s, 6) for s in b.step_scores] for b in result.branches],
                "seconds": result.usage.seconds,
            }
            out.write(json.dumps(line) + "\n")
            out.flush()


def more_hard(count: int = 300) -> list[dict]:
    """Hard problems of the test split that `arith-test` does not have.

    The split is a property of a problem's text, so none of them was trained on, whatever the seed.

    >>> more_hard(3)[0]["difficulty"]
    'hard'
    """
    known = {record["problem"] for record in read_problems("zoo:arith-test").records}
    drawn = [p for p in arith.problem_set("test", count, seed=1) if p.difficulty == "hard"]
    fresh = [p for p in drawn if p.text not in known]
    return [
        {"id": f"hard-{i:03d}", "problem": p.text, "answer": p.answer, "difficulty": "hard"}
        for i, p in enumerate(fresh)
    ]


def chosen(problems: str, limit: int | None) -> list[dict]:
    """The problems of a set of the zoo or of ``more-hard``; with a limit so many of each band."""
    records = more_hard() if problems == "more-hard" else read_problems(f"zoo:{problems}").records
    if limit is None:
        return records
    return [r for band in BANDS for r in [r for r in records if r["difficulty"] == band][:limit]]


def load(problems: str, file: Path, seed: int, limit: int | None) -> list[Drawn]:
    """The samples of a problem set. Raises ValueError for a file of another seed."""
    lines = {}
    for line in file.read_text().splitlines():
        record = json.loads(line)
        if record["seed"] != seed:
            raise ValueError(f"{file}: drawn with seed {record['seed']}, not {seed}; remove it")
        lines[record["id"]] = record
    found = []
    for problem in chosen(problems, limit):
        line = lines[problem["id"]]
        answers = [None if a is None else str(int(a)) for a in line["answers"]]
        right = [answer == problem["answer"] for answer in answers]
        found.append(
            Drawn(
                problem["id"],
                problem["difficulty"],
                np.array(right),
                answers,
                np.array(line["tokens"]),
                line["scores"],
            )
        )
    return found
