"""Thought-switching penalty: a line of thought is not left before it was followed for a while."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ttc_runtime.branch import Branch
from ttc_runtime.sampling import SamplingParams
from ttc_runtime.search import Generate, Score, Search
from ttc_runtime.strategies.base import SELECTS, Outcome, Work, check_choice, check_count


@dataclass(frozen=True)
class ThoughtSwitching:
    """Chains in which words that begin another thought are less likely for some time after one did.

    n: chains. penalty: taken from the logit of a token that completes such a word. duration: tokens
    from the start of a thought for which it is. words: that begin a thought, each also with a
    capital and with a space in front. select: how chains vote; with ``weighted`` or ``naive`` they
    are scored. sampling: how tokens are drawn. Wang et al., "Thoughts Are All Over the Place: On
    the Underthinking of o1-Like LLMs", 2025, alpha = 3 and beta = 600 as there. Raises ValueError
    for other settings.

    >>> ThoughtSwitching().duration
    600
    """

    n: int = 1
    penalty: float = 3.0
    duration: int = 600
    words: tuple[str, ...] = ("alternatively", "another approach", "another way")
    select: str = "majority"
    sampling: SamplingParams = SamplingParams()
    name: ClassVar[str] = "thought_switching"

    def __post_init__(self) -> None:
        check_count("ThoughtSwitching", "n", self.n)
        check_count("ThoughtSwitching", "duration", self.duration)
        check_choice("ThoughtSwitching", "select", self.select, SELECTS)
        if not self.words or not all(isinstance(w, str) and w for w in self.words):
            raise ValueError(f"ThoughtSwitching: words must be non-empty texts, got {self.words!r}")

    def run(self, search: Search) -> Work:
        bias = SwitchPenalty(search, self.words, self.penalty, self.duration)
        branches = yield Generate(search.root.fork(self.n), self.sampling, bias=bias)
        if self.select != "majority":
            yield Score(branches)
        switches = [bias.switches(branch) for branch in branches]
        return Outcome(branches, self.select, {"switches": switches})


class SwitchPenalty:
    """The penalty as a `Generate.bias`. A word of several tokens is penalised at its last one."""

    def __init__(self, search: Search, words: tuple[str, ...], penalty: float, duration: int):
        forms = [form for w in words for form in (w, w.capitalize())]
        encoded = [search.policy.encode(lead + form) for form in forms for lead in ("", " ")]
        self._words = sorted({tuple(ids) for ids in encoded if ids})
        self._penalty, self._duration = penalty, duration
        # Of each branch: tokens read, where its thought started, switches.
        self._seen: dict[Branch, tuple[int, int, int]] = {}

    def __call__(self, branch: Branch) -> tuple[list[int], float] | None:
        length, start, _ = self._read(branch)
        if length - start >= self._duration:
            return None
        tokens = branch.sequence.tokens
        ids = {w[-1] for w in self._words if _ends(tokens, w[:-1], branch.prompt_tokens)}
        return (sorted(ids), -self._penalty) if ids else None

    def switches(self, branch: Branch) -> int:
        """How often a branch began another thought."""
        return self._read(branch)[2]

    def _read(self, branch: Branch) -> tuple[int, int, int]:
        tokens = branch.sequence.tokens
        first = branch.prompt_tokens
        seen, start, switches = self._seen.get(branch, (first, first, 0))
        for end in range(seen + 1, len(tokens) + 1):
            if any(_ends(tokens, word, first, end) for word in self._words):
                # " Alternatively" ends where "Alternatively" does: one switch
                switches += 1
                start = end
        self._seen[branch] = len(tokens), start, switches
        return self._seen[branch]


def _ends(tokens: list[int], word: tuple[int, ...], first: int, end: int | None = None) -> bool:
    """Whether the tokens from `first` on, up to `end`, end with a word's."""
    stop = len(tokens) if end is None else end
    begin = stop - len(word)
    return begin >= first and tuple(tokens[begin:stop]) == word
