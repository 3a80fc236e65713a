"""Budget forcing: thoughts that end too early go on, thoughts that take too long are cut."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ttc_runtime.branch import Branch
from ttc_runtime.sampling import SamplingParams
from ttc_runtime.search import Generate, Score, Search, Together
from ttc_runtime.strategies.base import SELECTS, Outcome, Work, check_choice, check_count
from ttc_runtime.strategies.thinking import ends_with_mark, without_end


@dataclass(frozen=True)
class BudgetForcing:
    """Thinking of at least `min_thinking` and at most `max_thinking` tokens, then an answer.

    Where thinking ends too early, its end is taken back and `wait` put in its place, at most
    `max_waits` times. Where it is too long, `end` and `answer` are put behind it. n: chains.
    min_thinking, max_thinking: tokens, what was put in included. answer_tokens: most tokens of the
    answer. end: the mark that ends the model's thinking; a model that ends its text instead is
    treated alike. select: how chains vote; with ``weighted`` or ``naive`` they are scored.
    sampling: how tokens are drawn.

    Muennighoff et al., "s1: Simple test-time scaling", 2025; "Wait" and "Final Answer:" as there.
    A fixed number of waits as there is a `min_thinking` as large as `max_thinking`. Raises
    ValueError for other settings.

    >>> BudgetForcing(max_thinking=4000, min_thinking=1000).wait
    'Wait'
    """

    n: int = 1
    min_thinking: int = 0
    max_thinking: int = 1024
    max_waits: int = 4
    answer_tokens: int = 512
    wait: str = "Wait"
    end: str = "</think>"
    answer: str = "\nFinal Answer:"
    select: str = "majority"
    sampling: SamplingParams = SamplingParams()
    name: ClassVar[str] = "budget_forcing"

    def __post_init__(self) -> None:
        check_count("BudgetForcing", "n", self.n)
        check_count("BudgetForcing", "min_thinking", self.min_thinking, 0)
        check_count("BudgetForcing", "max_thinking", self.max_thinking)
        check_count("BudgetForcing", "max_waits", self.max_waits, 0)
        check_count("BudgetForcing", "answer_tokens", self.answer_tokens)
        check_choice("BudgetForcing", "select", self.select, SELECTS)
        if self.min_thinking > self.max_thinking:
            raise ValueError(
                f"BudgetForcing: min_thinking must be at most max_thinking = {self.max_thinking}, "
                f"got {self.min_thinking}"
            )

    def run(self, search: Search) -> Work:
        chains = yield Together([self._chain(branch) for branch in search.root.fork(self.n)])
        branches, notes = [branch for branch, _ in chains], [note for _, note in chains]
        if self.select != "majority":
            yield Score(branches)
        return Outcome(branches, self.select, {"thinking": notes})

    def _chain(self, branch: Branch):
        """Think and answer; returns the branch and what was done to it."""
        stop = (*self.sampling.stop, self.end) if self.end else self.sampling.stop
        thinking = replace(self.sampling, stop=stop, max_tokens=self.max_thinking)
        waits = 0
        while True:
            yield Generate([branch], thinking)
            early = branch.stop_reason in ("stop", "eos") and len(branch.tokens) < self.min_thinking
            if not early or waits == self.max_waits:
                break
            branch = without_end(branch, self.end)
            branch.extend(self.wait)
            waits += 1
        note = {"tokens": len(branch.tokens), "waits": waits, "cut": branch.stop_reason == "length"}
        if branch.stop_reason == "length":
            line = "" if branch.text.endswith("\n") else "\n"
            branch.extend(line + self.end + self.answer)
        elif branch.stop_reason != "stop" or not ends_with_mark(branch, self.end):
            return branch, note  # its text is over, or a limit was reached
        else:
            branch.extend("")
        answering = replace(self.sampling, max_tokens=len(branch.tokens) + self.answer_tokens)
        yield Generate([branch], answering)
        return branch, note
