"""Step scores of process reward models, their aggregates along paths, and who survives."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from . import _load, _step_score_gpu  # noqa: F401  (register the ops)
from ._check import require_dtype
from .step_head import StepHead

__all__ = [
    "StepAggregates",
    "StepHead",
    "StepRound",
    "aggregate_steps",
    "score_round",
    "score_steps",
    "select_topk",
]

AGGREGATES = ("min", "prod", "mean", "last")


@dataclass(frozen=True)
class StepAggregates:
    """What `aggregate_steps` gives: one number per step for the path that ends with it.

    min, prod, mean, last: float32 ``[S]``. stats, state: all of them as ``[4, S]``, and the sums to
    carry on from, int64 ``[3, S]``.
    """

    stats: torch.Tensor
    state: torch.Tensor

    @property
    def min(self) -> torch.Tensor:
        return self.stats[0]

    @property
    def prod(self) -> torch.Tensor:
        return self.stats[1]

    @property
    def mean(self) -> torch.Tensor:
        return self.stats[2]

    @property
    def last(self) -> torch.Tensor:
        return self.stats[3]

    def __getitem__(self, steps: torch.Tensor) -> StepAggregates:
        """Of some steps only (int ``[n]``), such as the survivors, to carry into the next round."""
        chosen = steps.long()
        return StepAggregates(
            self.stats[:, chosen].contiguous(), self.state[:, chosen].contiguous()
        )


@dataclass(frozen=True)
class StepRound:
    """What `score_round` gives: scores float32 ``[S]``, aggregates, selected int32 ``[G, k]``."""

    scores: torch.Tensor
    aggregates: StepAggregates
    selected: torch.Tensor


def score_steps(
    hidden: torch.Tensor,
    rows: torch.Tensor | np.ndarray,
    head: StepHead,
    *,
    norm: tuple[torch.Tensor, float] | None = None,
) -> torch.Tensor:
    """Scores of the steps that end at the given rows of the hidden states.

    Gathers the rows, normalises them, applies the head, all in fp32; each weight is read once. The
    score of a row has the same bits whichever rows are scored with it.

    Args:
        hidden: ``[T, E]`` float32, float16 or bfloat16; a dense last dimension.
        rows: int32 ``[S]`` in ``[0, T)``; may repeat.
        head: a `StepHead` of width ``E``.
        norm: ``(weight [E], eps)`` of an RMS norm to apply first, for hidden states taken before
            the final norm of the model.

    Returns:
        float32 ``[S]``, each in ``[0, 1]``; NaN where the hidden state holds NaN.

    Raises:
        TypeError: for a wrong dtype. ValueError: for a wrong shape, device or row; rows in a tensor
            on a GPU are not looked at, that would wait for the GPU.

    >>> head = StepHead.token_pair(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    >>> score_steps(torch.eye(2), torch.tensor([0, 1], dtype=torch.int32), head).round(decimals=3)
    tensor([0.7310, 0.2690])
    """
    arguments = _score_arguments("score_steps", hidden, rows, head, norm)
    return torch.ops.ttc_kernels.score_steps(*arguments)


def aggregate_steps(
    scores: torch.Tensor,
    parent: torch.Tensor | np.ndarray,
    carry: StepAggregates | None = None,
) -> StepAggregates:
    """Minimum, product, mean and last score of the path to each step, along parent links.

    Products are sums of logarithms, and all sums are integers in units of 2**-32: a path has the
    same bits whether its steps come in one call or carried over, and on every backend.

    Args:
        scores: float32 ``[S]`` in ``[0, 1]``; anything else counts as NaN, which spreads to min,
            prod and mean of every path through it.
        parent: int32 ``[S]``: -1 for a first step, else an earlier step. With ``carry`` of ``C``
            entries, ``0..C-1`` are those and ``C + i`` is step ``i`` of this call.
        carry: what an earlier call gave, or some of it (``aggregates[survivors]``).

    Raises:
        TypeError: for a wrong dtype. ValueError: for a wrong shape or link; links in a tensor on a
            GPU are not looked at, that would wait for the GPU: a wrong one gives NaN.

    >>> scores = torch.tensor([0.5, 0.5, 1.0])
    >>> aggregate_steps(scores, torch.tensor([-1, 0, 0], dtype=torch.int32)).prod
    tensor([0.5000, 0.2500, 0.5000])
    """
    require_dtype("aggregate_steps", "scores", scores, (torch.float32,))
    links = _int32("aggregate_steps", "parent", parent, scores.device)
    return StepAggregates(
        *torch.ops.ttc_kernels.aggregate_steps(scores.contiguous(), links, *_carried(carry))
    )


def select_topk(
    scores: torch.Tensor, group_indptr: torch.Tensor | np.ndarray, k: int
) -> torch.Tensor:
    """The k best scores of each group, best first; ties go to the lower index, NaN comes last.

    Args:
        scores: float32 ``[S]``. group_indptr: int32 ``[G + 1]``: group ``g`` holds the scores from
            ``group_indptr[g]`` up to ``group_indptr[g + 1]``. k: at least 1.

    Returns:
        int32 ``[G, k]``, indices into scores, filled up with -1 where a group is smaller.

    Raises:
        TypeError, ValueError: as for `aggregate_steps`.

    >>> select_topk(torch.tensor([0.1, 0.9, 0.9]), torch.tensor([0, 3], dtype=torch.int32), 2)
    tensor([[1, 2]], dtype=torch.int32)
    """
    require_dtype("select_topk", "scores", scores, (torch.float32,))
    groups = _int32("select_topk", "group_indptr", group_indptr, scores.device)
    return torch.ops.ttc_kernels.select_topk(scores.contiguous(), groups, k)


def score_round(
    hidden: torch.Tensor,
    rows: torch.Tensor | np.ndarray,
    head: StepHead,
    parent: torch.Tensor | np.ndarray,
    group_indptr: torch.Tensor | np.ndarray,
    k: int,
    *,
    by: str = "min",
    carry: StepAggregates | None = None,
    norm: tuple[torch.Tensor, float] | None = None,
) -> StepRound:
    """A round of beam search in one launch: `score_steps`, `aggregate_steps` and `select_topk`.

    The bits are those of the three ops called one after the other.

    Args:
        hidden, rows, head, norm: as for `score_steps`. parent, carry: as for `aggregate_steps`.
            group_indptr, k: as for `select_topk`. by: the aggregate that decides, ``min``,
            ``prod``, ``mean`` or ``last``.

    Raises:
        TypeError, ValueError: as those three.

    >>> head, one = StepHead.value(torch.ones(1), 0.0), torch.zeros(1, dtype=torch.int32)
    >>> groups = torch.tensor([0, 1], dtype=torch.int32)
    >>> score_round(torch.zeros(1, 1), one, head, one - 1, groups, 1).selected
    tensor([[0]], dtype=torch.int32)
    """
    op = "score_round"
    if by not in AGGREGATES:
        raise ValueError(f"{op}: by must be one of {AGGREGATES}, got {by!r}")
    scores, stats, state, selected = torch.ops.ttc_kernels.score_round(
        *_score_arguments(op, hidden, rows, head, norm),
        _int32(op, "parent", parent, hidden.device),
        *_carried(carry),
        _int32(op, "group_indptr", group_indptr, hidden.device),
        k,
        AGGREGATES.index(by),
    )
    return StepRound(scores, StepAggregates(stats, state), selected)


def _score_arguments(op: str, hidden, rows, head, norm) -> tuple:
    """Checked arguments of the op `score_steps`."""
    if not isinstance(head, StepHead):
        raise TypeError(f"{op}: head must be a StepHead, got {type(head).__name__}")
    require_dtype(op, "hidden", hidden)
    if hidden.dim() != 2 or hidden.shape[1] != head.width:
        raise ValueError(f"{op}: hidden must be [T, {head.width}], got {list(hidden.shape)}")
    if isinstance(rows, np.ndarray):
        rows = torch.from_numpy(rows)
        bad = ((rows < 0) | (rows >= len(hidden))).nonzero()
        if len(bad):
            at = int(bad[0])
            raise ValueError(f"{op}: rows[{at}] must be in [0, {len(hidden)}), got {int(rows[at])}")
    rows = _int32(op, "rows", rows, hidden.device)
    if norm is not None and not (isinstance(norm, tuple) and len(norm) == 2):
        raise TypeError(f"{op}: norm must be (weight, eps), got {type(norm).__name__}")
    norm_weight, norm_eps = (None, 0.0) if norm is None else norm
    if norm_weight is not None:
        require_dtype(op, "norm weight", norm_weight)
        norm_weight = norm_weight.float()
        if not 0 <= norm_eps < math.inf:
            raise ValueError(f"{op}: norm eps must be >= 0 and finite, got {norm_eps}")
    return hidden, rows, head.kind, list(head.weights), norm_weight, norm_eps


def _int32(op: str, name: str, values, device: torch.device) -> torch.Tensor:
    if isinstance(values, np.ndarray):
        values = torch.from_numpy(values).to(device)
    require_dtype(op, name, values, (torch.int32,))
    return values


def _carried(carry: StepAggregates | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    return (None, None) if carry is None else (carry.stats, carry.state)


@torch.library.register_fake("ttc_kernels::score_steps")
def _score_steps_fake(hidden, rows, kind, weights, norm_weight, norm_eps):
    return hidden.new_empty(rows.shape[0], dtype=torch.float32)


@torch.library.register_fake("ttc_kernels::aggregate_steps")
def _aggregate_steps_fake(scores, parent, carry_stats, carry_state):
    n = scores.shape[0]
    return scores.new_empty((4, n)), scores.new_empty((3, n), dtype=torch.int64)


@torch.library.register_fake("ttc_kernels::select_topk")
def _select_topk_fake(scores, group_indptr, k):
    return scores.new_empty((group_indptr.shape[0] - 1, k), dtype=torch.int32)


@torch.library.register_fake("ttc_kernels::score_round")
def _score_round_fake(
    hidden, rows, kind, weights, norm_weight, norm_eps, parent, carry_stats, carry_state,
    group_indptr, k, by,
):  # fmt: skip
    scores = _score_steps_fake(hidden, rows, kind, weights, norm_weight, norm_eps)
    stats, state = _aggregate_steps_fake(scores, parent, carry_stats, carry_state)
    return scores, stats, state, _select_topk_fake(scores, group_indptr, k)
