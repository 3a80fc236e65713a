"""Retrieval in the middle of a thought: the policy asks, a tool answers, the thought goes on."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from ttc_runtime.branch import Branch
from ttc_runtime.sampling import SamplingParams
from ttc_runtime.search import Call, Generate, Score, Search, Together
from ttc_runtime.strategies.base import SELECTS, Outcome, Work, check_choice, check_count, fill

CONDENSE = (
    "Question: {query}\n\nDocuments:\n{found}\n\nWhat in them answers the question? "
    "Be brief; say so if nothing does.\n"
)


@dataclass(frozen=True)
class Retrieval:
    """Chains that may ask a tool; what it finds is put into the branch, which then goes on.

    tool: function of a query that returns text, or its name as ``module:function``; it runs on a
    thread of its own. n: chains. begin,
    end: marks around a query. before, after: marks around what was found. max_calls: of a chain;
    later queries are answered with `refused`. seconds: to wait for the tool. failed: put in where
    the tool raises or does not return in time; the reason is recorded. condense: prompt with
    ``{query}`` and ``{found}`` by which the policy first shortens what was found, or empty to take
    it as it is. select: how chains vote; with ``weighted`` or ``naive`` they are scored. sampling:
    how tokens are drawn. Li et al., "Search-o1: Agentic Search-Enhanced Large Reasoning Models",
    2025, whose marks and step of condensing these are. Raises ValueError for other settings.

    >>> Retrieval(tool=str.upper).max_calls
    10
    """

    tool: Callable[[str], str] | str
    n: int = 1
    begin: str = "<|begin_search_query|>"
    end: str = "<|end_search_query|>"
    before: str = "<|begin_search_result|>"
    after: str = "<|end_search_result|>"
    max_calls: int = 10
    seconds: float = 30.0
    failed: str = "The search failed."
    refused: str = "No more searches are allowed."
    condense: str = CONDENSE
    select: str = "majority"
    sampling: SamplingParams = SamplingParams()
    name: ClassVar[str] = "retrieval"

    def __post_init__(self) -> None:
        if isinstance(self.tool, str):
            load_function(self.tool)
        elif not callable(self.tool):
            raise ValueError(f"Retrieval: tool must be a function of a query, got {self.tool!r}")
        check_count("Retrieval", "n", self.n)
        check_count("Retrieval", "max_calls", self.max_calls, 0)
        check_choice("Retrieval", "select", self.select, SELECTS)
        for mark in (self.begin, self.end):
            if not isinstance(mark, str) or not mark:
                raise ValueError(f"Retrieval: begin and end must be non-empty texts, got {mark!r}")

    def run(self, search: Search) -> Work:
        chains = yield Together([self._chain(search, b) for b in search.root.fork(self.n)])
        branches = [branch for branch, _ in chains]
        if self.select != "majority":
            yield Score(branches)
        return Outcome(branches, self.select, {"calls": [calls for _, calls in chains]})

    def _chain(self, search: Search, branch: Branch):
        """Think, ask, read, and on; returns the branch and a note for each call."""
        asking = replace(self.sampling, stop=(*self.sampling.stop, self.end))
        calls: list[dict] = []
        while True:
            yield Generate([branch], asking)
            asked = branch.text.rpartition(self.begin)[2]
            if branch.stop_reason != "stop" or not asked.rstrip().endswith(self.end):
                return branch, calls
            note = {"query": asked.partition(self.end)[0].strip()}
            calls.append(note)
            if len(calls) > self.max_calls + 1:
                return branch, calls  # it asks again and again, whatever it is told
            found = self.refused
            if len(calls) <= self.max_calls:
                found = yield from self._look_up(search, note)
            branch.extend(f"{self.before}{found}{self.after}")

    def _look_up(self, search: Search, note: dict):
        tool = load_function(self.tool) if isinstance(self.tool, str) else self.tool
        call = yield Call(tool, note["query"], seconds=self.seconds)
        if call.error is None and not isinstance(call.value, str):
            call.error = f"TypeError: the tool must return text, got {type(call.value).__name__}"
        if call.error is not None:
            note["error"] = call.error
            return self.failed
        if not self.condense:
            return call.value
        prompt = fill(self.condense, query=note["query"], found=call.value)
        try:
            short = search.root.ask(prompt).fork(1)[0]
        except ValueError as error:  # more was found than the policy can read
            note["error"] = str(error)
            return self.failed
        yield Generate([short], self.sampling)
        return short.text.strip()


def load_function(name: str) -> Callable[[str], str]:
    """The function that ``module:function`` names. Raises ValueError if there is none.

    >>> load_function("textwrap:dedent")("  x")
    'x'
    """
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"Retrieval: tool must be module:function, got {name!r}: {error}"
        ) from None
