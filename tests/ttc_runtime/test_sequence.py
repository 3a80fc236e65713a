"""The books about shared tokens, against a plain recount of who holds what."""

from __future__ import annotations

import random

import numpy as np
import pytest
from ttc_runtime.prefix_cache import CAPACITY, PrefixCache
from ttc_runtime.sequence import Ledger, Sequence

from ttc_kernels import PagePool


@pytest.mark.parametrize("seed", range(8))
def test_unique_tokens_equal_a_recount(seed):
    rng = random.Random(seed)
    pool, ledger = PagePool(4096, page_size=4), Ledger()
    root = Sequence([0] * 5, ledger)
    root.attach(pool.new_branch(), 0, None, 0)
    origin = {id(root): []}  # the identity of each token a sequence holds
    fresh = iter(range(10**6))
    alive = [root]
    for _ in range(200):
        sequence = rng.choice(alive)
        action = rng.random()
        if action < 0.4 or sequence.length == 0:
            count = rng.randint(1, 6)
            sequence.kv.append(count)
            sequence.grow(count)
            sequence.tokens += [0] * count
            origin[id(sequence)] += [next(fresh) for _ in range(count)]
        elif action < 0.75:
            child = Sequence([0] * sequence.length, ledger, sequence)
            child.attach(sequence.kv.fork(1)[0], sequence.length, sequence, sequence.length)
            origin[id(child)] = origin[id(sequence)][:]
            alive.append(child)
        elif len(alive) > 1:
            alive.remove(sequence)
            sequence.detach()
        unique = {token for s in alive for token in origin[id(s)]}
        assert ledger.live == len(unique)
        for s in alive:
            others = {t for o in alive if o is not s for t in origin[id(o)]}
            assert s.exclusive == len(set(origin[id(s)]) - others)
    assert ledger.recomputed == 0
    for sequence in alive:
        sequence.detach()
    assert ledger.live == 0 and not ledger.attached and pool.num_free == 4096


def test_tokens_run_again_are_recomputed():
    pool, ledger = PagePool(16, page_size=4), Ledger()
    sequence = Sequence([0] * 10, ledger)
    for count in (7, 10):
        sequence.attach(pool.new_branch(), 0, None, 0)
        sequence.kv.append(count)
        sequence.grow(count)
        sequence.detach()
    assert (ledger.run, ledger.recomputed, ledger.peak) == (17, 7, 10)


def test_prefix_cache_finds_the_longest_and_evicts_the_oldest():
    pool = PagePool(1000, page_size=4)
    cache = PrefixCache(shortest=4)

    def insert(tokens):
        branch = pool.new_branch()
        branch.append(len(tokens))
        cache.insert(np.array(tokens), branch)
        branch.free()

    insert([1, 2, 3, 4, 5, 6])
    insert([1, 2, 3, 4, 9, 9])
    length, key = cache.longest(np.array([1, 2, 3, 4, 9, 8]))
    assert length == 5
    branch = cache.fork(key, length)
    assert branch.length == 5
    branch.free()
    assert cache.longest(np.array([1, 2, 3, 7]))[0] == 3  # all that a short prompt could share
    assert cache.longest(np.array([1, 2, 7, 7, 7]))[0] == 0
    assert cache.longest(np.array([1, 2, 3, 4, 5, 6]))[0] == 5  # one token is left to run
    for i in range(CAPACITY):
        insert([100 + i] * 5)
    assert len(cache) == CAPACITY
    assert cache.longest(np.array([1, 2, 3, 4, 5, 6, 7]))[0] == 0
    while cache.evict():
        pass
    pool.check_integrity()
    assert pool.num_free == 1000
