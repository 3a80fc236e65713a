"""Verification on a GPU without the CUDA kernels: checks, then Triton.

The functions take what the ops take. Checked is what can be known without waiting for the GPU.
"""

from __future__ import annotations

import torch

from . import _load
from ._check import require_dtype

_COLUMNS = 9  # of a descriptor
_MAX_VOCAB, _MAX_CHILDREN = 2**24, 256


def _require(op, name, tensor, dtype, shape, device) -> None:
    """A contiguous tensor of this shape, in which None is any size."""
    require_dtype(op, name, tensor, (dtype,))
    fits = tensor.dim() == len(shape) and all(
        want is None or have == want for have, want in zip(tensor.shape, shape, strict=True)
    )
    if not fits or not tensor.is_contiguous() or tensor.device != device:
        sizes = ", ".join("any" if want is None else str(want) for want in shape)
        raise ValueError(
            f"{op}: {name} must be a contiguous [{sizes}] on {device}, got {list(tensor.shape)} "
            f"with strides {tensor.stride()} on {tensor.device}"
        )


def _check_rows(op, logits, desc, bitmask, device, name="logits") -> None:
    require_dtype(op, name, logits)
    vocab_size = logits.shape[-1]
    dense = logits.dim() == 2 and (logits.stride(1) == 1 or vocab_size == 1)
    if not dense or not 1 <= vocab_size <= _MAX_VOCAB or logits.device != device:
        raise ValueError(
            f"{op}: {name} must be [N, V] on {device} with a dense last dimension and V in "
            f"[1, {_MAX_VOCAB}], got {list(logits.shape)} with strides {logits.stride()} on "
            f"{logits.device}"
        )
    if desc is not None:
        described = "desc" if name == "logits" else "draft desc"
        _require(op, described, desc, torch.float32, (len(logits), _COLUMNS), device)
    if bitmask is not None:
        words = (len(logits), -(-vocab_size // 32))
        _require(op, "bitmask", bitmask, torch.int32, words, device)


def _check_filters(op, logits, temperature, top_k, top_p, min_p) -> None:
    for name, column, dtype in (
        ("temperature", temperature, torch.float32),
        ("top_k", top_k, torch.int32),
        ("top_p", top_p, torch.float32),
        ("min_p", min_p, torch.float32),
    ):
        _require(op, name, column, dtype, (len(logits),), logits.device)


def row_descriptor(logits, temperature, top_k, top_p, min_p, bitmask=None):
    op = "row_descriptor"
    _check_rows(op, logits, None, bitmask, logits.device)
    _check_filters(op, logits, temperature, top_k, top_p, min_p)
    from .triton.row_descriptor import row_descriptor as run

    return run(logits, temperature, top_k, top_p, min_p, bitmask)


def sample_tokens(logits, desc, seeds, positions, bitmask=None):
    op, shape, device = "sample_tokens", (len(logits),), logits.device
    _check_rows(op, logits, desc, bitmask, device)
    _require(op, "seeds", seeds, torch.int64, shape, device)
    _require(op, "positions", positions, torch.int64, shape, device)
    from .triton.sample_tokens import sample_tokens as run

    return run(logits, desc, seeds, positions, bitmask)


def sample_children(logits, desc, k, mode, target_noise, seeds, positions, streams, bitmask=None):
    op, shape, device = "sample_children", (len(logits),), logits.device
    _check_rows(op, logits, desc, bitmask, device)
    if not 1 <= k <= _MAX_CHILDREN:
        raise ValueError(f"{op}: k must be in [1, {_MAX_CHILDREN}], got {k}")
    if mode not in ("topk", "iid", "without_replacement"):
        raise ValueError(f"{op}: mode must be 'topk', 'iid' or 'without_replacement', got {mode!r}")
    _require(op, "seeds", seeds, torch.int64, shape, device)
    _require(op, "positions", positions, torch.int64, shape, device)
    _require(op, "streams", streams, torch.int32, shape, device)
    from .triton.sample_children import sample_children as run

    return run(logits, desc, k, mode, target_noise, seeds, positions, streams, bitmask)


def token_logprobs(logits, desc, rows, tokens, raw, bitmask=None):
    op, device = "token_logprobs", logits.device
    _check_rows(op, logits, desc, bitmask, device)
    _require(op, "rows", rows, torch.int32, (None,), device)
    _require(op, "tokens", tokens, torch.int32, (len(rows),), device)
    from .triton.token_logprobs import token_logprobs as run

    return run(logits, desc, rows, tokens, raw, bitmask)


def _check_draft(op, logits, draft, proposals) -> None:
    draft_logits, draft_desc, ids, logprobs, rows = draft
    n, device = len(logits), logits.device
    _require(op, "proposals", proposals, torch.int8, (n,), device)
    if draft_logits is not None:
        if draft_desc is None:
            raise ValueError(f"{op}: the draft's logits need descriptors")
        _check_rows(op, draft_logits, draft_desc, None, device, "draft logits")
        if draft_logits.shape[1] != logits.shape[1]:
            raise ValueError(
                f"{op}: draft logits must be [R, {logits.shape[1]}], got {list(draft_logits.shape)}"
            )
        num_rows = len(draft_logits)
    elif ids is not None:
        if logprobs is None:
            raise ValueError(f"{op}: the draft's ids need logprobs")
        _require(op, "draft ids", ids, torch.int32, (None, None), device)
        _require(op, "draft logprobs", logprobs, torch.float32, tuple(ids.shape), device)
        num_rows = len(ids)
    else:
        raise ValueError(
            f"{op}: drafts that were drawn need the distribution that they were drawn from"
        )
    if rows is not None:
        _require(op, "draft rows", rows, torch.int32, (n,), device)
    elif num_rows != n:
        raise ValueError(
            f"{op}: without rows, the draft must have a row for each of the {n} nodes, got "
            f"{num_rows}"
        )


def verify(
    op, rule, logits, desc, temperature, top_k, top_p, min_p, bitmask, tokens, parent, cu_nodes,
    seeds, positions, coins, draft_logits, draft_desc, draft_ids, draft_logprobs, draft_rows,
    proposals, epsilon, delta, num_accepted, out_tokens, path, logprobs, status,
) -> None:  # fmt: skip
    device = logits.device
    _check_rows(op, logits, desc, bitmask, device)
    filters = None if temperature is None else (temperature, top_k, top_p, min_p)
    if filters is not None:
        _check_filters(op, logits, *filters)
    _require(op, "cu_nodes", cu_nodes, torch.int32, (None,), device)
    nodes, requests = (len(logits),), (len(cu_nodes) - 1,)
    outputs = (*requests, out_tokens.shape[-1])
    for name, tensor, dtype, shape in (
        ("tokens", tokens, torch.int32, nodes),
        ("parent", parent, torch.int32, nodes),
        ("seeds", seeds, torch.int64, requests),
        ("positions", positions, torch.int64, requests),
        ("coins", coins, torch.float32, nodes),
        ("out.num_accepted", num_accepted, torch.int32, requests),
        ("out.tokens", out_tokens, torch.int32, outputs),
        ("out.path", path, torch.int32, outputs),
        ("out.logprobs", logprobs, torch.float32, outputs),
        ("out.status", status, torch.int32, requests),
    ):
        if tensor is not None:
            _require(op, name, tensor, dtype, shape, device)
    draft = (draft_logits, draft_desc, draft_ids, draft_logprobs, draft_rows)
    if proposals is None:
        draft = (None,) * 5
    else:
        _check_draft(op, logits, draft, proposals)
    out = (num_accepted, out_tokens, path, logprobs, status)
    tree = (tokens, parent, cu_nodes, seeds, positions)
    if rule in ("greedy", "sampled"):
        from .triton.verify_sampled import verify as run

        run(rule, logits, desc, filters, bitmask, *tree, out)
    else:
        from .triton.draft_rows import DraftRows
        from .triton.verify_walk import verify as walk

        walk(
            rule, logits, desc, filters, bitmask, *tree, coins, DraftRows.of(*draft), proposals,
            epsilon, delta, out,
        )  # fmt: skip


for _run in (row_descriptor, sample_tokens, sample_children, token_logprobs, verify):
    if not _load.has_cuda_kernel(_run.__name__):
        torch.library.impl(f"ttc_kernels::{_run.__name__}", "CUDA")(_run)
