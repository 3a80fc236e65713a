"""Prompts whose KV is kept, so that a prefix shared by several problems is computed once."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from ttc_kernels import Branch as PoolBranch

CAPACITY = 64  # entries; each look-up compares with all of them


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """Number of leading tokens in common.

    >>> common_prefix(np.array([1, 2, 3]), np.array([1, 2, 4, 5]))
    2
    """
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


class PrefixCache:
    """Pool branches of finished prompts, least recently used first.

    shortest: tokens a match must have; a shorter one shares no page and costs a copy.
    """

    def __init__(self, shortest: int) -> None:
        self.shortest = shortest
        self._entries: OrderedDict[bytes, tuple[np.ndarray, PoolBranch]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def long_enough(self, match: int, tokens: np.ndarray) -> bool:
        """Whether a match is worth sharing: long, or all that could match of a short prompt."""
        return match >= min(self.shortest, len(tokens) - 1) and match > 0

    def longest(self, tokens: np.ndarray) -> tuple[int, bytes | None]:
        """Length and key of the best match; the last token is always left to be run."""
        best, best_key = 0, None
        for key, (cached, _) in self._entries.items():
            match = min(common_prefix(cached, tokens), len(tokens) - 1)
            if match > best:
                best, best_key = match, key
        return (best, best_key) if self.long_enough(best, tokens) else (0, None)

    def fork(self, key: bytes, length: int) -> PoolBranch:
        """A pool branch with the first `length` tokens of an entry."""
        self._entries.move_to_end(key)
        branch = self._entries[key][1].fork(1)[0]
        branch.truncate(length)
        return branch

    def insert(self, tokens: np.ndarray, branch: PoolBranch) -> None:
        """Keep a prompt; `branch` holds exactly its tokens and stays the caller's."""
        key = tokens.tobytes()
        if key in self._entries:
            self._entries.move_to_end(key)
            return
        while len(self._entries) >= CAPACITY:
            self.evict()
        self._entries[key] = (tokens, branch.fork(1)[0])

    def evict(self) -> bool:
        """Drop the least recently used entry. False if there was none."""
        if not self._entries:
            return False
        self._entries.popitem(last=False)[1][1].free()
        return True
