"""Step scores, one formula per kind of head; aggregates along paths; the best of each group."""

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
    if head.kind in ("value", "raw"):
        w, b = weights
        z = (h @ w.T + b)[:, 0]
        return torch.sigmoid(z) if head.kind == "value" else z
    if head.kind == "softmax":
        w, b, good = weights
        return torch.softmax(h @ w.T + b, dim=-1) @ good
    (w,) = weights
    return torch.softmax(h @ w.T, dim=-1)[:, 0]


def aggregate_steps(scores: torch.Tensor, parent: torch.Tensor) -> torch.Tensor:
    """As `ttc_kernels.aggregate_steps` without a carry: min, prod, mean, last as fp64 ``[4, S]``.

    >>> aggregate_steps(torch.tensor([0.5, 0.5]), torch.tensor([-1, 0]))[1].tolist()
    [0.5, 0.25]
    """
    values = torch.where((scores >= 0) & (scores <= 1), scores.double(), torch.nan)
    out = torch.empty((4, len(scores)), dtype=torch.float64)
    for i in range(len(scores)):
        path, at = [], i
        while at >= 0:
            path.append(values[at])
            at = int(parent[at])
        steps = torch.stack(path)
        out[:, i] = torch.stack((steps.min(), steps.prod(), steps.mean(), scores[i].double()))
    return out


def select_topk(scores: torch.Tensor, group_indptr: torch.Tensor, k: int) -> torch.Tensor:
    """As `ttc_kernels.select_topk`, by Python's stable sort.

    >>> select_topk(torch.tensor([0.1, 0.9, 0.9]), torch.tensor([0, 3]), 2).tolist()
    [[1, 2]]
    """
    bounds = group_indptr.tolist()
    out = torch.full((len(bounds) - 1, k), -1, dtype=torch.int32)
    worst = (1, 0.0)
    for g in range(len(out)):
        key = lambda i: worst if scores[i] != scores[i] else (0, -scores[i].item())  # noqa: E731
        best = sorted(range(bounds[g], bounds[g + 1]), key=key)[:k]
        out[g, : len(best)] = torch.tensor(best, dtype=torch.int32)
    return out
