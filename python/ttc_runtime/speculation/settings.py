"""How to speculate."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LONGEST = 63


@dataclass(frozen=True)
class Speculation:
    """How drafts are made. They change how fast text comes, never the text.

    kind: ``chain`` (the draft model's guesses, one after the other), ``tree`` (the likeliest paths
    of its guesses), ``ngram`` (what followed the last tokens earlier, in the branch or in others of
    the problem; no draft model), or ``none``. length: most draft tokens of a branch and pass, at
    most 63. adaptive: draft fewer where few are accepted. Raises ValueError for others.

    >>> Speculation.parse("tree:16")
    Speculation(kind='tree', length=16, adaptive=True)
    """

    kind: str = "chain"
    length: int = 4
    adaptive: bool = True

    def __post_init__(self) -> None:
        kinds = ("none", "chain", "tree", "ngram")
        if self.kind not in kinds:
            raise ValueError(f"Speculation: kind must be one of {kinds}, got {self.kind!r}")
        if not isinstance(self.length, int) or not 1 <= self.length <= _LONGEST:
            raise ValueError(
                f"Speculation: length must be an integer from 1 to {_LONGEST}, got {self.length!r}"
            )

    @classmethod
    def parse(cls, text: str) -> Speculation:
        """From a text such as ``chain:4``, ``tree:16``, ``ngram:8`` or ``none``."""
        match = re.fullmatch(r"([a-z]+)(?::(\d+))?", text)
        if match is None:
            raise ValueError(f"Speculation: expected a text such as 'tree:16', got {text!r}")
        return cls(match[1], int(match[2])) if match[2] else cls(match[1])
