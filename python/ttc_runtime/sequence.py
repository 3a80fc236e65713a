"""Token sequences with cached keys and values, and the books kept about them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from ttc_kernels import Branch as PoolBranch

if TYPE_CHECKING:
    from ttc_runtime.branch import Branch


@dataclass(eq=False)
class Ledger:
    """What one problem did on one model. Token counts unless said otherwise.

    run: run through the model. recomputed: of these, run before for the same sequence and lost to
    memory pressure. reused: taken from a cached prefix instead of run. live, peak: distinct tokens
    holding KV for the problem, now and at most. branches: most sequences that held KV at a time.
    seconds: model time by phase. attached: sequences that hold KV.
    """

    run: int = 0
    recomputed: int = 0
    reused: int = 0
    live: int = 0
    peak: int = 0
    branches: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"prefill": 0.0, "decode": 0.0})
    attached: dict[int, Sequence] = field(default_factory=dict)

    @property
    def needed(self) -> int:
        """Tokens that had to be run once, by whomever."""
        return self.run + self.reused - self.recomputed

    def pages(self, page_size: int) -> int:
        """Pages that were enough at any time: each sequence leaves one half full at most."""
        return self.peak // page_size + self.branches


class Sequence:
    """Token ids, the first `length` of which have keys and values in the pool.

    tokens: ids, prompt first. ledger: the books of its problem. owner: the branch it belongs to.
    parent: the sequence it continues; the first `fork_len` tokens are the parent's and share its
    pages. kv: the pool branch, None when
    detached (not started, or pages given up). logits: the model's output after the `length`-th
    token, kept when that is the last one and something is to be sampled from it.

    `base` and `holder` count every shared token once: this sequence owns tokens from `base` on, the
    tokens before belong to `holder`.
    """

    __slots__ = (
        "base",
        "fork_len",
        "holder",
        "kv",
        "ledger",
        "length",
        "logits",
        "owner",
        "parent",
        "ran",
        "sharers",
        "tokens",
    )

    def __init__(
        self,
        tokens: list[int],
        ledger: Ledger,
        parent: Sequence | None = None,
        owner: Branch | None = None,
    ) -> None:
        self.tokens, self.ledger, self.parent, self.owner = tokens, ledger, parent, owner
        self.fork_len = len(tokens) if parent else 0
        self.ran = self.fork_len  # a parent's tokens count as run by the parent
        self.length = self.base = 0
        self.kv: PoolBranch | None = None
        self.logits: Tensor | None = None
        self.holder: Sequence | None = None
        self.sharers: set[Sequence] = set()

    @property
    def pending(self) -> int:
        """Tokens that are still to be run."""
        return len(self.tokens) - self.length

    @property
    def dispensable(self) -> tuple[bool, float]:
        """Key by which sequences at rest lose their pages, smallest first.

        Finished branches are hardly ever continued; the others go by value.
        """
        if self.owner is None:
            return False, 0.0
        return not self.owner.finished, self.owner.rank

    @property
    def exclusive(self) -> int:
        """Tokens of KV that would be given up by `detach`."""
        kept = max((s.base for s in self.sharers), default=self.base)
        return self.length - max(kept, self.base)

    def attach(self, kv: PoolBranch, length: int, holder: Sequence | None, shared: int) -> None:
        """Take a pool branch with the first `length` tokens, `shared` of them with `holder`.

        A sequence without a parent takes what it does not run itself from a cached prefix.
        """
        while holder is not None and holder.base > shared:
            holder = holder.holder  # those tokens are not its own
        self.kv, self.length, self.base, self.holder = kv, length, shared, holder
        self.ledger.attached[id(self)] = self
        self.ledger.branches = max(self.ledger.branches, len(self.ledger.attached))
        if holder is not None:
            holder.sharers.add(self)
        if self.parent is None:
            self.ledger.reused += max(0, length - self.ran)
        self._hold(length - shared)
        self.ran = max(self.ran, length)

    def grow(self, count: int) -> None:
        """Record that the next `count` tokens are being run."""
        ledger, end = self.ledger, self.length + count
        ledger.run += count
        if self.ran > self.length:
            ledger.recomputed += min(end, self.ran) - self.length
        self.length = end
        self.ran = max(self.ran, end)
        self.logits = None
        self._hold(count)

    def detach(self) -> None:
        """Give up the pages. Sequences sharing them keep them, the longest as their new owner."""
        self.ledger.live -= self.exclusive
        if self.sharers:
            heir = max(self.sharers, key=lambda s: s.base)
            self.sharers.discard(heir)
            heir.base, heir.holder = self.base, self.holder
            heir.sharers |= self.sharers
            for other in self.sharers:
                other.holder = heir
            if self.holder is not None:
                self.holder.sharers.add(heir)
        if self.holder is not None:
            self.holder.sharers.discard(self)
        if self.kv is not None:
            self.kv.free()
        del self.ledger.attached[id(self)]
        self.kv = self.logits = self.holder = None
        self.length = self.base = 0
        self.sharers = set()

    def _hold(self, count: int) -> None:
        self.ledger.live += count
        self.ledger.peak = max(self.ledger.peak, self.ledger.live)
