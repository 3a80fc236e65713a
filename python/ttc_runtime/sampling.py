"""How tokens are drawn, and where text ends."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SamplingParams:
    """How a strategy draws tokens.

    temperature: 0 takes the likeliest token. top_k: keep so many, 0 for all. top_p: keep the
    likeliest with this much probability, in (0, 1]. min_p: drop tokens below this share of the
    likeliest's probability, in [0, 1]. max_tokens: longest completion, in tokens. stop: strings
    that end a completion, kept in its text. Raises ValueError for values outside these ranges.

    >>> SamplingParams(temperature=0.7, top_p=0.95).top_k
    0
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    max_tokens: int = 2048
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "min_p"):
            if not isinstance(getattr(self, name), int | float):
                given = getattr(self, name)
                raise ValueError(f"SamplingParams: {name} must be a number, got {given!r}")
        if not isinstance(self.stop, str | tuple | list):
            raise ValueError(f"SamplingParams: stop must be non-empty strings, got {self.stop!r}")
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stops)
        checks = {
            "temperature": (0 <= self.temperature < float("inf"), "a finite number >= 0"),
            "top_k": (isinstance(self.top_k, int) and self.top_k >= 0, "an integer >= 0"),
            "top_p": (0 < self.top_p <= 1, "a number in (0, 1]"),
            "min_p": (0 <= self.min_p <= 1, "a number in [0, 1]"),
            "max_tokens": (
                isinstance(self.max_tokens, int) and self.max_tokens >= 1,
                "an integer >= 1",
            ),
            "stop": (all(isinstance(s, str) and s for s in stops), "non-empty strings"),
        }
        for name, (good, expected) in checks.items():
            if not good:
                raise ValueError(
                    f"SamplingParams: {name} must be {expected}, got {getattr(self, name)!r}"
                )


class TextEnds:
    """Finds the tokens that complete one of some strings, without decoding every token.

    tokenizer: of the model that generates. strings: stop strings or step separators. A string can
    only be completed by a token that holds its last character, and few tokens do; each token id is
    decoded once, when it first appears, and remembered.
    """

    _UNKNOWN, _NO, _MAYBE = 0, 1, 2

    def __init__(self, tokenizer, strings: tuple[str, ...], vocab_size: int) -> None:
        self._tokenizer = tokenizer
        # A character may be spread over tokens, each of which decodes to the replacement character.
        self._last = {s[-1] for s in strings} | {"\ufffd"}
        self._table = np.zeros(vocab_size, np.uint8) if strings else None

    def candidates(self, token_ids: np.ndarray) -> np.ndarray:
        """bool[N]: whether a token may complete one of the strings. token_ids: int[N]."""
        if self._table is None:
            return np.zeros(len(token_ids), bool)
        states = self._table[token_ids]
        for i in np.flatnonzero(states == self._UNKNOWN):
            text = self._tokenizer.decode([int(token_ids[i])])
            states[i] = self._MAYBE if self._last & set(text) else self._NO
            self._table[token_ids[i]] = states[i]
        return states == self._MAYBE


def completes(tokenizer, token_ids: list[int], strings: tuple[str, ...]) -> bool:
    """Whether the last token completes one of the strings, across token boundaries if need be.

    token_ids: the generated tokens, of which only as many as a string can span are looked at.
    """
    if not strings:
        return False
    # A token may be a part of a character: four for a character's bytes, and some for context.
    tail = token_ids[-(4 * max(map(len, strings)) + 8) :]
    before = len(tokenizer.decode(tail[:-1]).rstrip("\ufffd"))
    text = tokenizer.decode(tail)
    return any(text.find(s, max(0, before - len(s) + 1)) >= 0 for s in strings)
