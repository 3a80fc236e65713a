"""Choosing one answer from many completions."""

from __future__ import annotations

from dataclasses import dataclass

from ttc_runtime.answers import group


@dataclass(frozen=True)
class Votes:
    """The places of the chosen completions, None where none has an answer.

    majority: one with the most frequent answer. weighted: one with the answer of the largest sum of
    scores. naive: the one with the best score. Ties go to the completion that comes first; weighted
    and naive fall back on the majority where nothing was scored.
    """

    majority: int | None
    weighted: int | None
    naive: int | None


def vote(answers: list[str | None], scores: list[float]) -> Votes:
    """Choose by count, by summed score and by best score, over groups of equivalent answers.

    answers: one a completion, None where it states none; these never win. scores: one a completion,
    NaN where it was not scored. Raises ValueError if the lengths differ.

    >>> vote(["7", "3", "7.0"], [0.4, 0.7, 0.2])
    Votes(majority=0, weighted=1, naive=1)
    """
    if len(answers) != len(scores):
        raise ValueError(f"vote: {len(answers)} answers but {len(scores)} scores")
    groups = group(answers)
    members = [i for i, g in enumerate(groups) if g >= 0]
    counts: dict[int, float] = {}
    weights: dict[int, float] = {}
    first: dict[int, int] = {}
    for i in members:
        first.setdefault(groups[i], i)
        counts[groups[i]] = counts.get(groups[i], 0) + 1
        if scores[i] == scores[i]:
            weights[groups[i]] = weights.get(groups[i], 0.0) + scores[i]
    if not members:
        return Votes(None, None, None)
    majority = first[max(counts, key=lambda g: (counts[g], -first[g]))]
    if not weights:
        return Votes(majority, majority, majority)
    weighted = first[max(weights, key=lambda g: (weights[g], -first[g]))]
    scored = [i for i in members if scores[i] == scores[i]]
    return Votes(majority, weighted, max(scored, key=lambda i: (scores[i], -i)))
