"""What drafts were drawn from: rows of logits, or short lists of tokens."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from .fp32_math import exp_fp32
from .row_dist import Rows, has_distribution, logits_of, probability, row_dist

LISTED = tl.constexpr(256)  # tokens of a list at a time


class DraftRows(NamedTuple):
    """The tensors of `DraftDistribution`, as a kernel takes them."""

    dense: Any  # Rows; their logits None: not dense
    ids: Any  # [num_rows, width], or None; neither: all drafts were chosen
    logprobs: Any
    width: Any
    rows: Any  # of each node, or None: the node's own
    num_rows: Any

    @classmethod
    def of(
        cls,
        logits: torch.Tensor | None,
        desc: torch.Tensor | None,
        ids: torch.Tensor | None,
        logprobs: torch.Tensor | None,
        rows: torch.Tensor | None,
    ) -> DraftRows:
        if logits is not None and desc is not None:
            return cls(Rows.of(logits, desc), None, None, 0, rows, len(logits))
        nothing = Rows(None, 0, 0, None, None)
        if ids is not None:
            return cls(nothing, ids, logprobs, ids.shape[1], rows, len(ids))
        return cls(nothing, None, None, 0, None, 0)


@triton.jit
def draft_row(draft, row):
    """Which of the rows the children of a node were drawn from; -1 for none."""
    r = row
    if draft.rows is not None:
        r = tl.load(draft.rows + row).to(tl.int64)
    r = tl.where((r >= 0) & (r < draft.num_rows), r, -1)
    if draft.dense.logits is not None:
        r = tl.where(has_distribution(draft.dense, r), r, -1)
    return r


@triton.jit
def _listed(draft, at, inside):
    """Tokens of lists and their probabilities; -1 and 0 for none."""
    token = tl.load(draft.ids + at, mask=inside, other=-1)
    logprob = tl.load(draft.logprobs + at, mask=inside, other=float("-inf"))
    q = exp_fp32(tl.where(logprob < 0.0, logprob, 0.0))
    return token, tl.where(inside & (token >= 0) & (logprob > -80.0), q, 0.0)


@triton.jit
def list_block(draft, r, start):
    lane = start + tl.arange(0, LISTED)
    return _listed(draft, r * draft.width + lane, lane < draft.width)


@triton.jit
def draft_probability(draft, r, token):
    """q of one token, in a row that is there."""
    if draft.dense.logits is not None:
        logit = logits_of(draft.dense, r, token)
        q = probability(row_dist(draft.dense, r), logit, token)
    elif draft.ids is not None:
        q = tl.full([], 0.0, tl.float32)
        for start in tl.range(0, draft.width, LISTED):
            listed, share = list_block(draft, r, start)
            q += tl.sum(tl.where(listed == token, share, 0.0))
    else:
        q = tl.full([], 0.0, tl.float32)
    return q


@triton.jit
def draft_probabilities(draft, r, index):
    """q of a tile of tokens, in a row that is there."""
    if draft.dense.logits is not None:
        q = probability(row_dist(draft.dense, r), logits_of(draft.dense, r, index), index)
    else:
        q = tl.zeros(index.shape, tl.float32)
        if draft.ids is not None:
            for i in range(draft.width):
                listed, share = _listed(draft, r * draft.width + i, i >= 0)
                q = tl.where(index == listed, share, q)
    return q
