"""PagePool and Branch against a small model that stores every token."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ttc_kernels._host import Branch, OutOfPages, PagePool


def test_append_fills_pages_in_order() -> None:
    pool = PagePool(num_pages=4, page_size=4)
    branch = pool.new_branch()
    slots = branch.append(6)
    assert slots.dtype == np.int32 and branch.pages.dtype == np.int32
    assert slots.tolist() == [0, 1, 2, 3, 4, 5]
    assert branch.pages.tolist() == [0, 1]
    assert (branch.length, pool.num_free) == (6, 2)
    assert branch.append(0).tolist() == []


def test_fork_copies_the_partial_page_on_the_first_append_only() -> None:
    pool = PagePool(num_pages=8, page_size=4)
    parent = pool.new_branch()
    parent.append(6)
    child, other = parent.fork(2)
    assert pool.num_free == 6, "a fork takes no page"
    assert child.append(1).tolist() == [2 * 4 + 2]
    assert pool.take_copies().tolist() == [[1, 2, 2]]
    assert child.append(1).tolist() == [2 * 4 + 3]
    assert pool.take_copies().shape == (0, 3)
    parent.append(1)
    assert pool.take_copies().tolist() == [[1, 3, 2]]
    assert other.append(1).tolist() == [1 * 4 + 2], "the last owner appends in place"
    assert len(pool.take_copies()) == 0


def test_fork_at_a_page_boundary_copies_nothing() -> None:
    pool = PagePool(num_pages=3, page_size=4)
    parent = pool.new_branch()
    parent.append(4)
    (child,) = parent.fork(1)
    parent.append(1)
    child.append(1)
    assert parent.pages.tolist() == [0, 1] and child.pages.tolist() == [0, 2]
    assert len(pool.take_copies()) == 0


def test_out_of_pages_changes_nothing() -> None:
    pool = PagePool(num_pages=3, page_size=4)
    branch = pool.new_branch()
    branch.append(6)
    (child,) = branch.fork(1)
    for request in (6, 2**62):  # 6: the copied page and one more, where one is free
        with pytest.raises(OutOfPages, match=f"{request} tokens .* need .* pages, but 1 of 3"):
            child.append(request)
    assert child.pages.tolist() == branch.pages.tolist() == [0, 1]
    assert (child.length, pool.num_free, len(pool.take_copies())) == (6, 1, 0)
    pool.check_integrity()
    assert issubclass(OutOfPages, RuntimeError)


def test_append_all_is_all_or_nothing() -> None:
    pool = PagePool(num_pages=4, page_size=4)
    parent = pool.new_branch()
    parent.append(2)
    kids = parent.fork(3)
    # Four owners of page 0 need three new pages: the last one keeps it.
    assert pool.append_all([parent, *kids]).tolist() == [1 * 4 + 2, 2 * 4 + 2, 3 * 4 + 2, 2]
    assert pool.take_copies().tolist() == [[0, 1, 2], [0, 2, 2], [0, 3, 2]]
    with pytest.raises(OutOfPages, match="each of 4 branches"):
        pool.append_all([parent, *kids], n_tokens=2)
    assert [b.length for b in (parent, *kids)] == [3, 3, 3, 3]
    assert pool.append_all(kids[:2], 1).tolist() == [2 * 4 + 3, 3 * 4 + 3]
    with pytest.raises(ValueError, match="branch 1 is given more than once"):
        pool.append_all([kids[0], parent, kids[0]])
    with pytest.raises(ValueError, match="belongs to another pool"):
        PagePool(1).append_all([parent])
    with pytest.raises(TypeError):
        pool.append_all([None])
    pool.check_integrity()


def test_block_tables_are_padded() -> None:
    pool = PagePool(num_pages=4, page_size=2)
    long, short, empty = (pool.new_branch() for _ in range(3))
    long.append(3)
    short.append(1)
    tables = pool.block_tables([long, short, empty])
    assert tables.dtype == np.int32
    assert tables.tolist() == [[0, 1], [2, -1], [-1, -1]]
    assert pool.block_tables([]).shape == (0, 0)


def test_copies_into_freed_pages_are_dropped_and_sources_held() -> None:
    pool = PagePool(num_pages=3, page_size=4)
    parent = pool.new_branch()
    parent.append(2)
    kept, dropped = parent.fork(2)
    kept.append(1)
    dropped.append(1)
    parent.free()
    dropped.free()
    # Page 0 has no owner, but the copy into kept's page still reads it.
    assert pool.num_free == 1
    pool.check_integrity()
    assert pool.take_copies().tolist() == [[0, 1, 2]]
    assert pool.num_free == 2
    kept.free()
    assert pool.num_free == 3


def test_a_fork_before_the_copy_ran_reads_the_first_source() -> None:
    pool = PagePool(num_pages=4, page_size=4)
    parent = pool.new_branch()
    parent.append(2)
    (child,) = parent.fork(1)
    child.append(1)
    child.truncate(2)
    (grandchild,) = child.fork(1)
    grandchild.append(1)
    assert pool.take_copies().tolist() == [[0, 1, 2], [0, 2, 2]]


def test_a_copy_that_another_copy_reads_survives_its_owner() -> None:
    pool = PagePool(num_pages=4, page_size=4)
    parent = pool.new_branch()
    parent.append(2)
    (child,) = parent.fork(1)
    child.append(1)
    (grandchild,) = child.fork(1)
    grandchild.append(1)  # three tokens of page 1, two of which are still to arrive from page 0
    child.free()
    assert pool.num_free == 1
    pool.check_integrity()
    assert pool.take_copies().tolist() == [[0, 1, 2], [1, 2, 3]]
    assert pool.num_free == 2
    pool.check_integrity()


def test_freed_branches_raise() -> None:
    pool = PagePool(num_pages=2)
    branch = pool.new_branch()
    branch.free()
    uses = [
        lambda: branch.length,
        lambda: branch.pages,
        lambda: branch.fork(1),
        lambda: branch.append(1),
        lambda: branch.truncate(0),
        branch.free,
        lambda: pool.append_all([branch]),
        lambda: pool.block_tables([branch]),
    ]
    for use in uses:
        with pytest.raises(ValueError, match="branch 0 was freed"):
            use()


def test_garbage_collection_frees_and_the_pool_outlives_its_branches() -> None:
    pool = PagePool(num_pages=2, page_size=1)
    pool.new_branch().append(2)
    gc.collect()
    assert pool.num_free == 2
    branch = pool.new_branch()
    branch.append(1)
    kids = branch.fork(2)
    del pool, branch
    gc.collect()
    assert kids[0].append(1).tolist() == [1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PagePool(0), "must be >= 1, got 0 and 16"),
        (lambda: PagePool(4, 0), "must be >= 1, got 4 and 0"),
        (lambda: PagePool(2**27, 16), "below 2\\^31, got 134217728 \\* 16"),
        (lambda: PagePool(1).new_branch().append(-1), "n_tokens must be >= 0, got -1"),
        (lambda: PagePool(1).new_branch().fork(-2), "n must be >= 0, got -2"),
        (lambda: PagePool(1).new_branch().truncate(1), r"length must be in \[0, 0\] .* got 1"),
    ],
)
def test_bad_values(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


class PoolMachine(RuleBasedStateMachine):
    """Random calls. A cache of token names shows that no branch ever loses or changes a token."""

    PAGE_SIZE = 3
    NUM_PAGES = 12

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(self.NUM_PAGES, self.PAGE_SIZE)
        self.cache = np.full(self.NUM_PAGES * self.PAGE_SIZE, -1)
        self.model: list[tuple[Branch, list[int]]] = []
        self.next_token = 0

    def _write(self, slots: np.ndarray, tokens: list[list[int]], n: int) -> None:
        cache = self.cache.reshape(self.NUM_PAGES, self.PAGE_SIZE)
        copies = self.pool.take_copies()
        assert len(np.unique(copies[:, 1])) == len(copies), "a page is filled once"
        for src, dst, num_tokens in copies:
            cache[dst, :num_tokens] = cache[src, :num_tokens]
        assert len(np.unique(slots)) == len(slots)
        for row, row_slots in zip(tokens, slots.reshape(-1, n), strict=True):
            for slot in row_slots:
                self.cache[slot] = self.next_token
                row.append(self.next_token)
                self.next_token += 1

    def _pick(self, data) -> tuple[Branch, list[int]]:
        return self.model[data.draw(st.integers(0, len(self.model) - 1))]

    @precondition(lambda self: len(self.model) < 8)
    @rule()
    def new_branch(self) -> None:
        self.model.append((self.pool.new_branch(), []))

    @precondition(lambda self: 0 < len(self.model) < 8)
    @rule(data=st.data(), n=st.integers(0, 3))
    def fork(self, data, n: int) -> None:
        branch, tokens = self._pick(data)
        self.model += [(child, list(tokens)) for child in branch.fork(n)]

    @precondition(lambda self: self.model)
    @rule(data=st.data(), n=st.integers(1, 7), written=st.booleans())
    def append(self, data, n: int, written: bool) -> None:
        branch, tokens = self._pick(data)
        before = self._state()
        try:
            slots = branch.append(n)
        except OutOfPages:
            assert self._state() == before
        else:
            if written:
                self._write(slots, [tokens], n)
            else:  # given up before it was computed
                branch.truncate(len(tokens))

    @precondition(lambda self: self.model)
    @rule(data=st.data(), n=st.integers(1, 4))
    def append_all(self, data, n: int) -> None:
        chosen = data.draw(st.permutations(range(len(self.model))))
        rows = [self.model[i] for i in chosen[: data.draw(st.integers(1, len(chosen)))]]
        before = self._state()
        try:
            slots = self.pool.append_all([branch for branch, _ in rows], n)
        except OutOfPages:
            assert self._state() == before
        else:
            self._write(slots, [tokens for _, tokens in rows], n)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def truncate(self, data) -> None:
        branch, tokens = self._pick(data)
        length = data.draw(st.integers(0, len(tokens)))
        branch.truncate(length)
        del tokens[length:]

    @precondition(lambda self: self.model)
    @rule(data=st.data(), by_hand=st.booleans())
    def free(self, data, by_hand: bool) -> None:
        branch, _ = self.model.pop(data.draw(st.integers(0, len(self.model) - 1)))
        if by_hand:
            branch.free()

    def _state(self) -> list:
        return [(b.length, b.pages.tolist()) for b, _ in self.model] + [self.pool.num_free]

    @invariant()
    def branches_hold_their_tokens(self) -> None:
        self.pool.check_integrity()
        owned: set[int] = set()
        for branch, tokens in self.model:
            assert branch.length == len(tokens)
            owned.update(branch.pages.tolist())
        assert self.pool.num_free <= self.NUM_PAGES - len(owned)
        # Copies that were queued by an append that was then given up are dropped or harmless, so
        # what is in the caches now is what every branch reads, except through a queued copy.
        self._write(np.empty(0, np.int32), [], 1)
        assert self.pool.num_free == self.NUM_PAGES - len(owned)
        for branch, tokens in self.model:
            slots = [
                int(branch.pages[i // self.PAGE_SIZE]) * self.PAGE_SIZE + i % self.PAGE_SIZE
                for i in range(len(tokens))
            ]
            assert self.cache[slots].tolist() == tokens


PoolMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, derandomize=True
)
test_random_calls = PoolMachine.TestCase
