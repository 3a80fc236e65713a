"""torch's flash attention with its log-sum-exp, on the device of the tensors."""

from __future__ import annotations

import torch

from .base import Skip

# Returns out and lse.
State = tuple[torch.Tensor, torch.Tensor]


def flash(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None = None
) -> State:
    """Batched attention of [B, H, rows, D] over [B, H, n, D]; lse is [B, H, rows].

    `bias` is added to the scores, minus infinity hides.

    Raises:
        Skip: if torch has no such kernel for the dtype, or on a GPU for a bias.
    """
    if q.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=bias)
    if bias is not None or q.dtype == torch.float32:
        raise Skip("torch's CUDA flash attention takes fp16 and bf16, and no mask")
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[:2]


def varlen_flash(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q_ptr: torch.Tensor,
    k_ptr: torch.Tensor,
    longest: tuple[int, int],
    causal: bool = False,
) -> State:
    """Ragged attention on a GPU: sequences end to end; a causal one ends where its keys end.

    Args:
        q: [T, Hq, D].
        k: [n, Hkv, D].
        v: like k.
        q_ptr: int32 [sequences + 1], where each sequence's queries begin.
        k_ptr: likewise its keys.
        longest: most queries and most keys of a sequence.
        causal: whether a query sees only keys up to itself.

    Returns:
        (out, lse): [T, Hq, D] and float32 [T, Hq].
    """
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        q, k, v, q_ptr, k_ptr, *longest, 0.0, causal, False
    )
    return out, lse.transpose(0, 1)


def merge(states: list[State]) -> torch.Tensor:
    """Weigh the outputs by their share of the softmax's denominator, in float32.

    A state without keys has an lse of minus infinity; one of the states must have some.
    """
    if len(states) == 1:
        return states[0][0]
    weights = torch.stack([lse for _, lse in states]).softmax(0).unsqueeze(-1)
    merged = states[0][0] * weights[0]
    for (out, _), weight in zip(states[1:], weights[1:], strict=True):
        merged.addcmul_(out, weight)
    return merged
