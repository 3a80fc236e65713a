"""Tree attention over paged caches, and the algebra of its partial results."""

from __future__ import annotations

import math

import torch

from . import _load
from ._attention_input import (
    OP,
    check_tensor,
    check_triton,
    resolve_backend,
    split_scale,
)
from ._plan import TreeAttentionPlan

__all__ = ["merge_states", "tree_attention"]

_BACKENDS = ("auto", "cpu", "cuda", "triton")

torch.library.define(
    "ttc_kernels::tree_attention_triton",
    "(Tensor q, Tensor k_cache, Tensor v_cache, Tensor plan, Tensor(a!) workspace, "
    "float sm_scale, float logits_soft_cap, float v_scale, Tensor? k_scales, Tensor? v_scales, "
    "Tensor(b!) out, Tensor(c!) lse) -> ()",
)


@torch.library.impl("ttc_kernels::tree_attention_triton", ("CPU", "CUDA"))
def _triton(
    q, k_cache, v_cache, plan, workspace, sm_scale, logits_soft_cap, v_scale, k_scales, v_scales,
    out, lse,
):  # fmt: skip
    """The op behind backend="triton"; it may be captured in a CUDA graph."""
    check_triton(q, k_cache, v_cache, plan, workspace, k_scales, v_scales, out, lse)
    from .triton.tree_attention import tree_attention as launch

    launch(
        q, k_cache, v_cache, plan, workspace, sm_scale, logits_soft_cap, v_scale, k_scales,
        v_scales, out, lse,
    )  # fmt: skip


@torch.library.register_fake("ttc_kernels::tree_attention_triton")
def _(
    q, k_cache, v_cache, plan, workspace, sm_scale, logits_soft_cap, v_scale, k_scales, v_scales,
    out, lse,
):  # fmt: skip
    return None


@torch.library.register_fake("ttc_kernels::tree_attention")
def _(
    q, k_cache, v_cache, plan, workspace, counters, sm_scale, logits_soft_cap, v_scale, k_scales,
    v_scales, out, lse,
):  # fmt: skip
    return None


@torch.library.register_fake("ttc_kernels::merge_states")
def _(outs, lses):
    return outs.new_empty(outs.shape[1:]), lses.new_empty(lses.shape[1:])


def _merge_states_in_torch(outs, lses):
    """For a GPU without the CUDA kernels: in order and in fp32, empty states are not read."""
    top = lses.amax(dim=0)
    empty = lses == -math.inf
    weights = torch.where(empty, 0.0, torch.exp(lses - torch.where(top == -math.inf, 0.0, top)))
    out = torch.zeros(outs.shape[1:], dtype=torch.float32, device=outs.device)
    total = torch.zeros_like(top)
    for part, weight, skip in zip(outs, weights, empty, strict=True):
        out += weight[..., None] * torch.where(skip[..., None], 0.0, part.float())
        total += weight
    out *= torch.where(total == 0, 0.0, 1 / total)[..., None]
    lse = torch.where(total == 0, -math.inf, top + torch.log(total))
    return out.to(outs.dtype), lse


if not _load.has_cuda_kernel("merge_states"):
    torch.library.impl("ttc_kernels::merge_states", "CUDA")(_merge_states_in_torch)


def tree_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    plan: TreeAttentionPlan,
    *,
    sm_scale: float | None = None,
    logits_soft_cap: float = 0.0,
    k_scale: float | torch.Tensor | None = None,
    v_scale: float | torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of every query over its own path through a forest of shared pages.

    `out[t] = softmax(q[t] K^T * sm_scale) V` over the keys that token t sees; scores and sums are
    fp32. A token that sees nothing gets `out = 0`, `lse = -inf`. The exact online softmax of
    FlashAttention (Dao et al., 2022), applied to rectangles of the tree as the plan cut it.

    Args:
        q: [T, Hq, D], the query tokens in the order of the planned rows; any strides, D contiguous.
        k_cache: [P, page_size, Hkv, D], same dtype or float8_e4m3fn, as planned; the new tokens'
            keys are already written.
        v_cache: like k_cache.
        plan: from `plan_tree_attention` with the same head counts, page size, dtypes and device.
        sm_scale: factor on the scores, positive; default 1/sqrt(D).
        logits_soft_cap: scores become `cap * tanh(score / cap)` if positive; 0 = off.
        k_scale, v_scale: for float8 caches, what their elements are to be multiplied by: a positive
            number, or float32 [Hkv] of positive numbers (not checked) on the device; default 1.
        out: [T, Hq, D] to write into; default new.
        lse: float32 [T, Hq] to write into; default new.
        backend: "auto" takes "cpu" for a plan on the CPU; on a GPU "cuda" (float16 and bfloat16,
            compute capability 8.0 or newer), or "triton" where that is not to be had: `backends()`
            says why. "triton" on the CPU runs in its interpreter, for tests (TRITON_INTERPRET=1).

    Returns:
        (out, lse): out like q; lse float32 [T, Hq], natural logarithm of the sum of exponentials.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what was given, before
            anything is written.
        RuntimeError: the CUDA kernel could not be launched, with the cause.

    Example:
        >>> plan = plan_tree_attention([[0, 1], [0, 2]], [20, 24], page_size=16, num_q_heads=8,
        ...     num_kv_heads=2, head_dim=64, dtype=torch.float32)
        >>> k_cache, v_cache = torch.randn(2, 3, 16, 2, 64)
        >>> out, lse = tree_attention(torch.randn(2, 8, 64), k_cache, v_cache, plan)
        >>> out.shape, lse.shape
        (torch.Size([2, 8, 64]), torch.Size([2, 8]))
    """
    if not isinstance(plan, TreeAttentionPlan):
        raise TypeError(f"{OP}: plan must be a TreeAttentionPlan, got {type(plan).__name__}")
    if backend not in _BACKENDS:
        raise ValueError(f"{OP}: backend must be one of {_BACKENDS}, got {backend!r}")
    backend = resolve_backend(backend, plan)
    o = plan._options
    heads, dim = o["num_q_heads"], o["head_dim"]
    check_tensor("q", q, (plan.num_queries, heads, dim), plan.dtype, plan.device)
    cache_shape = (None, o["page_size"], o["num_kv_heads"], dim)
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        check_tensor(name, cache, cache_shape, plan.kv_dtype, plan.device)
        if cache.shape[0] <= plan.max_page:
            raise ValueError(
                f"{OP}: {name} must hold every planned page, the largest is {plan.max_page}, "
                f"got {cache.shape[0]} pages"
            )
    k_number, k_scales = split_scale("k_scale", k_scale, plan)
    v_number, v_scales = split_scale("v_scale", v_scale, plan)
    scale = 1 / math.sqrt(dim) if sm_scale is None else float(sm_scale)
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"{OP}: sm_scale must be positive and finite, got {sm_scale}")
    if not (math.isfinite(logits_soft_cap) and logits_soft_cap >= 0):
        raise ValueError(f"{OP}: logits_soft_cap must be >= 0 and finite, got {logits_soft_cap}")
    if out is None:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    else:
        check_tensor("out", out, tuple(q.shape), plan.dtype, plan.device)
    if lse is None:
        lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    else:
        check_tensor("lse", lse, tuple(q.shape[:2]), torch.float32, plan.device)
        if not lse.is_contiguous():
            raise ValueError(f"{OP}: lse must be contiguous, got strides {lse.stride()}")
    if backend == "cpu":
        torch.ops.ttc_kernels.tree_attention(
            q, k_cache, v_cache, plan.buffer, None, None, scale, logits_soft_cap, 1.0, None, None,
            out, lse,
        )  # fmt: skip
        return out, lse
    plan = plan.without_folds()
    floats = plan.capacity.partials * heads * (dim + 2)
    workspace = plan.workspace if plan.workspace is not None else torch.empty(floats)
    if workspace.numel() < floats:
        raise ValueError(
            f"{OP}: plan.workspace must have {floats} floats for {plan.capacity.partials} "
            f"partials, got {workspace.numel()}"
        )
    scaling = scale * k_number, logits_soft_cap, v_number, k_scales, v_scales
    if backend == "cuda":
        torch.ops.ttc_kernels.tree_attention(
            q, k_cache, v_cache, plan.buffer, workspace, plan.counters, *scaling, out, lse
        )
    else:
        torch.ops.ttc_kernels.tree_attention_triton(
            q, k_cache, v_cache, plan.buffer, workspace, *scaling, out, lse
        )
    return out, lse


def merge_states(outs: torch.Tensor, lses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge attention over disjoint sets of keys into attention over their union.

    The empty state is `out = 0`, `lse = -inf`; merging only empty states gives the empty state.

    Args:
        outs: [n, T, Hq, D], float32, float16 or bfloat16.
        lses: float32 [n, T, Hq], natural logarithms.

    Returns:
        (out, lse): [T, Hq, D] like outs, and float32 [T, Hq].

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what was given.

    Example:
        >>> outs, lses = torch.randn(2, 5, 8, 64), torch.randn(2, 5, 8)
        >>> out, lse = merge_states(outs, lses)
        >>> bool((lse - torch.logsumexp(lses, 0)).abs().max() < 1e-5)
        True
    """
    op = "merge_states"
    for name, x in (("outs", outs), ("lses", lses)):
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"{op}: {name} must be a tensor, got {type(x).__name__}")
    if outs.dim() != 4 or outs.shape[0] == 0:
        raise ValueError(f"{op}: outs must be [n >= 1, T, Hq, D], got {list(outs.shape)}")
    if not outs.dtype.is_floating_point:
        raise TypeError(f"{op}: outs must be float32, float16 or bfloat16, got {outs.dtype}")
    if lses.shape != outs.shape[:3]:
        raise ValueError(f"{op}: lses must be {list(outs.shape[:3])}, got {list(lses.shape)}")
    if lses.dtype != torch.float32 or lses.device != outs.device:
        raise TypeError(
            f"{op}: lses must be float32 on {outs.device}, got {lses.dtype} on {lses.device}"
        )
    return torch.ops.ttc_kernels.merge_states(outs, lses)
