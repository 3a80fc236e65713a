"""Drafts from text: what followed the same tokens before."""

from __future__ import annotations

import weakref

from ttc_runtime.sequence import Ledger
from ttc_runtime.speculation.drafts import Draft, Request

_LONGEST, _SHORTEST = 4, 2  # tokens that have to agree


class _Index:
    """Where each n-gram of a problem's texts was last seen, and what is indexed already."""

    def __init__(self) -> None:
        self.places: dict[tuple[int, ...], tuple[list[int], int]] = {}
        self.done: dict[int, int] = {}

    def add(self, tokens: list[int]) -> None:
        first = self.done.get(id(tokens), 0)
        for end in range(max(first, _SHORTEST), len(tokens)):
            for n in range(_SHORTEST, min(_LONGEST, end) + 1):
                self.places[tuple(tokens[end - n : end])] = (tokens, end)
        self.done[id(tokens)] = max(first, len(tokens))

    def continuation(self, tokens: list[int], length: int) -> list[int]:
        for n in range(min(_LONGEST, len(tokens)), _SHORTEST - 1, -1):
            found = self.places.get(tuple(tokens[-n:]))
            if found is not None:
                text, at = found
                return text[at : at + length]
        return []


class NgramDrafter:
    """Looks the last tokens of a branch up in the problem's texts: its own and the other branches'.

    The longest match counts, of 4 down to 2 tokens, and of those the latest. Prompt lookup
    decoding, Saxena, 2023; here over all branches of a search.
    """

    tokens_run = 0

    def __init__(self) -> None:
        self._indices: weakref.WeakKeyDictionary[Ledger, _Index] = weakref.WeakKeyDictionary()

    def forget_all(self) -> None:
        """Forget all texts."""
        self._indices.clear()

    def propose(self, requests: list[Request], length: int) -> list[Draft]:
        drafts = []
        for request in requests:
            sequence = request.sequence
            index = self._indices.setdefault(sequence.ledger, _Index())
            index.add(sequence.tokens)
            tokens = index.continuation(sequence.tokens, min(length, request.depth))
            drafts.append(Draft(tokens, list(range(-1, len(tokens) - 1))))
        return drafts
