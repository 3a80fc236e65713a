"""Tree attention over paged caches, and the algebra of its partial results."""

from __future__ import annotations

import importlib.util
import math
import os

import torch

from . import _load  # noqa: F401
from .tree import TreeAttentionPlan

__all__ = ["merge_states", "tree_attention"]

_OP = "tree_attention"
_BACKENDS = ("auto", "cpu", "triton")
_MAX_GROUP = 512  # query heads to a KV head that the Triton kernel's arithmetic allows

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
    _check_triton(q, k_cache, v_cache, plan, workspace, k_scales, v_scales, out, lse)
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
def _(q, k_cache, v_cache, plan, sm_scale, logits_soft_cap, out, lse):
    return None


@torch.library.register_fake("ttc_kernels::merge_states")
def _(outs, lses):
    return outs.new_empty(outs.shape[1:]), lses.new_empty(lses.shape[1:])


@torch.library.impl("ttc_kernels::merge_states", "CUDA")
def _merge_states_cuda(outs, lses):
    """As on the CPU: in order and in fp32, and an empty state's output is not read."""
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
        backend: "auto" takes "triton" for a plan on a GPU and "cpu" for one on the CPU. "triton" on
            the CPU runs in Triton's interpreter, for tests (TRITON_INTERPRET=1).

    Returns:
        (out, lse): out like q; lse float32 [T, Hq], natural logarithm of the sum of exponentials.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what was given, before
            anything is written.

    Example:
        >>> plan = plan_tree_attention([[0, 1], [0, 2]], [20, 24], page_size=16, num_q_heads=8,
        ...     num_kv_heads=2, head_dim=64, dtype=torch.float32)
        >>> k_cache, v_cache = torch.randn(2, 3, 16, 2, 64)
        >>> out, lse = tree_attention(torch.randn(2, 8, 64), k_cache, v_cache, plan)
        >>> out.shape, lse.shape
        (torch.Size([2, 8, 64]), torch.Size([2, 8]))
    """
    if not isinstance(plan, TreeAttentionPlan):
        raise TypeError(f"{_OP}: plan must be a TreeAttentionPlan, got {type(plan).__name__}")
    if backend not in _BACKENDS:
        raise ValueError(f"{_OP}: backend must be one of {_BACKENDS}, got {backend!r}")
    backend = _resolve(backend, plan)
    o = plan._options
    heads, dim = o["num_q_heads"], o["head_dim"]
    _check("q", q, (plan.num_queries, heads, dim), plan.dtype, plan.device)
    cache_shape = (None, o["page_size"], o["num_kv_heads"], dim)
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        _check(name, cache, cache_shape, plan.kv_dtype, plan.device)
        if cache.shape[0] <= plan.max_page:
            raise ValueError(
                f"{_OP}: {name} must hold every planned page, the largest is {plan.max_page}, "
                f"got {cache.shape[0]} pages"
            )
    k_number, k_scales = _scale("k_scale", k_scale, plan)
    v_number, v_scales = _scale("v_scale", v_scale, plan)
    scale = 1 / math.sqrt(dim) if sm_scale is None else float(sm_scale)
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"{_OP}: sm_scale must be positive and finite, got {sm_scale}")
    if not (math.isfinite(logits_soft_cap) and logits_soft_cap >= 0):
        raise ValueError(f"{_OP}: logits_soft_cap must be >= 0 and finite, got {logits_soft_cap}")
    if out is None:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    else:
        _check("out", out, tuple(q.shape), plan.dtype, plan.device)
    if lse is None:
        lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    else:
        _check("lse", lse, tuple(q.shape[:2]), torch.float32, plan.device)
        if not lse.is_contiguous():
            raise ValueError(f"{_OP}: lse must be contiguous, got strides {lse.stride()}")
    if backend == "cpu":
        torch.ops.ttc_kernels.tree_attention(
            q, k_cache, v_cache, plan.buffer, scale, logits_soft_cap, out, lse
        )
    else:
        plan = plan.without_folds()
        floats = plan.capacity.partials * heads * (dim + 2)
        workspace = plan.workspace if plan.workspace is not None else torch.empty(floats)
        if workspace.numel() < floats:
            raise ValueError(
                f"{_OP}: plan.workspace must have {floats} floats for {plan.capacity.partials} "
                f"partials, got {workspace.numel()}"
            )
        torch.ops.ttc_kernels.tree_attention_triton(
            q, k_cache, v_cache, plan.buffer, workspace, scale * k_number, logits_soft_cap,
            v_number, k_scales, v_scales, out, lse,
        )  # fmt: skip
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


def _resolve(backend: str, plan: TreeAttentionPlan) -> str:
    """The backend that a call will run on, or an error that says why it cannot."""
    on_gpu = plan.device.type == "cuda"
    if backend == "auto":
        backend = "triton" if on_gpu else "cpu"
    if backend == "cpu":
        if on_gpu:
            raise ValueError(f'{_OP}: backend "cpu" needs a plan on the cpu, got {plan.device}')
        if plan.kv_dtype == torch.float8_e4m3fn:
            raise TypeError(
                f'{_OP}: float8_e4m3fn caches need backend "triton"; "cpu" reads those in the '
                f"dtype of q"
            )
        return backend
    if importlib.util.find_spec("triton") is None:
        raise ValueError(f'{_OP}: backend "triton" needs the package triton, which is missing')
    if not on_gpu:
        if os.environ.get("TRITON_INTERPRET") != "1":
            raise ValueError(
                f'{_OP}: backend "triton" needs a plan on a GPU; on the cpu it runs only in '
                f"Triton's interpreter (TRITON_INTERPRET=1), for tests"
            )
        if plan.dtype == torch.bfloat16:
            raise ValueError(f"{_OP}: Triton's interpreter computes wrongly in bfloat16")
    return backend


def _scale(
    name: str, scale: float | torch.Tensor | None, plan: TreeAttentionPlan
) -> tuple[float, torch.Tensor | None]:
    """A scale of the caches as a number for all heads, and as a tensor with one for each."""
    if scale is None:
        return 1.0, None
    if plan.kv_dtype != torch.float8_e4m3fn:
        raise ValueError(f"{_OP}: {name} is for float8_e4m3fn caches, got {_short(plan.kv_dtype)}")
    if isinstance(scale, torch.Tensor):
        heads = plan._options["num_kv_heads"]
        _check(name, scale, (heads,), torch.float32, plan.device)
        return 1.0, scale
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"{_OP}: {name} must be positive and finite, got {scale}")
    return float(scale), None


def _check_triton(q, k_cache, v_cache, plan, workspace, k_scales, v_scales, out, lse) -> None:
    """What the Triton kernels take for granted, for direct callers of the op too."""
    op = "tree_attention_triton"
    tensors = {"q": q, "k_cache": k_cache, "v_cache": v_cache, "out": out}
    for name, x in tensors.items():
        rank = 4 if "cache" in name else 3
        if x.dim() != rank or x.shape[-1] != q.shape[-1] or x.stride(-1) != 1:
            raise ValueError(
                f"{op}: {name} must have {rank} dimensions, the last of size {q.shape[-1]} and "
                f"contiguous, got {list(x.shape)} with strides {x.stride()}"
            )
        # 16-byte loads, and one compiled kernel whatever the strides.
        uneven = any(s % 16 for s, n in zip(x.stride()[:-1], x.shape, strict=False) if n > 1)
        if uneven or x.data_ptr() % 16:
            raise ValueError(
                f"{op}: {name} must begin at a multiple of 16 bytes and have strides that are "
                f"multiples of 16 elements, got strides {x.stride()}"
            )
    if k_cache.shape != v_cache.shape or k_cache.stride() != v_cache.stride():
        raise ValueError(
            f"{op}: k_cache and v_cache must have one shape and one set of strides, got "
            f"{list(k_cache.shape)} {k_cache.stride()} and {list(v_cache.shape)} {v_cache.stride()}"
        )
    heads, kv_heads = q.shape[1], k_cache.shape[2]
    if q.shape[-1] not in (64, 96, 128, 256):
        raise ValueError(f"{op}: head_dim must be 64, 96, 128 or 256, got {q.shape[-1]}")
    if heads % kv_heads or heads > _MAX_GROUP * kv_heads:
        raise ValueError(
            f"{op}: q must have 1 to {_MAX_GROUP} heads for each of {kv_heads} KV heads, "
            f"got {heads} heads"
        )
    cache_dtypes = [q.dtype] if q.dtype == torch.float32 else [q.dtype, torch.float8_e4m3fn]
    if k_cache.dtype != v_cache.dtype or k_cache.dtype not in cache_dtypes:
        raise TypeError(
            f"{op}: caches must be {' or '.join(map(_short, cache_dtypes))} for q in "
            f"{_short(q.dtype)}, got {_short(k_cache.dtype)} and {_short(v_cache.dtype)}"
        )
    if out.shape != q.shape or out.dtype != q.dtype or lse.shape != q.shape[:2]:
        raise ValueError(
            f"{op}: out must be like q and lse [T, Hq], got {list(out.shape)} {_short(out.dtype)} "
            f"and {list(lse.shape)}"
        )
    vectors = {"plan": plan, "workspace": workspace, "k_scales": k_scales, "v_scales": v_scales}
    for name, x in {**vectors, "lse": lse}.items():
        dtype = torch.int32 if name == "plan" else torch.float32
        if x is not None and (x.dtype != dtype or not x.is_contiguous()):
            raise TypeError(f"{op}: {name} must be contiguous {_short(dtype)}, got {x.dtype}")
    for name, x in {**tensors, **vectors, "lse": lse}.items():
        if x is not None and x.device != q.device:
            raise ValueError(f"{op}: {name} must be on {q.device} like q, got {x.device}")


def _check(
    name: str,
    x: torch.Tensor,
    shape: tuple[int | None, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{_OP}: {name} must be a tensor, got {type(x).__name__}")
    fits = x.dim() == len(shape) and all(
        w in (None, g) for w, g in zip(shape, x.shape, strict=True)
    )
    wanted = "[" + ", ".join("P" if w is None else str(w) for w in shape) + "]"
    if not fits or x.dtype != dtype or x.device != device:
        kind = ValueError if x.dtype == dtype else TypeError
        raise kind(
            f"{_OP}: {name} must be {wanted} {_short(dtype)} on {device}, "
            f"got {list(x.shape)} {_short(x.dtype)} on {x.device}"
        )
    if x.shape[-1] > 1 and x.stride(-1) != 1:
        raise ValueError(
            f"{_OP}: {name} must be contiguous in its last dimension, got {x.stride()}"
        )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
