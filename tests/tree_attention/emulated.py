"""CUDA kernels of tree attention in the emulator: plans as a GPU gets them, and calls."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.emulator.build import Adapter
from ttc_kernels import PlanCapacity, TreeAttentionPlan, plan_tree_attention
from ttc_kernels._plan import CHUNKS
from ttc_kernels._plan_costs import cost_model
from ttc_kernels.tree import _fixed_tile

WORKERS = 6  # what the planner is told of the GPU's size, and the blocks of a launch
COSTS = {"sm80": "sm_80", "sm90": "sm_90"}


@lru_cache
def _adapter(backend: str) -> Adapter:
    return Adapter(Path(__file__).with_name(f"{backend}_adapter.cpp"))


def plan(
    backend: str,
    block_tables: Any,
    kv_lens: Any,
    q_lens: Any = None,
    *,
    draft_parents: Any = None,
    reserved_lens: Any = None,
    capacity: PlanCapacity | None = None,
    **options: Any,
) -> TreeAttentionPlan:
    """A plan in memory of the CPU that is cut as `plan_tree_attention` cuts for the GPU."""
    small = {key: x for key, x in options.items() if key != "device"}
    plain = plan_tree_attention([], [], **small)
    dtype, kv_dtype, o = plain.dtype, plain.kv_dtype, dict(plain._options)
    deterministic = o["chunk"] != 0
    costs = dict(cost_model(COSTS[backend], dtype, kv_dtype.itemsize, o["head_dim"]))
    most = costs.pop("max_tile_rows")
    fixed = _fixed_tile(torch.device("cuda"), dtype, o["num_q_heads"], o["num_kv_heads"], most)
    o |= {
        "chunk": CHUNKS["cuda"].tokens if deterministic else 0,
        "fold": False,
        "num_workers": WORKERS,
        "max_tile_rows": most,
        "fixed_tile_rows": fixed if deterministic else 0,
        "cost": costs,
    }
    rows = (block_tables, kv_lens, q_lens, draft_parents, reserved_lens)
    made = TreeAttentionPlan(rows, o, dtype, kv_dtype, torch.device("cpu"), capacity)
    room = made.capacity
    # The kernels may read no float of a slot that was not written.
    made.workspace = torch.full((room.partials * o["num_q_heads"] * (o["head_dim"] + 2),), math.nan)
    made.counters = torch.zeros(2 + room.queries * o["num_kv_heads"], dtype=torch.int32)
    return made


def attend(
    backend: str,
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    plan: TreeAttentionPlan,
    *,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
    logits_soft_cap: float = 0.0,
    k_scale: float | torch.Tensor = 1.0,
    v_scale: float | torch.Tensor = 1.0,
    blocks: int = WORKERS,
    seed: int = 0,
    resident: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`ttc_kernels.tree_attention` in the emulator; blocks, seed, resident: how the grid runs."""
    tokens, heads, dim = q.shape
    pages, page_size, kv_heads, _ = k_cache.shape
    out = torch.full_like(q, math.nan) if out is None else out
    lse = torch.full((tokens, heads), math.nan) if lse is None else lse
    slots = plan.workspace.numel() // (heads * (dim + 2))
    fp8 = k_cache.dtype == torch.float8_e4m3fn
    sizes = np.array(
        [
            q.dtype == torch.bfloat16, fp8, dim, page_size, kv_heads, heads // kv_heads, pages,
            slots, blocks, *q.stride()[:2], *out.stride()[:2], *k_cache.stride()[:3],
        ],
        np.int64,
    )  # fmt: skip
    scale = 1 / math.sqrt(dim) * (k_scale if isinstance(k_scale, float) else 1)
    scales = [x if isinstance(x, torch.Tensor) else None for x in (k_scale, v_scale)]
    _adapter(backend).call(
        f"tree_attention_{backend}", q, k_cache, v_cache, plan.buffer, plan.workspace,
        plan.counters, *scales, out, lse, sizes, scale, logits_soft_cap,
        v_scale if isinstance(v_scale, float) else 1.0, seed=seed, resident=resident,
    )  # fmt: skip
    assert not plan.counters.any(), "a launch leaves every counter zero"
    return out, lse


def bytes_read(backend: str, tensor: torch.Tensor) -> int:
    """Bytes of a tensor that the last call read."""
    return _adapter(backend).bytes_read(tensor)
