"""Attention over a set of keys from attention over its parts."""

from __future__ import annotations

import torch


def merge_states(outs: torch.Tensor, lses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As `ttc_kernels.merge_states`, in fp64: the mean of ``outs`` weighted by ``exp(lses)``.

    Args:
        outs: ``[n, T, Hq, D]``. lses: ``[n, T, Hq]``, natural log, ``-inf`` for an empty state.

    >>> out, lse = merge_states(torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1), torch.zeros(2, 1, 1))
    >>> out.item(), round(lse.item(), 4)
    (2.0, 0.6931)
    """
    lses = lses.double()
    lse = torch.logsumexp(lses, dim=0)
    empty = lses == -torch.inf
    weights = torch.where(empty, 0.0, torch.exp(lses - lse)).unsqueeze(-1)
    # An empty state's output counts for nothing, even if it is not a number.
    out = (weights * torch.where(empty.unsqueeze(-1), 0.0, outs.double())).sum(dim=0)
    return out, lse
