"""What a search may spend, and what it did spend."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Budget:
    """Limits of one problem's whole search tree; None is no limit.

    tokens: tokens generated, over all branches. samples: completions started from the prompt.
    seconds: wall clock from the problem's start. scored_tokens: tokens run through the reward
    model. The meaning is the same for every strategy. When one runs out, growing branches stop
    with ``stop_reason`` ``budget`` and the strategy answers with what it has. Tokens, samples
    and scored tokens are never exceeded, seconds by at most one forward pass. Raises ValueError
    for a limit that is not positive, or not whole where it counts.

    >>> Budget(tokens=4096).samples is None
    True
    """

    tokens: int | None = None
    samples: int | None = None
    seconds: float | None = None
    scored_tokens: int | None = None

    def __post_init__(self) -> None:
        for name, limit in asdict(self).items():
            if limit is not None and not limit > 0:
                raise ValueError(f"Budget: {name} must be positive or None, got {limit!r}")
            if name != "seconds" and limit is not None and not isinstance(limit, int):
                raise ValueError(f"Budget: {name} must be an integer or None, got {limit!r}")


class Account:
    """What one strand of a search may still spend.

    Generators that run `Together` are strands. Each gets an equal share of what is left, so that
    none feels what another does, and how fast; what it leaves goes back when all have ended. Tokens
    alone are shared out anew once every strand has used up its own, so that none is cut while there
    are some:

        strategy: 9 tokens ── Together ─┬─ 3, ends with 1 left ───────────┐
                                        ├─ 3, wants more ── wants more ─┐ ├─ 1 is left: for one of
                                        └─ 3, wants more ───────────────┴─┘  them, the other is cut

    tokens, samples, scored_tokens: left, None for no limit. place: of the strand, by the numbers of
    `Together` and of the generator in it; empty for the strategy itself. hit: a limit cut work of
    this strand short.
    """

    def __init__(
        self,
        tokens: int | None,
        samples: int | None,
        scored_tokens: int | None,
        parent: Account | None = None,
        place: tuple[int, ...] = (),
    ) -> None:
        self.tokens, self.samples, self.scored_tokens = tokens, samples, scored_tokens
        self.parent, self.place, self.hit = parent, place, False
        self.root: Account = self if parent is None else parent.root
        self._strands: list[Account] = []
        self._splits = 0
        self._wanting = 0  # growing branches that have no tokens left
        self._exhausted = False

    @property
    def exhausted(self) -> bool:
        """Whether all tokens of the search are spent or given out."""
        return self.root._exhausted

    def split(self, count: int) -> list[Account]:
        """Shares for so many strands; this account is empty until they are closed."""
        shares = zip(
            _parts(self.tokens, count),
            _parts(self.samples, count),
            _parts(self.scored_tokens, count),
            strict=True,
        )
        self._strands = [
            Account(*share, self, (*self.place, self._splits, i)) for i, share in enumerate(shares)
        ]
        self._splits += 1
        if count:
            self.tokens, self.samples, self.scored_tokens = (
                None if left is None else 0
                for left in (self.tokens, self.samples, self.scored_tokens)
            )
        return self._strands[:]

    def close(self) -> None:
        """Give what is left back to the account it was split from."""
        above = self.parent
        if above is None:
            return
        above.hit |= self.hit
        above._strands.remove(self)
        for name in ("tokens", "samples", "scored_tokens"):
            if (left := getattr(self, name)) is not None:
                setattr(above, name, getattr(above, name) + left)

    def resume(self) -> None:
        """The strand goes on: it does not want tokens any more."""
        self._wanting = 0

    def grant(self, growing: int) -> int | None:
        """Tokens for so many branches that have none: at least one each, or the last there are.

        None while other strands may still leave some. They stay on the account.
        """
        if self.tokens is not None and self.tokens < growing and not self.exhausted:
            self._wanting = growing
            self.root._settle()
            if self._wanting:
                return None
        return self.tokens

    def _settle(self) -> None:
        """Once every strand wants tokens, share out what all have left, as many a branch."""
        accounts = list(self._all())
        wanting = [account for account in accounts if not account._strands]
        if not all(account._wanting for account in wanting):
            return
        pool = sum(account.tokens or 0 for account in accounts)
        each = pool // sum(account._wanting for account in wanting)
        self._exhausted = each == 0
        for account in accounts:
            account.tokens = min(pool, account._wanting * max(1, each))
            account._wanting = 0
            pool -= account.tokens
        self.tokens = (self.tokens or 0) + pool

    def _all(self) -> Iterator[Account]:
        yield self
        for strand in self._strands:
            yield from strand._all()


def _parts(amount: int | None, count: int) -> list[int | None]:
    """An amount in equal parts, the first ones larger by what is over.

    >>> _parts(8, 3), _parts(None, 2)
    ([3, 3, 2], [None, None])
    """
    if amount is None:
        return [None] * count
    return [amount // count + (i < amount % count) for i in range(count)]


@dataclass
class Usage:
    """What one problem cost; `a + b` sums problems (and takes the larger of peaks).

    What the search itself costs depends on nothing but the problem, the settings and the seed:
    prompt: prompt tokens, given text included. generated: tokens sampled. samples: completions
    started from the prompt. run: tokens that the policy has to run, each counted once; a branch's
    last token is sampled but not run until something continues it. scored: the same of the reward
    model, its prompt included. flops: 2 * weights of the linear layers * these tokens, for all
    models; reward_flops: of these, the reward model's.

    Neighbours and memory decide the rest. reused: of the tokens of either model those taken from a
    cached prefix instead of run. recomputed: tokens run a second time, on top of the above, because
    memory ran out; 0 otherwise. peak_kv_tokens, peak_reward_kv_tokens: most distinct tokens holding
    KV at a time, those shared by branches counted once. drafted: draft tokens verified, accepted:
    those of them that became text, and verifications: the passes that they were verified in,
    counted for each branch; what drafting costs is part of flops.
    seconds: by phase: ``prefill``, ``decode`` (policy), ``draft``, ``sample``, ``score``: model
    time, a shared batch's split by rows; ``total``: wall clock from start to answer, other
    problems' work in between included.
    """

    prompt: int = 0
    generated: int = 0
    samples: int = 0
    run: int = 0
    scored: int = 0
    reused: int = 0
    recomputed: int = 0
    peak_kv_tokens: int = 0
    peak_reward_kv_tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    verifications: int = 0
    flops: int = 0
    reward_flops: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def acceptance_length(self) -> float:
        """Tokens from a verification, on average: the accepted drafts and one more."""
        return 1 + self.accepted / max(1, self.verifications)

    @property
    def passes_saved(self) -> int:
        """Passes that branches did not take part in because their tokens had been drafted."""
        return self.accepted

    def __add__(self, other: Usage) -> Usage:
        mine, theirs = asdict(self), asdict(other)
        merged = {
            key: max(mine[key], theirs[key]) if key.startswith("peak") else mine[key] + theirs[key]
            for key in mine
            if key != "seconds"
        }
        phases = [*mine["seconds"], *(k for k in theirs["seconds"] if k not in mine["seconds"])]
        seconds = {k: mine["seconds"].get(k, 0.0) + theirs["seconds"].get(k, 0.0) for k in phases}
        return Usage(**merged, seconds=seconds)
