"""Certainty probes: a chain ends when the answer it would give now no longer changes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ttc_runtime.answers import equivalent
from ttc_runtime.branch import Branch
from ttc_runtime.sampling import SamplingParams
from ttc_runtime.search import Generate, Score, Search, Together
from ttc_runtime.strategies.base import SELECTS, Outcome, Work, check_choice, check_count

SUFFIX = "... Oh, I suddenly got the answer to the whole problem, **Final Answer**\n\n\\[ \\boxed{"
DOUBTS = ("wait", "hold", "but", "okay", "no", "hmm")


@dataclass(frozen=True)
class CertaintyProbes:
    """Every `chunk` tokens a fork of the chain is made to answer; `agree` equal answers end it.

    n: chains. chunk: tokens between probes. agree: equal answers in a row that are enough. suffix:
    what makes a fork answer. stop: ends its answer. probe_tokens: most tokens of it. doubts: words
    that make an answer not count. select: how chains vote; with ``weighted`` or ``naive`` they are
    scored. sampling: of the chain; probes are drawn at temperature 0.6 and top_p 0.95. Forks are
    thrown away and cost the tokens of suffix and answer. Fu et al., "Efficiently Serving LLM
    Reasoning Programs with Certaindex", 2024; the defaults are its "mid". Raises ValueError for
    other settings.

    >>> CertaintyProbes().agree
    3
    """

    n: int = 1
    chunk: int = 64
    agree: int = 3
    suffix: str = SUFFIX
    stop: str = "}"
    probe_tokens: int = 20
    doubts: tuple[str, ...] = DOUBTS
    select: str = "majority"
    sampling: SamplingParams = SamplingParams()
    name: ClassVar[str] = "certainty"

    def __post_init__(self) -> None:
        for setting in ("n", "chunk", "agree", "probe_tokens"):
            check_count("CertaintyProbes", setting, getattr(self, setting))
        check_choice("CertaintyProbes", "select", self.select, SELECTS)
        if not self.suffix or not self.stop:
            raise ValueError("CertaintyProbes: suffix and stop must be non-empty texts")

    def run(self, search: Search) -> Work:
        roots = search.root.fork(self.n)
        chains = yield Together([self._chain(search, branch) for branch in roots])
        branches = [branch for branch, _ in chains]
        if self.select != "majority":
            yield Score(branches)
        return Outcome(branches, self.select, {"probes": [probes for _, probes in chains]})

    def _chain(self, search: Search, branch: Branch):
        """Think until certain; returns the branch that answers and the probes' answers."""
        answers: list[str | None] = []
        while True:
            yield Generate([branch], self.sampling, new_tokens=self.chunk)
            if branch.finished:
                return branch, answers
            probe = branch.fork(1)[0]
            probe.extend(self.suffix)
            length = len(probe.tokens) + self.probe_tokens
            drawn = replace(
                self.sampling, temperature=0.6, top_p=0.95, max_tokens=length, stop=(self.stop,)
            )
            yield Generate([probe], drawn)
            answers.append(self._answer(search, probe, len(branch.text)))
            last = answers[-self.agree :]
            if len(last) == self.agree and all(equivalent(last[0], a) for a in last):
                branch.free("certain")
                return probe, answers
            probe.free("probe")

    def _answer(self, search: Search, probe: Branch, thought: int) -> str | None:
        said = probe.text[thought + len(self.suffix) :].lower().split()
        doubtful = any(word.strip(".,!?") in self.doubts for word in said)
        ended = probe.stop_reason in ("stop", "eos")
        return search.extract(probe.text) if ended and not doubtful else None
