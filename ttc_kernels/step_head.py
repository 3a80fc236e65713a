"""The heads of process reward models."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ._check import require_dtype

__all__ = ["StepHead"]


@dataclass(frozen=True)
class StepHead:
    """What turns a hidden state into the score of a step.

    Made by one of the five constructors. Biases are kept in float32, matrices in their own dtype.
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
    def raw(cls, w: torch.Tensor, b: torch.Tensor | float) -> StepHead:
        """``w . h + b``, not squashed: outcome reward models, trained on pairs, have no scale.

        Args:
            w, b: as for `value`.
        """
        head = cls.value(w, b)
        return cls("raw", head.weights, head.width)

    @classmethod
    def token_pair(cls, w_good: torch.Tensor, w_bad: torch.Tensor) -> StepHead:
        """``softmax([w_good . h, w_bad . h])[0]``: two LM head rows, as Math-Shepherd (2312.08935).

        Args:
            w_good, w_bad: ``[E]``, the output embeddings of the good and the bad token.
        """
        good = _weight("token_pair", "w_good", w_good, (None,))
        bad = _weight("token_pair", "w_bad", w_bad, (good.shape[0],))
        return cls("token_pair", (torch.stack((good, bad)),), good.shape[0])

    @classmethod
    def softmax(
        cls, w: torch.Tensor, b: torch.Tensor | None = None, good: tuple[int, ...] = (1,)
    ) -> StepHead:
        """``sum(softmax(w @ h + b)[good])``: the probability of the good ones among some outputs.

        Two labels of a token classifier (TRL's PRMTrainer), the rating tokens of PRM800K
        (2305.20050), or all rows of an LM head; the logits are never written out.

        Args:
            w: ``[K, E]``. b: ``[K]`` or None. good: the outputs that count, in ``[0, K)``.
        """
        w = _weight("softmax", "w", w, (None, None))
        b = torch.zeros(len(w), device=w.device) if b is None else b
        b = _weight("softmax", "b", b, (len(w),)).float()
        if not isinstance(good, tuple | list):
            raise TypeError(f"StepHead.softmax: good must be a tuple, got {type(good).__name__}")
        if not good or not all(0 <= i < len(w) for i in good):
            raise ValueError(
                f"StepHead.softmax: good must name outputs in [0, {len(w)}), got {good}"
            )
        mask = torch.zeros(len(w), device=w.device)
        mask[list(good)] = 1.0
        return cls("softmax", (w, b, mask), w.shape[1])

    def to(self, device: torch.device | str) -> StepHead:
        """The same head on a device."""
        return StepHead(self.kind, tuple(w.to(device) for w in self.weights), self.width)


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
