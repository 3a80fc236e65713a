"""What the rules of verification give."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .draft_tree import DraftTree

__all__ = ["VerifyResult"]


@dataclass(frozen=True)
class VerifyResult:
    """What a verification gives, ``width`` as in `DraftTree`: more columns than drafts on a path.

    num_accepted: int32 ``[B]``, accepted drafts, without the last token; -1 for padding. tokens:
    int32 ``[B, width]``, the accepted drafts and the token that follows them, then -1. path: int32
    ``[B, width]``, the node whose row gave the token beside it, then -1: ``path[b, i]`` is node 0
    and then the accepted nodes. logprobs: float32 ``[B, width]``, of the tokens in the filtered
    distribution, or None: not wanted. status: int32 ``[B]``: 0, or 1 where the path came to a row
    without a distribution (a NaN, a +inf, or nothing above -inf): its token is -1, those before it
    are good; or 2 where the nodes are no tree and nothing was done.
    """

    num_accepted: torch.Tensor
    tokens: torch.Tensor
    path: torch.Tensor
    logprobs: torch.Tensor | None
    status: torch.Tensor

    @classmethod
    def empty(cls, tree: DraftTree, *, logprobs: bool = True) -> VerifyResult:
        """Tensors for the results of a tree, to be given as ``out``.

        Args:
            logprobs: False leaves them out. They are what takes longest on a CPU: without them most
                rows need no sum over the vocabulary.
        """
        b, device = tree.num_requests, tree.device
        return cls(
            torch.full((b,), -1, dtype=torch.int32, device=device),
            torch.full((b, tree.width), -1, dtype=torch.int32, device=device),
            torch.full((b, tree.width), -1, dtype=torch.int32, device=device),
            torch.zeros((b, tree.width), device=device) if logprobs else None,
            torch.zeros((b,), dtype=torch.int32, device=device),
        )
