"""A generative judge: it writes on a scratch branch until its verdict, which is read as a pair."""

from __future__ import annotations

import torch
from torch import Tensor

from ttc_runtime.rewards.format import Format


class Verdict:
    """Reads the verdict of a judge (ThinkPRM, Khalifa et al., 2504.16828).

    written: its format. Decoding is greedy. If what the verdict stands behind has not come within
    ``max_tokens``, or the text ends, it is put there.
    """

    def __init__(self, written: Format) -> None:
        spec = written.spec
        assert spec.verdict is not None
        self._tokenizer, self._behind = written.tokenizer, spec.verdict["behind"]
        self._forced = written._encode(self._behind)
        self._pair = [written.token(spec.head[which], 0) for which in ("good", "bad")]
        if self._pair[0] == self._pair[1]:
            raise ValueError(
                f"reward spec {spec.name}: good and bad token must begin differently, both are "
                f"{self._pair[0]}"
            )
        self.max_tokens = int(spec.verdict["max_tokens"])

    @property
    def longest(self) -> int:
        """Tokens that a verdict may take."""
        return self.max_tokens + len(self._forced)

    def advance(self, critique: list[int], logits: Tensor) -> float | list[int]:
        """The score, or the tokens to run next.

        critique: tokens written so far. logits: ``[V]``, for what follows.
        """
        # The text may end inside a token; the last few tokens are enough to look at.
        if self._behind in self._tokenizer.decode(critique[-2 * len(self._forced) - 8 :]):
            return torch.softmax(logits[self._pair].float(), 0)[0].item()
        token = int(logits.argmax())
        if len(critique) >= self.max_tokens or token == self._tokenizer.eos_token_id:
            return self._forced
        return [token]
