"""What a search may spend, and what it did spend."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Budget:
    """Limits of one problem's whole search tree; None is no limit.

    tokens: tokens generated, over all branches. samples: completions started from the prompt.
    seconds: wall clock from the problem's start. scored_tokens: tokens run through the reward
    model. The meaning is the same for every strategy. When one runs out, growing branches stop
    with ``stop_reason`` ``budget`` and the strategy answers with what it has. Tokens, samples
    and scored tokens are never exceeded, seconds by at most one forward pass. Raises ValueError
    for a limit that is not positive.

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


@dataclass
class Usage:
    """What one problem cost; `a + b` sums problems (and takes the larger of peaks).

    prompt: prompt tokens run through the policy, given text included, cached prefixes not.
    generated: tokens sampled. samples: completions started from the prompt. run: tokens run
    through the policy; a branch's last token is sampled but not run until something continues
    it. scored: tokens run through the reward model, its prompt included. reused: policy and
    reward tokens taken from a prefix that another problem computed. recomputed: tokens, of
    either model, run a second time because memory ran out; 0 otherwise. peak_kv_tokens,
    peak_reward_kv_tokens: most distinct tokens holding KV at a time, those shared by branches
    counted once. drafted: draft tokens verified, accepted: those of them that became text, and
    verifications: the passes that they were verified in, counted for each branch. flops: 2 *
    weights of the linear layers * tokens run, for all models; reward_flops: of these, the
    reward model's.
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
