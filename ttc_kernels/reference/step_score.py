"""Step scores, one formula per kind of head."""

from __future__ import annotations

import torch

from ..step_score import StepHead


def score_steps(
    hidden: torch.Tensor,
    rows: torch.Tensor,
    head: StepHead,
    *,
    norm: tuple[torch.Tensor, float] | None = None,
) -> torch.Tensor:
    """As `ttc_kernels.score_steps`, in fp64.

    >>> score_steps(torch.ones(1, 2), torch.tensor([0]), StepHead.value(torch.zeros(2), 0.0)).item()
    0.5
    """
    h = hidden[rows.long()].double()
    if norm is not None:
        weight, eps = norm
        h = h * torch.rsqrt(h.square().mean(dim=-1, keepdim=True) + eps) * weight.double()
    weights = [weight.double() for weight in head.weights]
    if head.kind == "two_logit":
        w1, b1, w2, b2 = weights
        return torch.softmax(torch.relu(h @ w1.T + b1) @ w2.T + b2, dim=-1)[:, 1]
    if head.kind == "value":
        w, b = weights
        return torch.sigmoid(h @ w.T + b)[:, 0]
    (w,) = weights
    return torch.softmax(h @ w.T, dim=-1)[:, 0]
