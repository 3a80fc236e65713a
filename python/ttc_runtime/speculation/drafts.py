"""What a drafter is asked for and gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ttc_runtime.sampling import SamplingParams
    from ttc_runtime.sequence import Sequence


@dataclass(frozen=True)
class Request:
    """A branch that is about to grow.

    sequence: its tokens. seed: its random seed. sampling: how its tokens are drawn. depth: drafts
    on a path that could be of use.
    """

    sequence: Sequence
    seed: int
    sampling: SamplingParams
    depth: int


@dataclass
class Draft:
    """Guesses at the tokens that follow a branch's.

    tokens: of each node. parents: the node before each, which comes earlier; -1 for the branch's
    last token.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)

    @property
    def is_chain(self) -> bool:
        return self.parents == list(range(-1, len(self.parents) - 1))

    def depths(self) -> list[int]:
        """Of each node; 1 for a guess at the next token.

        >>> Draft([5, 6, 7], [-1, -1, 0]).depths()
        [1, 1, 2]
        """
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent < 0 else depths[parent] + 1)
        return depths

    def paths(self) -> list[list[int]]:
        """Nodes from the first to each leaf.

        >>> Draft([5, 6, 7], [-1, -1, 0]).paths()
        [[1], [0, 2]]
        """
        found = []
        for leaf in set(range(len(self.parents))) - set(self.parents):
            path = [leaf]
            while self.parents[path[-1]] >= 0:
                path.append(self.parents[path[-1]])
            found.append(path[::-1])
        return sorted(found, key=lambda path: path[-1])


class Drafter(Protocol):
    """Makes guesses. They may be anything: the verification decides."""

    def propose(self, requests: list[Request], length: int) -> list[Draft]:
        """A draft of at most `length` tokens for each request."""
        ...

    def forget_all(self) -> None:
        """Give up what is kept of earlier texts."""
        ...

    @property
    def tokens_run(self) -> int:
        """Tokens run through a draft model so far."""
        ...
