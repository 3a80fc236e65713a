"""Every rule is lossless, exactly; every mutant is not. See `lossless` for the method."""

from __future__ import annotations

from fractions import Fraction

import pytest
from lossless import Model, Shape, accepted, distance, drawn, law, target_law

from ttc_kernels.reference import verify_drafts as rules
from ttc_kernels.reference.verify_drafts import (
    IID,
    ONE_HOT,
    WITHOUT_REPLACEMENT,
    Drafts,
    normalized,
)

CHAIN1, CHAIN2, CHAIN3 = (-1, 0), (-1, 0, 1), (-1, 0, 1, 2)
FORK2, FORK3 = (-1, 0, 0), (-1, 0, 0, 0)
TREE, DEEP = (-1, 0, 0, 1, 1, 2), (-1, 0, 1, 1, 0)
ALL = {"one_hot": ONE_HOT, "iid": IID, "without_replacement": WITHOUT_REPLACEMENT}
P, Q = Model(3, 1), Model(3, 2)


def shape_of(parent: tuple[int, ...], proposal: int) -> Shape:
    return Shape(parent, (proposal,) * len(parent))


CASES = [
    *(("sampled", tree, kind) for tree in (CHAIN2, TREE) for kind in ALL),
    *(("target_only", tree, "one_hot") for tree in (CHAIN3, FORK3, TREE)),
    # Whatever the siblings are: they are only guesses.
    *(("target_only", tree, kind) for tree in (FORK2, DEEP) for kind in ALL),
    *(("rejection", tree, kind) for tree in (CHAIN1, CHAIN3, FORK2, FORK3, TREE) for kind in ALL),
    *(("block", tree, kind) for tree in (CHAIN1, CHAIN2, CHAIN3) for kind in ALL),
    *(("traversal", tree, kind) for tree in (CHAIN3, FORK2, FORK3, TREE, DEEP) for kind in ALL),
]


@pytest.mark.parametrize(("rule", "tree", "kind"), CASES)
def test_lossless(rule: str, tree: tuple[int, ...], kind: str) -> None:
    shape = shape_of(tree, ALL[kind])
    want = target_law(P, shape.depth + 1)
    assert law(getattr(rules, rule), shape, P, Q) == want
    assert sum(want.values()) == 1


@pytest.mark.parametrize("rule", ["rejection", "traversal"])
@pytest.mark.parametrize("zeros", [True, False])
def test_hybrid_siblings(rule: str, zeros: bool) -> None:
    """One child drawn from q without its likeliest token, and that token."""

    class Rest(Model):
        def __call__(self, prefix):
            row = Model.__call__(self, prefix)
            row[row.index(max(row))] = Fraction(0)
            return normalized(row) if any(row) else [Fraction(1), Fraction(0), Fraction(0)]

    p, q = Model(3, 5, zeros), Rest(3, 6, zeros)
    for order in ((IID, ONE_HOT), (ONE_HOT, IID)):
        assert law(getattr(rules, rule), Shape(FORK2, (0, *order)), p, q) == target_law(p, 2)


def test_padding_is_left_out() -> None:
    def with_padding(drafts: Drafts) -> Drafts:
        return Drafts(
            [*drafts.parent, 0, 1], [*drafts.tokens, -1, 99], [*drafts.p, [], []],
            [*drafts.q, None, None], [*drafts.proposals, IID, IID],
        )  # fmt: skip

    for rule in (rules.rejection, rules.traversal, rules.target_only, rules.sampled):
        shape = shape_of(FORK2, IID)
        assert law(rule, shape, P, Q, with_padding) == target_law(P, 2)


# -- acceptance -----------------------------------------------------------------------------------


def overlap(p, q) -> Fraction:
    return sum((min(x, y) for x, y in zip(p, q, strict=True)), Fraction(0))


def test_one_draft_is_accepted_with_the_overlap() -> None:
    want = overlap(P(()), Q(()))
    for rule in (rules.rejection, rules.block, rules.traversal):
        assert accepted(rule, shape_of(CHAIN1, IID), P, Q) == want


def test_chosen_drafts_are_accepted_with_the_targets_probability() -> None:
    """No lossless rule can do better, so all of them agree, block and traversal too."""
    for tree in (CHAIN3, FORK3, TREE):
        shape = shape_of(tree, ONE_HOT)
        ((drafts, _),) = drawn(shape, P, Q)
        want = Fraction(0)
        for v in range(1, len(tree)):
            share = Fraction(1)
            for node in drafts.path(v)[1:]:
                share *= drafts.p[drafts.parent[node]][drafts.tokens[node]]
            want += share
        names = ["target_only", "rejection", "sampled", "traversal"]
        for name in names + (["block"] if tree == CHAIN3 else []):
            assert accepted(getattr(rules, name), shape, P, Q) == want, name


def test_block_and_traversal_accept_more() -> None:
    chain, tree = shape_of(CHAIN3, IID), shape_of(TREE, WITHOUT_REPLACEMENT)
    token, block = (accepted(rule, chain, P, Q) for rule in (rules.rejection, rules.block))
    assert block > token
    assert accepted(rules.traversal, chain, P, Q) == block
    assert accepted(rules.traversal, tree, P, Q) >= accepted(rules.rejection, tree, P, Q)


# -- mutants --------------------------------------------------------------------------------------


def told(drafts: Drafts, **changes) -> Drafts:
    fields = ("parent", "tokens", "p", "q", "proposals")
    return Drafts(*(changes.get(name, getattr(drafts, name)) for name in fields))


def as_if_drawn(kind: int):
    return lambda drafts: told(drafts, proposals=[kind] * len(drafts.parent))


def rearranged(drafts: Drafts, order: list[int]) -> Drafts:
    """Children of the root in another order; a number above 2 is padding."""
    pick = lambda rows, none: [rows[0], *(rows[v] if v < 3 else none for v in order)]  # noqa: E731
    return told(
        drafts, tokens=pick(drafts.tokens, -1), p=pick(drafts.p, drafts.p[0]),
        q=pick(drafts.q, drafts.q[0]),
    )  # fmt: skip


def sorted_by_q(drafts: Drafts) -> Drafts:
    if -1 in drafts.tokens[1:]:
        return drafts
    return rearranged(drafts, sorted((1, 2), key=lambda v: -drafts.q[0][drafts.tokens[v]]))


def pruned_by_q(drafts: Drafts) -> Drafts:
    share = lambda v: drafts.q[0][drafts.tokens[v]] if drafts.tokens[v] >= 0 else -1  # noqa: E731
    return rearranged(drafts, [max((1, 2), key=share), 3])


class Truncated(Model):
    """The two likeliest tokens of a model."""

    def __call__(self, prefix):
        row = Model.__call__(self, prefix)
        order = sorted(range(len(row)), key=lambda x: -row[x])[:2]
        return normalized([y if x in order else Fraction(0) for x, y in enumerate(row)])


def untruncated(drafts: Drafts) -> Drafts:
    full = Model(3, 2)
    rows = [tuple(drafts.tokens[v] for v in drafts.path(u)[1:]) for u in range(len(drafts.q))]
    return told(drafts, q=[full(row) for row in rows])


def without_residual_update(drafts: Drafts, chance):
    node, p = 0, drafts.p[0]
    for number, v in enumerate(drafts.children(0)):
        q = drafts.proposal_row(v)
        share = min(p[drafts.tokens[v]] / q[drafts.tokens[v]], Fraction(1))
        if chance.coin(v, node, number, [share, 1 - share]) == 0:
            return [0, v], chance.draw(v, drafts.p[v], False)
    left = [max(x - y, Fraction(0)) for x, y in zip(p, q, strict=True)]
    return [0], chance.draw(0, left if any(left) else p, True)


def residual_keeps_the_rejected(drafts: Drafts, chance):
    """target_only that ends with p itself."""
    path, last = rules.target_only(drafts, Told(chance, drafts))
    return path, last


class Told:
    """A chance that draws from the whole row where a residual was asked for."""

    def __init__(self, chance, drafts: Drafts) -> None:
        self.chance, self.drafts = chance, drafts

    def coin(self, *arguments):
        return self.chance.coin(*arguments)

    def draw(self, node, weights, residual):
        return self.chance.draw(node, self.drafts.p[node], residual)


class OneCoin:
    """A chance that tosses one coin for all siblings of a place."""

    def __init__(self, chance) -> None:
        self.chance, self.bounds = chance, {}

    def coin(self, node, place, number, probabilities):
        low, high = self.bounds.get(place, (Fraction(0), Fraction(1)))
        share = Fraction(0)
        if high > low:
            share = min(max((probabilities[0] - low) / (high - low), share), Fraction(1))
        chosen = self.chance.coin(node, place, number, [share, 1 - share])
        cut = low + share * (high - low)
        self.bounds[place] = (low, cut) if chosen == 0 else (cut, high)
        return chosen

    def draw(self, *arguments):
        return self.chance.draw(*arguments)


def one_coin_for_all(drafts: Drafts, chance):
    return rules.rejection(drafts, OneCoin(chance))


def block_with_an_early_stop(drafts: Drafts, chance):
    class Stopping:
        stopped = False

        def coin(self, node, place, number, probabilities):
            if self.stopped:
                return 1
            chosen = chance.coin(node, place, number, probabilities)
            self.stopped = chosen == 1
            return chosen

        draw = staticmethod(chance.draw)

    return rules.block(drafts, Stopping())


def block_with_the_token_residual(drafts: Drafts, chance):
    class Plain:
        coin = staticmethod(chance.coin)

        def draw(self, node, weights, residual):
            if residual:
                q = drafts.proposal_row(node + 1)
                weights = [max(x - y, 0) for x, y in zip(drafts.p[node], q, strict=True)]
            return chance.draw(node, weights, residual)

    return rules.block(drafts, Plain())


def duplicates_counted_twice(drafts: Drafts, chance):
    shares = [drafts.p[0][drafts.tokens[v]] for v in (1, 2)]
    first = min(shares[0], Fraction(1))
    second = min(shares[1], 1 - first)
    chosen = chance.coin(0, 0, 0, [first, second, 1 - first - second])
    if chosen < 2:
        return [0, chosen + 1], chance.draw(chosen + 1, drafts.p[chosen + 1], False)
    gone = {drafts.tokens[1], drafts.tokens[2]}
    rest = [0 if x in gone else y for x, y in enumerate(drafts.p[0])]
    return [0], chance.draw(0, rest, True)


MUTANTS = {
    "argmax draft told as drawn from q": (rules.rejection, CHAIN2, ONE_HOT, Q, as_if_drawn(IID)),
    "argmax draft told as drawn, block": (rules.block, CHAIN2, ONE_HOT, Q, as_if_drawn(IID)),
    "no update between iid siblings": (without_residual_update, FORK2, IID, Q, None),
    "no update between siblings without replacement": (
        without_residual_update, FORK2, WITHOUT_REPLACEMENT, Q, None,
    ),
    "top-k siblings, no update": (
        without_residual_update, FORK2, ONE_HOT, Q, as_if_drawn(IID),
    ),
    "siblings sorted by q": (rules.rejection, FORK2, WITHOUT_REPLACEMENT, Q, sorted_by_q),
    "the same, traversal": (rules.traversal, FORK2, WITHOUT_REPLACEMENT, Q, sorted_by_q),
    "siblings pruned by q": (rules.rejection, FORK2, WITHOUT_REPLACEMENT, Q, pruned_by_q),
    "truncated draft, whole q": (rules.rejection, CHAIN2, IID, Truncated(3, 2), untruncated),
    "without replacement told as iid": (
        rules.rejection, FORK3, WITHOUT_REPLACEMENT, Q, as_if_drawn(IID),
    ),
    "the last token from p itself": (residual_keeps_the_rejected, FORK2, ONE_HOT, Q, None),
    "one coin for all siblings": (one_coin_for_all, FORK2, ONE_HOT, Q, None),
    "block that stops at a failed test": (block_with_an_early_stop, CHAIN3, IID, Q, None),
    "block with the token rule's residual": (block_with_the_token_residual, CHAIN3, IID, Q, None),
    "duplicates counted twice": (duplicates_counted_twice, FORK2, IID, Q, None),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_caught(name: str) -> None:
    rule, tree, kind, q, change = MUTANTS[name]
    shape = shape_of(tree, kind)
    # One of a few models shows the bias; the right rules pass with all of them.
    biased = []
    for seed in range(4):
        p = Model(3, 1 + 10 * seed)
        found = law(rule, shape, p, q, change or (lambda drafts: drafts))
        biased.append(float(distance(found, target_law(p, shape.depth + 1))))
    print(f"{name}: total variation up to {max(biased):.3f}")
    assert max(biased) > 0.005


def test_the_same_sets_are_harmless_where_q_is_not_used() -> None:
    """Pruned and sorted by q, under the rule that needs no q."""
    shape = shape_of(FORK2, WITHOUT_REPLACEMENT)
    for change in (sorted_by_q, pruned_by_q):
        assert law(rules.target_only, shape, P, Q, change) == target_law(P, 2)
