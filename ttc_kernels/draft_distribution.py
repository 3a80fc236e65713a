"""What drafts were drawn from, for the rules that have to know."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ._check import require_dtype

__all__ = ["DraftDistribution"]

_PROPOSALS = {"one_hot": 0, "iid": 1, "without_replacement": 2}


@dataclass(frozen=True)
class DraftDistribution:
    """What drafts were drawn from, and how. Made by one of the three constructors.

    It has to be the very distribution that was drawn from, after temperature and filters, and
    siblings have to stand in the order in which they were drawn: both are part of the rules.
    """

    proposal: str | torch.Tensor
    logits: torch.Tensor | None = None
    desc: torch.Tensor | None = None
    ids: torch.Tensor | None = None
    logprobs: torch.Tensor | None = None
    rows: torch.Tensor | None = None

    @classmethod
    def one_hot(cls) -> DraftDistribution:
        """Drafts that were chosen, not drawn: the likeliest tokens, n-grams, a beam."""
        return cls("one_hot")

    @classmethod
    def dense(
        cls,
        logits: torch.Tensor,
        desc: torch.Tensor,
        proposal: str | torch.Tensor = "iid",
        rows: torch.Tensor | None = None,
    ) -> DraftDistribution:
        """Drafts drawn from logits.

        Args:
            logits: ``[R, V]`` of the draft model, over the target's vocabulary.
            desc: of these logits, from `row_descriptor`.
            proposal: ``iid`` (with replacement), ``without_replacement`` or ``one_hot``; or int8
                ``[N]`` of 1, 2 and 0 for each node. One child drawn and the others chosen (a
                hybrid) is best verified with the drawn one first.
            rows: int32 ``[N]``, the row that each node's children were drawn from, -1 for none; by
                default there is a row for every node.
        """
        return cls(proposal, logits=logits, desc=desc, rows=rows)

    @classmethod
    def sparse(
        cls,
        ids: torch.Tensor,
        logprobs: torch.Tensor,
        proposal: str | torch.Tensor = "iid",
        rows: torch.Tensor | None = None,
    ) -> DraftDistribution:
        """Drafts drawn from a few tokens; no others have any probability.

        Args:
            ids: int32 ``[R, K]``, distinct, -1 for none. logprobs: float32 ``[R, K]``; the
                probabilities of a row sum to 1. proposal, rows: as for `dense`.
        """
        return cls(proposal, ids=ids, logprobs=logprobs, rows=rows)

    def _of_nodes(self, op: str, n: int, device: torch.device) -> torch.Tensor | None:
        """How the children of each of `n` nodes were drawn, as the op takes it."""
        given = self.proposal
        if isinstance(given, str) and given == "one_hot":
            return None
        if isinstance(given, torch.Tensor | np.ndarray):
            codes = torch.as_tensor(given)
            # The op looks at the values; other dtypes could wrap around on the way to it.
            require_dtype(op, "draft.proposal", codes, (torch.int8,))
            return codes.to(device).contiguous()
        if not isinstance(given, str) or given not in _PROPOSALS:
            raise ValueError(f"{op}: draft.proposal must be one of {[*_PROPOSALS]}, got {given!r}")
        return torch.full((n,), _PROPOSALS[given], dtype=torch.int8, device=device)
