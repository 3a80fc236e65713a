"""Problem decomposition: solve the parts one after the other, then the whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from ttc_runtime.branch import Branch
from ttc_runtime.sampling import SamplingParams
from ttc_runtime.search import Generate, Score, Search
from ttc_runtime.strategies.base import Outcome, Work, check_count, fill
from ttc_runtime.strategies.voting import vote

SPLIT = "Break this problem into sub-problems, one a line, without solving them.\n\n{problem}\n"
PART = "{problem}\n\nKnown so far:\n{solved}\nNow answer only this: {part}\n"
WHOLE = "{problem}\n\nSolved on the way:\n{solved}\nNow give the final answer.\n"


@dataclass(frozen=True)
class Decomposition:
    """The policy lists sub-problems, answers each with those before it at hand, then the problem.

    samples: completions for each part and for the whole; the majority answers a part. split: a
    prompt with ``{problem}``, whose answer's lines are the parts, or a function of the problem that
    returns them. part, whole: prompts with ``{problem}``, ``{solved}``, and for a part ``{part}``.
    max_parts: more are left out. sampling: how tokens are drawn. A part whose answer cannot be read
    is passed on as "unknown". Zhou et al., "Least-to-Most Prompting Enables Complex Reasoning in
    Large Language Models", 2023. Raises ValueError for other settings.

    >>> Decomposition(samples=4).max_parts
    8
    """

    samples: int = 1
    split: str | Callable[[str], list[str]] = SPLIT
    part: str = PART
    whole: str = WHOLE
    max_parts: int = 8
    sampling: SamplingParams = SamplingParams()
    name: ClassVar[str] = "decomposition"

    def __post_init__(self) -> None:
        check_count("Decomposition", "samples", self.samples)
        check_count("Decomposition", "max_parts", self.max_parts)

    def run(self, search: Search) -> Work:
        problem, solved = search.problem, ""
        parts = yield from self._parts(search)
        answers = []
        for part in parts[: self.max_parts]:
            prompt = fill(self.part, problem=problem, solved=solved, part=part)
            answer = yield from self._answer(search, prompt)
            answers.append(answer)
            solved += f"{part} {answer or 'unknown'}\n"
        prompt = fill(self.whole, problem=problem, solved=solved)
        branches = yield Generate(search.root.ask(prompt).fork(self.samples), self.sampling)
        if search.scored:
            yield Score(branches)
        info = {"parts": parts[: self.max_parts], "answers": answers, "left_out": 0}
        info["left_out"] = max(0, len(parts) - self.max_parts)
        return Outcome(branches, "majority", info)

    def _parts(self, search: Search):
        if not isinstance(self.split, str):
            return list(self.split(search.problem))
        asked = search.root.ask(fill(self.split, problem=search.problem))
        yield Generate([asked], self.sampling)
        lines = [line.strip() for line in asked.text.splitlines()]
        return [line for line in lines if line]

    def _answer(self, search: Search, prompt: str):
        branches: list[Branch] = search.root.ask(prompt).fork(self.samples)
        yield Generate(branches, self.sampling)
        answers = [search.extract(branch.text) for branch in branches]
        chosen = vote(answers, [float("nan")] * len(answers)).majority
        return None if chosen is None else answers[chosen]
