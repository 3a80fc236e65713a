"""Step scores on a GPU without the CUDA kernels: checks, then Triton."""

from __future__ import annotations

import torch

from . import _load

_WEIGHTS = {"two_logit": 4, "value": 2, "raw": 2, "token_pair": 1, "softmax": 3}


def _check_score(op, hidden, rows, kind, weights, norm_weight) -> None:
    width = hidden.shape[-1]
    if len(weights) != _WEIGHTS.get(kind):
        raise ValueError(
            f"{op}: kind must be one of {tuple(_WEIGHTS)} with its number of weights, got {kind} "
            f"with {len(weights)}"
        )
    if hidden.dim() != 2 or (width > 1 and hidden.stride(1) != 1):
        raise ValueError(
            f"{op}: hidden must be [T, E] with a dense last dimension, got {list(hidden.shape)} "
            f"with strides {hidden.stride()}"
        )
    if norm_weight is not None and norm_weight.shape != (width,):
        raise ValueError(f"{op}: norm weight must be [{width}], got {list(norm_weight.shape)}")
    _check_vectors(op, hidden.device, rows=rows)
    for x in (*weights, *([] if norm_weight is None else [norm_weight])):
        if x.device != hidden.device or not x.is_contiguous():
            raise ValueError(
                f"{op}: weights and norm weight must be contiguous on {hidden.device}, got "
                f"{list(x.shape)} on {x.device}"
            )


def _check_vectors(op: str, device: torch.device, **vectors: torch.Tensor) -> None:
    for name, x in vectors.items():
        if x.dim() != 1 or not x.is_contiguous() or x.device != device:
            raise ValueError(
                f"{op}: {name} must be contiguous with one dimension on {device}, got "
                f"{list(x.shape)} on {x.device}"
            )


def _check_paths(op, num_steps, device, parent, carry_stats, carry_state) -> None:
    _check_vectors(op, device, parent=parent)
    if len(parent) != num_steps:
        raise ValueError(f"{op}: parent must be [{num_steps}], got {list(parent.shape)}")
    if (carry_stats is None) != (carry_state is None):
        raise ValueError(f"{op}: carry must have both stats and state")
    if carry_stats is not None:
        wanted = [(4, carry_stats.shape[-1]), (3, carry_stats.shape[-1])]
        if [carry_stats.shape, carry_state.shape] != wanted:
            raise ValueError(
                f"{op}: carry must be [4, C] and [3, C], got {list(carry_stats.shape)} and "
                f"{list(carry_state.shape)}"
            )
        for x in (carry_stats, carry_state):
            if x.device != device or not x.is_contiguous():
                raise ValueError(f"{op}: carry must be contiguous on {device}")


def _check_groups(op, device, group_indptr, k) -> None:
    _check_vectors(op, device, group_indptr=group_indptr)
    if len(group_indptr) < 1 or k < 1:
        raise ValueError(
            f"{op}: group_indptr needs an entry and k must be >= 1, got {len(group_indptr)} "
            f"entries and k = {k}"
        )


def _score_steps(hidden, rows, kind, weights, norm_weight, norm_eps):
    _check_score("score_steps", hidden, rows, kind, weights, norm_weight)
    from .triton.score_steps import score_steps

    return score_steps(hidden, rows, kind, weights, norm_weight, norm_eps)


def _aggregate_steps(scores, parent, carry_stats, carry_state):
    _check_vectors("aggregate_steps", scores.device, scores=scores)
    _check_paths("aggregate_steps", len(scores), scores.device, parent, carry_stats, carry_state)
    from .triton.step_paths import aggregate_steps

    return aggregate_steps(scores, parent, carry_stats, carry_state)


def _select_topk(scores, group_indptr, k):
    _check_vectors("select_topk", scores.device, scores=scores)
    _check_groups("select_topk", scores.device, group_indptr, k)
    from .triton.step_paths import select_topk

    return select_topk(scores, group_indptr, k)


def _score_round(
    hidden, rows, kind, weights, norm_weight, norm_eps, parent, carry_stats, carry_state,
    group_indptr, k, by,
):  # fmt: skip
    op = "score_round"
    _check_score(op, hidden, rows, kind, weights, norm_weight)
    _check_paths(op, len(rows), hidden.device, parent, carry_stats, carry_state)
    _check_groups(op, hidden.device, group_indptr, k)
    from .triton.score_steps import score_round

    return score_round(
        hidden, rows, kind, weights, norm_weight, norm_eps, parent, carry_stats, carry_state,
        group_indptr, k, by,
    )  # fmt: skip


for _name, _run in (
    ("score_steps", _score_steps),
    ("aggregate_steps", _aggregate_steps),
    ("select_topk", _select_topk),
    ("score_round", _score_round),
):
    if not _load.has_cuda_kernel(_name):
        torch.library.impl(f"ttc_kernels::{_name}", "CUDA")(_run)
