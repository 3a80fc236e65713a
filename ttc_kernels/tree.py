"""Pages, branches, and the plan of one tree attention call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ._host import Branch, OutOfPages, PagePool
from ._plan import CHUNKS, PlanCapacity, TreeAttentionPlan
from ._plan_costs import cost_model, device_kind
from ._plan_input import OP, fail, integer

__all__ = [
    "Branch",
    "OutOfPages",
    "PagePool",
    "PlanCapacity",
    "TreeAttentionPlan",
    "plan_tree_attention",
]

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Programs of a persistent GPU kernel on one multiprocessor.
_WORKERS_PER_SM = 2


def plan_tree_attention(
    block_tables: Any,
    kv_lens: Any,
    q_lens: Any = None,
    *,
    page_size: int,
    num_q_heads: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype = torch.bfloat16,
    kv_dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    draft_parents: Sequence[Any] | None = None,
    window_left: int = -1,
    deterministic: bool = False,
    reserved_lens: Any = None,
    capacity: PlanCapacity | None = None,
) -> TreeAttentionPlan:
    """Turn block tables and lengths into the work of one tree attention call.

    Rows that begin with the same pages share them: the pages are read once for all their queries.
    Where sharing costs more than it saves the plan declines, and `plan.stats["decision"]` says so.
    The plan is made on the host from host data; on a GPU it is uploaded once, without waiting.

    Args:
        block_tables: list of B int32 arrays, or int32 [B, max_pages]; page ids. Entries past a
            row's length are ignored. That no row names a page twice is the caller's duty: it is
            not looked for, and such a page's keys count as often as it is named.
        kv_lens: int32 [B], tokens of each row, its own query tokens included. 0 = an empty row.
        q_lens: int32 [B], query tokens of each row, default 1 each. The queries are the row's last
            tokens and causal among themselves.
        page_size: tokens per page.
        num_q_heads: Hq.
        num_kv_heads: Hkv, a divisor of Hq.
        head_dim: 64, 96, 128 or 256.
        dtype: of q: float32, float16 or bfloat16.
        kv_dtype: of the caches: that of q (the default), or float8_e4m3fn.
        device: where the attention will run, "cpu" or "cuda".
        draft_parents: per row None or int32 [q_len]: its query tokens are a draft tree; the parent
            of each token among them, -1 = child of the prefix, parents before children.
        window_left: keys further than this many positions to the left are not seen; -1 = all are.
        deterministic: cut at fixed absolute positions only, so that a row's bits do not depend on
            the other rows.
        reserved_lens: int32 [B], tokens up to which `plan.update` may grow each row, inside the
            pages of its table; default: to the end of its last page (a deterministic plan: of its
            last chunk of 128 tokens, on a GPU 256, if that comes first).
        capacity: what `plan.replan` must be able to hold; default: a plan of this size.

    Returns:
        The plan, to be passed to `tree_attention` for each layer.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what was given.

    Example:
        >>> import numpy as np
        >>> plan = plan_tree_attention(
        ...     [np.array([0, 1], np.int32), np.array([0, 2], np.int32)], [20, 24],
        ...     page_size=16, num_q_heads=8, num_kv_heads=2, head_dim=64, dtype=torch.float32)
        >>> plan.stats["unique_kv_tokens"], plan.stats["path_kv_tokens"]
        (28, 44)
    """
    if dtype not in _DTYPES:
        raise TypeError(f"{OP}: dtype must be float32, float16 or bfloat16, got {dtype}")
    kv_dtype = dtype if kv_dtype is None else kv_dtype
    if kv_dtype not in (dtype, torch.float8_e4m3fn):
        raise TypeError(f"{OP}: kv_dtype must be {dtype}, as q, or float8_e4m3fn, got {kv_dtype}")
    if capacity is not None and not isinstance(capacity, PlanCapacity):
        raise TypeError(f"{OP}: capacity must be a PlanCapacity, got {type(capacity).__name__}")
    device = _device(device)
    sizes = {
        "page_size": integer(page_size, "page_size"),
        "num_q_heads": integer(num_q_heads, "num_q_heads"),
        "num_kv_heads": integer(num_kv_heads, "num_kv_heads"),
        "head_dim": integer(head_dim, "head_dim"),
        "window_left": integer(window_left, "window_left"),
    }
    costs = dict(cost_model(device_kind(device, dtype), dtype, kv_dtype.itemsize, head_dim))
    most = costs.pop("max_tile_rows")
    options = {
        **sizes,
        "element_bytes": kv_dtype.itemsize,
        "chunk": CHUNKS[device.type].tokens if deterministic else 0,
        "fold": deterministic and CHUNKS[device.type].fold,
        "num_workers": _num_workers(device),
        "max_tile_rows": most,
        "fixed_tile_rows": _fixed_tile(device, dtype, num_q_heads, num_kv_heads, most)
        if deterministic
        else 0,
        "cost": costs,
    }
    rows = (block_tables, kv_lens, q_lens, draft_parents, reserved_lens)
    return TreeAttentionPlan(rows, options, dtype, kv_dtype, device, capacity)


def _device(device: torch.device | str) -> torch.device:
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        fail("device", '"cpu" or "cuda"', repr(device))
    if found.type not in ("cpu", "cuda"):
        fail("device", '"cpu" or "cuda"', str(device))
    if found.type == "cuda" and not torch.cuda.is_available():
        fail("device", "one that torch can use", f"{str(found)!r}, but torch finds no CUDA device")
    return found


def _num_workers(device: torch.device) -> int:
    if device.type == "cpu":
        return torch.get_num_threads()
    return _WORKERS_PER_SM * torch.cuda.get_device_properties(device).multi_processor_count


def _fixed_tile(
    device: torch.device, dtype: torch.dtype, num_q_heads: int, num_kv_heads: int, most: int
) -> int:
    """The one tile class of a deterministic plan: it must not depend on what is in the batch."""
    if device.type == "cpu":
        return 128  # there the class changes no bits
    group = num_q_heads // max(1, num_kv_heads)
    least = 16 if dtype == torch.float32 else min(64, most)
    return next(c for c in (16, 32, 64, 128) if c >= min(max(least, group), 128))
