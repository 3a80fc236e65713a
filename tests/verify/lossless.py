"""The law of a verification rule, by enumeration of all that can happen, in exact fractions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from ttc_kernels.reference.verify_drafts import IID, ONE_HOT, Drafts

Rule = Callable[[Drafts, "Replay"], tuple[list[int], int]]


class Replay:
    """Follows a script of outcomes, and takes the first possible one where the script has ended."""

    def __init__(self, script: list[int]) -> None:
        self.script, self.taken, self.open = script, [], []
        self.probability = Fraction(1)

    def _take(self, probabilities) -> int:
        possible = [i for i, p in enumerate(probabilities) if p > 0]
        at = len(self.taken)
        chosen = self.script[at] if at < len(self.script) else possible[0]
        self.open.append([i for i in possible if i > chosen])
        self.taken.append(chosen)
        self.probability *= probabilities[chosen]
        return chosen

    def coin(self, node, place, number, probabilities) -> int:
        return self._take(probabilities)

    def draw(self, node, weights, residual) -> int:
        total = sum(weights)
        return self._take([w / total for w in weights])


def outcomes(rule: Rule, drafts: Drafts) -> Iterator[tuple[list[int], int, Fraction]]:
    """Every (path, last token) of a rule with its probability."""
    script: list[int] | None = []
    while script is not None:
        replay = Replay(script)
        path, last = rule(drafts, replay)
        yield path, last, replay.probability
        script = None
        for at in reversed(range(len(replay.taken))):
            if replay.open[at]:
                script = [*replay.taken[:at], replay.open[at][0]]
                break


class Model:
    """A random conditional distribution for every prefix, of a few fractions, some of them 0."""

    def __init__(self, vocab_size: int, seed: int, zeros: bool = True) -> None:
        self.vocab_size, self.seed, self.zeros = vocab_size, seed, zeros

    def __call__(self, prefix: tuple[int, ...]) -> list[Fraction]:
        random = np.random.default_rng([self.seed, *(x + 1 for x in prefix)])
        weights = random.integers(0 if self.zeros else 1, 7, self.vocab_size)
        weights[random.integers(self.vocab_size)] += 1
        total = int(weights.sum())
        return [Fraction(int(w), total) for w in weights]


@dataclass(frozen=True)
class Shape:
    """A tree before its tokens are drawn: parents and proposals. One-hot children are the likeliest
    tokens of the draft, siblings different ones."""

    parent: tuple[int, ...]
    proposals: tuple[int, ...]

    @property
    def depth(self) -> int:
        depth = [0] * len(self.parent)
        for v, u in enumerate(self.parent):
            depth[v] = depth[u] + 1 if v else 0
        return max(depth)


def drawn(shape: Shape, p: Model, q: Model) -> Iterator[tuple[Drafts, Fraction]]:
    """Every way in which the drafts can come out."""

    def prefix(tokens: list[int], node: int) -> tuple[int, ...]:
        return () if node == 0 else (*prefix(tokens, shape.parent[node]), tokens[node])

    def extend(tokens: list[int], probability: Fraction):
        v = len(tokens)
        if v == len(shape.parent):
            rows = [prefix(tokens, u) for u in range(v)]
            yield (
                Drafts(shape.parent, tokens, [p(r) for r in rows], [q(r) for r in rows],
                       shape.proposals),
                probability,
            )  # fmt: skip
            return
        u = shape.parent[v]
        row = q(prefix(tokens, u))
        siblings = [tokens[w] for w in range(1, v) if shape.parent[w] == u]
        if shape.proposals[v] == ONE_HOT:
            order = sorted(range(len(row)), key=lambda x: (-row[x], x))
            yield from extend([*tokens, next(x for x in order if x not in siblings)], probability)
            return
        if shape.proposals[v] != IID:
            row = [Fraction(0) if x in siblings else y for x, y in enumerate(row)]
        total = sum(row)
        if total == 0:  # without replacement, from a support that is used up: nothing is drawn
            yield from extend([*tokens, -1], probability)
            return
        for token, weight in enumerate(row):
            if weight:
                yield from extend([*tokens, token], probability * weight / total)

    yield from extend([-1], Fraction(1))


def target_law(p: Model, length: int, prefix: tuple[int, ...] = ()) -> dict:
    if length == 0:
        return {prefix: Fraction(1)}
    law: dict = Counter()
    for token, share in enumerate(p(prefix)):
        if share:
            for sequence, probability in target_law(p, length - 1, (*prefix, token)).items():
                law[sequence] += share * probability
    return dict(law)


def law(rule: Rule, shape: Shape, p: Model, q: Model, change=lambda drafts: drafts) -> dict:
    """The law of the tokens of a pass, extended by the target to one more than the deepest draft.

    change: what is told to the rule instead of what was drawn, for rules that are told wrong.
    """
    length = shape.depth + 1
    found: dict = Counter()
    for drafts, probability in drawn(shape, p, q):
        told = change(drafts)
        for path, last, chance in outcomes(rule, told):
            emitted = (*(told.tokens[v] for v in path[1:]), last)
            for sequence, rest in target_law(p, length - len(emitted), emitted).items():
                found[sequence] += probability * chance * rest
    return dict(found)


def accepted(rule: Rule, shape: Shape, p: Model, q: Model) -> Fraction:
    """Expected number of accepted drafts."""
    return sum(
        (
            probability * chance * (len(path) - 1)
            for drafts, probability in drawn(shape, p, q)
            for path, _, chance in outcomes(rule, drafts)
        ),
        Fraction(0),
    )


def distance(a: dict, b: dict) -> Fraction:
    """Total variation."""
    return sum(abs(a.get(k, 0) - b.get(k, 0)) for k in {*a, *b}) / 2
