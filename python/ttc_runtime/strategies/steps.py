"""Searching step by step: grow, value, select, again."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from ttc_runtime.branch import Branch
from ttc_runtime.sampling import SamplingParams
from ttc_runtime.search import Generate, Search
from ttc_runtime.strategies.selection import Selection, seeded, spawn
from ttc_runtime.strategies.values import Value

Stop = Callable[[Search, Branch], bool]
"""Whether a branch has come so far that it is to be completed without further selection."""


def states_answer(search: Search, branch: Branch) -> bool:
    """Whether a branch's last step declares an answer, such as a ``\\boxed{}``."""
    return bool(branch.steps) and search.states_answer(branch.steps[-1])


def grow_steps(
    branches: list[Branch],
    sampling: SamplingParams,
    step_tokens: int | None = None,
    stop: Stop = states_answer,
    policy: str = "",
) -> Generator[Any, Any, None]:
    """Grow branches by a step each; those that `stop` then picks are completed.

    Without that, a policy that closes its answer with a separator would have all its answers
    branched once more, to draw nothing but the end of text. policy: see `Generate`.
    """
    yield Generate(branches, sampling, True, step_tokens, policy=policy)
    ending = [b for b in branches if not b.finished and stop(b.search, b)]
    if ending:
        yield Generate(ending, sampling, policy=policy)


def step_search(
    search: Search,
    places: int,
    sampling: SamplingParams,
    value: Value,
    select: Selection,
    *,
    max_steps: int = 40,
    step_tokens: int | None = None,
    stop: Stop = states_answer,
    reason: str = "pruned",
) -> Generator[Any, Any, list[Branch]]:
    """Grow `places` branches from the prompt step by step, keeping and forking what `select` says.

    A finished branch keeps its place and leaves the rest to the others. max_steps: after so many,
    what is left is completed without further selection. step_tokens: longest step; without it a
    policy that never closes one goes on to max_tokens. stop: see `grow_steps`. reason: of dropped
    branches. Returns the
    finished branches, each of them valued.
    """
    rng = seeded(search, "selection")
    growing, finished, parents = search.root.fork(places), list[Branch](), list[Branch]()
    for step in range(max_steps + 1):
        if step < max_steps:
            yield from grow_steps(growing, sampling, step_tokens, stop)
        else:
            yield Generate(growing, sampling)
        values = yield from value(search, growing, sampling)
        for parent in parents:
            parent.free()  # its children have taken over what they share
        finished += [b for b in growing if b.finished]
        unfinished = [(b, v) for b, v in zip(growing, values, strict=True) if not b.finished]
        if not unfinished:
            break
        growing = [b for b, _ in unfinished]
        counts = select([v for _, v in unfinished], places - len(finished), rng)
        parents = [b for b, count in zip(growing, counts, strict=True) if count > 1]
        growing = spawn(growing, counts, reason)
    return finished
