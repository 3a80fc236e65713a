"""How hard a problem is, from its first samples."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any

from ttc_runtime.answers import group
from ttc_runtime.branch import Branch
from ttc_runtime.sampling import SamplingParams
from ttc_runtime.search import Generate, Score, Search
from ttc_runtime.strategies.base import Outcome, Strategy
from ttc_runtime.strategies.best_of_n import BestOfN
from ttc_runtime.strategies.self_consistency import SelfConsistency
from ttc_runtime.strategies.values import Confidence, RewardValue

ESTIMATES = ("reward", "agreement", "confidence")


def estimate_difficulty(
    search: Search, samples: int, sampling: SamplingParams, by: str
) -> Generator[Any, Any, tuple[float, list[Branch]]]:
    """A difficulty in [0, 1] and the completions it was told from.

    samples: completions. by: ``reward``, 1 less their mean reward; ``agreement``, 1 less the share
    of the most frequent answer; ``confidence``, 1 less the policy's mean probability of a token.
    Where there is a reward model the completions are scored whatever is asked.
    """
    branches = yield Generate(search.root.fork(samples), sampling)
    if by == "reward":
        values = yield from RewardValue()(search, branches, sampling)
    elif by == "confidence":
        values = yield from Confidence()(search, branches, sampling)
    else:
        counts = Counter(group([search.extract(branch.text) for branch in branches]))
        del counts[-1]  # those without an answer agree with nothing
        values = [max(counts.values(), default=0) / samples]
    if search.scored and by != "reward":
        yield Score(branches)
    known = [v for v in values if not math.isnan(v)]
    return 1 - sum(known) / len(known) if known else 1.0, branches


def look_and_search(
    search: Search,
    samples: int,
    estimate: str,
    select: str | None,
    sampling: SamplingParams,
    choose: Callable[[float], tuple[str, Strategy]],
) -> Generator[Any, Any, Outcome]:
    """Estimate a problem's difficulty, then run the strategy that it calls for.

    samples, estimate, sampling: of the estimate, see `estimate_difficulty`. select: how the answer
    is chosen among its completions and what the strategy finds, None for the strategy's own way.
    choose: the strategy for a difficulty, and its name for the record. Best-of-N and
    self-consistency draw only what they lack: the completions of the estimate are their first.
    """
    difficulty, drawn = yield from estimate_difficulty(search, samples, sampling, estimate)
    difficulty = round(difficulty, 6)  # as in records, from which tables are made
    name, strategy = choose(difficulty)
    info = {"difficulty": difficulty, "route": name}
    if isinstance(strategy, (BestOfN, SelfConsistency)) and strategy.sampling == sampling:
        if strategy.n <= samples:
            own = strategy.select if isinstance(strategy, BestOfN) else "majority"
            return Outcome(drawn, select or own, info)
        strategy = replace(strategy, n=strategy.n - samples)
    found = yield from strategy.run(search)
    if search.scored:  # to stand beside the other candidates
        yield Score([branch for branch in found.branches if not branch.freed])
    return Outcome([*drawn, *found.branches], select or found.select, {**info, **found.info})
