"""Step scores of process reward models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from . import _load  # noqa: F401  (registers the ops)
from ._check import require_dtype

__all__ = ["StepHead", "score_steps"]


@dataclass(frozen=True)
class StepHead:
    """What turns a hidden state into the score of a step.

    Made by one of the three constructors. Biases are kept in float32, matrices in their own dtype.
    All raise TypeError for a dtype other than float32, float16 or bfloat16, and ValueError for a
    wrong shape or a weight that is NaN or infinite: a checkpoint without the head leaves garbage.

    >>> head = StepHead.value(torch.zeros(8), 0.0)
    >>> score_steps(torch.ones(3, 8), torch.tensor([2], dtype=torch.int32), head).item()
    0.5
    """

    kind: str
    weights: tuple[torch.Tensor, ...]
    width: int

    @classmethod
    def two_logit(
        cls, w1: torch.Tensor, b1: torch.Tensor, w2: torch.Tensor, b2: torch.Tensor
    ) -> StepHead:
        """``softmax(w2 @ relu(w1 @ h + b1) + b2)[1]``, the head of Qwen2.5-Math-PRM (2501.07301).

        Args:
            w1: ``[I, E]``. b1: ``[I]``. w2: ``[2, I]``. b2: ``[2]``.
        """
        w1 = _weight("two_logit", "w1", w1, (None, None))
        w2 = _weight("two_logit", "w2", w2, (2, w1.shape[0]))
        b1 = _weight("two_logit", "b1", b1, (w1.shape[0],)).float()
        b2 = _weight("two_logit", "b2", b2, (2,)).float()
        return cls("two_logit", (w1, b1, w2, b2), w1.shape[1])

    @classmethod
    def value(cls, w: torch.Tensor, b: torch.Tensor | float) -> StepHead:
        """``sigmoid(w . h + b)``, a value head.

        Args:
            w: ``[E]`` or ``[1, E]``. b: one number, or a tensor of one.
        """
        row = w.reshape(1, -1) if isinstance(w, torch.Tensor) and w.dim() == 1 else w
        row = _weight("value", "w", row, (1, None))
        bias = b if isinstance(b, torch.Tensor) else torch.tensor(float(b), device=row.device)
        bias = _weight("value", "b", bias.reshape(-1), (1,)).float()
        return cls("value", (row, bias), row.shape[1])

    @classmethod
    def token_pair(cls, w_good: torch.Tensor, w_bad: torch.Tensor) -> StepHead:
        """``softmax([w_good . h, w_bad . h])[0]``: two LM head rows, as Math-Shepherd (2312.08935).

        Args:
            w_good, w_bad: ``[E]``, the output embeddings of the good and the bad token.
        """
        good = _weight("token_pair", "w_good", w_good, (None,))
        bad = _weight("token_pair", "w_bad", w_bad, (good.shape[0],))
        return cls("token_pair", (torch.stack((good, bad)),), good.shape[0])


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
    if not isinstance(head, StepHead):
        raise TypeError(f"score_steps: head must be a StepHead, got {type(head).__name__}")
    require_dtype("score_steps", "hidden", hidden)
    if hidden.dim() != 2 or hidden.shape[1] != head.width:
        raise ValueError(f"score_steps: hidden must be [T, {head.width}], got {list(hidden.shape)}")
    if isinstance(rows, np.ndarray):
        rows = torch.from_numpy(rows)
        _check_rows(rows, hidden)
        rows = rows.to(hidden.device)
    require_dtype("score_steps", "rows", rows, (torch.int32,))
    norm_weight, norm_eps = (None, 0.0) if norm is None else norm
    if norm_weight is not None:
        require_dtype("score_steps", "norm weight", norm_weight)
        norm_weight = norm_weight.float()
    return torch.ops.ttc_kernels.score_steps(
        hidden, rows, head.kind, list(head.weights), norm_weight, norm_eps
    )


def _weight(
    kind: str, name: str, weight: torch.Tensor, shape: tuple[int | None, ...]
) -> torch.Tensor:
    op = f"StepHead.{kind}"
    require_dtype(op, name, weight)
    fits = weight.dim() == len(shape) and all(
        size in (None, got) for size, got in zip(shape, weight.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{op}: {name} must be [{wanted}], got {list(weight.shape)}")
    bad = (~torch.isfinite(weight)).nonzero()
    if len(bad):
        at = bad[0].tolist()
        raise ValueError(f"{op}: {name} must be finite, got {weight[tuple(at)].item()} at {at}")
    return weight.detach().contiguous()


def _check_rows(rows: torch.Tensor, hidden: torch.Tensor) -> None:
    bad = ((rows < 0) | (rows >= len(hidden))).nonzero()
    if len(bad):
        at = int(bad[0])
        raise ValueError(
            f"score_steps: rows[{at}] must be in [0, {len(hidden)}), got {int(rows[at])}"
        )


@torch.library.register_fake("ttc_kernels::score_steps")
def _score_steps_fake(hidden, rows, kind, weights, norm_weight, norm_eps):
    return hidden.new_empty(rows.shape[0], dtype=torch.float32)


@torch.library.impl("ttc_kernels::score_steps", "CUDA")
def _score_steps_cuda(hidden, rows, kind, weights, norm_weight, norm_eps):
    op, width = "score_steps", hidden.shape[-1]
    if kind not in ("two_logit", "value", "token_pair"):
        raise ValueError(f"{op}: kind must be two_logit, value or token_pair, got {kind}")
    if hidden.dim() != 2 or (width > 1 and hidden.stride(1) != 1):
        raise ValueError(
            f"{op}: hidden must be [T, E] with a dense last dimension, got {list(hidden.shape)} "
            f"with strides {hidden.stride()}"
        )
    if rows.dim() != 1 or not rows.is_contiguous():
        raise ValueError(f"{op}: rows must be a contiguous [S], got {list(rows.shape)}")
    if norm_weight is not None and norm_weight.shape != (width,):
        raise ValueError(f"{op}: norm weight must be [{width}], got {list(norm_weight.shape)}")
    for x in (rows, *weights, *([] if norm_weight is None else [norm_weight])):
        if x.device != hidden.device or not x.is_contiguous():
            raise ValueError(
                f"{op}: rows, weights and norm weight must be contiguous on {hidden.device}, got "
                f"{list(x.shape)} on {x.device}"
            )
    from .triton.score_steps import score_steps

    return score_steps(hidden, rows, kind, weights, norm_weight, norm_eps)
