"""Verification rules as their papers state them, on explicit distributions.

Every rule asks a `Chance` for its coins and draws, and only adds, multiplies, divides and compares
numbers. So the same code runs in fp64 with the kernels' random numbers, and in exact fractions over
all outcomes, which is how the rules are proved lossless.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from .verify import ACCEPT, RESIDUAL, TARGET, random_words, token_noise

ONE_HOT, IID, WITHOUT_REPLACEMENT = 0, 1, 2
"""How a draft was chosen among its siblings, as in `DraftDistribution.proposal`."""

_Row = Sequence[Any]


@dataclass
class Drafts:
    """The draft nodes of one request.

    parent, tokens: of each node, node 0 the root. p: the target's distribution after each node. q:
    what the children of each node were drawn from, None where they were chosen. proposals: of each
    node.

    >>> Drafts([-1, 0], [0, 1], [[0.5, 0.5]] * 2).children(0)
    [1]
    """

    parent: Sequence[int]
    tokens: Sequence[int]
    p: Sequence[_Row]
    q: Sequence[_Row | None] = ()
    proposals: Sequence[int] = field(default=())

    def __post_init__(self) -> None:
        self.q = self.q or [None] * len(self.parent)
        self.proposals = self.proposals or [ONE_HOT] * len(self.parent)

    def children(self, node: int) -> list[int]:
        """Those that could be accepted: not padding, not drawn from nothing, not drawn twice where
        that cannot be."""
        found: list[int] = []
        for v, u in enumerate(self.parent):
            if u != node or not 0 <= self.tokens[v] < len(self.p[node]):
                continue
            drawn = self.proposals[v]
            same = [w for w in found if self.tokens[w] == self.tokens[v]]
            twice = any(self.proposals[w] == WITHOUT_REPLACEMENT for w in same)
            if drawn != ONE_HOT and self.q[node] is None:
                continue
            if not (drawn == WITHOUT_REPLACEMENT and twice):
                found.append(v)
        return found

    def depth(self, node: int) -> int:
        return 0 if node == 0 else 1 + self.depth(self.parent[node])

    def path(self, node: int) -> list[int]:
        return [0] if node == 0 else [*self.path(self.parent[node]), node]

    def proposal_row(self, node: int, rejected: Sequence[int] = ()) -> _Row:
        """The distribution that a node was drawn from, given its rejected earlier siblings."""
        size = len(self.p[0])
        if self.proposals[node] == ONE_HOT:
            return [int(x == self.tokens[node]) for x in range(size)]
        q = self.q[self.parent[node]]
        assert q is not None
        if self.proposals[node] == IID:
            return q
        gone = {self.tokens[v] for v in rejected if self.proposals[v] == WITHOUT_REPLACEMENT}
        return normalized([0 * y if x in gone else y for x, y in enumerate(q)])


class Chance(Protocol):
    """Where a rule's randomness comes from."""

    def coin(self, node: int, place: int, number: int, probabilities: _Row) -> int:
        """An outcome, by its index. node: whose coin it is. place: the node whose following
        position it is tossed at, number: which one of that position."""
        ...

    def draw(self, node: int, weights: _Row, residual: bool) -> int:
        """A token after a node, from weights that need not sum to 1."""
        ...


def normalized(weights: _Row) -> list:
    """Weights that sum to 1; all zero stays all zero.

    >>> normalized([1, 3])
    [0.25, 0.75]
    """
    total = sum(weights)
    return [w / total for w in weights] if total > 0 else list(weights)


def _remainder(p: _Row, q: _Row) -> list:
    return [max(x - y, 0 * x) for x, y in zip(p, q, strict=True)]


def _at_most_one(numerator, q):
    """min(numerator / q, 1), where nothing that was never drawn is refused."""
    if q == 0:
        return numerator * 0 + (1 if numerator > 0 else 0)
    return min(numerator / q, numerator * 0 + 1)


def sampled(drafts: Drafts, chance: Chance) -> tuple[list[int], int]:
    """Draw the target's token at every node; go on where it was drafted."""
    node = 0
    while True:
        token = chance.draw(node, drafts.p[node], False)
        following = [v for v in drafts.children(node) if drafts.tokens[v] == token]
        if not following:
            return drafts.path(node), token
        node = following[0]


def greedy(drafts: Drafts) -> tuple[list[int], int]:
    """The likeliest token at every node, the lower index on a tie."""
    node = 0
    while True:
        token = int(np.argmax(drafts.p[node]))
        following = [v for v in drafts.children(node) if drafts.tokens[v] == token]
        if not following:
            return drafts.path(node), token
        node = following[0]


def target_only(drafts: Drafts, chance: Chance) -> tuple[list[int], int]:
    """One coin at each node chooses among its distinct children, or none of them."""
    node = 0
    while True:
        first: dict[int, int] = {}
        for v in drafts.children(node):
            first.setdefault(drafts.tokens[v], v)
        shares = [drafts.p[node][token] for token in first]
        rest = [0 * y if x in first else y for x, y in enumerate(drafts.p[node])]
        chosen = chance.coin(node, node, 0, [*shares, sum(rest)])
        if chosen == len(first):
            return drafts.path(node), chance.draw(node, rest, bool(first))
        node = [*first.values()][chosen]


def rejection(drafts: Drafts, chance: Chance) -> tuple[list[int], int]:
    """Siblings in turn, each against what the earlier ones left; the token rule on a chain."""
    node = 0
    while True:
        p: _Row = drafts.p[node]
        rejected: list[int] = []
        for number, v in enumerate(drafts.children(node)):
            q = drafts.proposal_row(v, rejected)
            accept = _at_most_one(p[drafts.tokens[v]], q[drafts.tokens[v]])
            if chance.coin(v, node, number, [accept, 1 - accept]) == 0:
                node = v
                break
            p = normalized(_remainder(p, q))
            rejected.append(v)
        else:
            return drafts.path(node), chance.draw(node, p, bool(rejected))


def block(drafts: Drafts, chance: Chance) -> tuple[list[int], int]:
    """The longest prefix of a chain whose own test passes."""
    length = 0
    while drafts.children(length):
        length += 1
    ratio: Any = drafts.p[0][0] * 0 + 1
    accepted, kept = 0, ratio
    for i in range(1, length + 1):
        token, q = drafts.tokens[i], drafts.proposal_row(i)
        ratio = _at_most_one(ratio * drafts.p[i - 1][token], q[token])
        test = ratio
        if i < length:
            z = sum(_remainder([ratio * x for x in drafts.p[i]], drafts.proposal_row(i + 1)))
            test = z / (z + 1 - ratio) if z + 1 - ratio > 0 else ratio * 0 + 1
        if chance.coin(i, 0, i - 1, [test, 1 - test]) == 0:
            accepted, kept = i, ratio
    if accepted == length:
        return drafts.path(accepted), chance.draw(accepted, drafts.p[accepted], False)
    weights = _remainder([kept * x for x in drafts.p[accepted]], drafts.proposal_row(accepted + 1))
    return drafts.path(accepted), chance.draw(accepted, weights, True)


def traversal(drafts: Drafts, chance: Chance) -> tuple[list[int], int]:
    """From the leaves up: a leaf that fails is deleted and leaves its parent a residual."""
    p = [list(row) for row in drafts.p]
    alpha: dict[int, Any] = {0: drafts.p[0][0] * 0 + 1}
    left = {v: drafts.children(v) for v in range(len(drafts.parent))}
    deleted: dict[int, list[int]] = {v: [] for v in left}
    tests = 0
    node = 0
    while True:
        while left[node]:
            v = left[node][0]
            q = drafts.proposal_row(v, deleted[node])
            token = drafts.tokens[v]
            alpha[v] = _at_most_one(alpha[node] * p[node][token], q[token])
            node = v
        test = alpha[node]
        passed = node == 0 or chance.coin(node, 0, tests, [test, 1 - test]) == 0
        if passed:
            return drafts.path(node), chance.draw(node, p[node], bool(deleted[node]))
        tests += 1
        parent = drafts.parent[node]
        q = drafts.proposal_row(node, deleted[parent])
        kept = _remainder([alpha[parent] * x for x in p[parent]], q)
        mass = sum(kept)
        p[parent] = normalized(kept)
        total = mass + 1 - alpha[parent]
        alpha[parent] = mass / total if total > 0 else mass * 0 + 1
        left[parent] = left[parent][1:]
        deleted[parent].append(node)
        node = parent


def typical(drafts: Drafts, chance: Chance, epsilon: float, delta: float) -> tuple[list[int], int]:
    """Medusa's typical acceptance; not lossless."""
    likelihood = {0: 1.0}
    for v in range(1, len(drafts.parent)):
        u = drafts.parent[v]
        if u not in likelihood or v not in drafts.children(u):
            continue
        row = np.asarray(drafts.p[u], float)
        entropy = -(row[row > 0] * np.log(row[row > 0])).sum()
        if row[drafts.tokens[v]] > min(epsilon, delta * np.exp(-entropy)):
            likelihood[v] = likelihood[u] * row[drafts.tokens[v]]
    best = max(likelihood, key=lambda v: (drafts.depth(v), likelihood[v], -v))
    return drafts.path(best), chance.draw(best, drafts.p[best], False)


class Philox:
    """The random numbers of the kernels, for one request.

    seed, position: the request's. drafts: its nodes. coins: of each node, in place of random ones.
    """

    def __init__(
        self, seed: int, position: int, drafts: Drafts, coins: Sequence[float] | None = None
    ) -> None:
        self._seed, self._position, self._drafts, self._coins = seed, position, drafts, coins

    def coin(self, node: int, place: int, number: int, probabilities: _Row) -> int:
        if self._coins is None:
            position = self._position + self._drafts.depth(place)
            word = int(random_words(self._seed, position, ACCEPT, number, 1)[0])
            u = (word >> 8) * 2.0**-24
        else:
            u = self._coins[node]
        return int(np.searchsorted(np.cumsum(probabilities)[:-1], u, side="right"))

    def draw(self, node: int, weights: _Row, residual: bool) -> int:
        position = self._position + self._drafts.depth(node)
        domain = RESIDUAL if residual else TARGET
        noise = token_noise(self._seed, position, domain, 0, len(weights))
        with np.errstate(divide="ignore"):
            return int(np.argmax(np.log(np.asarray(weights, float)) + noise))
