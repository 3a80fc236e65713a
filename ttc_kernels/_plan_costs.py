"""Constants of the planner's cost model, by kind of device and dtype (`plan_costs.json`).

`bench/calibrate.py` measures them. Times are nanoseconds of one worker (a thread, or one of two
resident blocks of a GPU's multiprocessor) for one KV head at head_dim 128; csrc/host/cost.h says
what each one stands for.
"""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from . import _load  # noqa: F401

COSTS_FILE = Path(__file__).with_name("plan_costs.json")
_HEAD_DIM = 128
_PER_DIM = ("row", "token", "token_again", "row_token", "partial")


def device_kind(device: torch.device, dtype: torch.dtype) -> str:
    """The key in `plan_costs.json`: an instruction set, or the nearest known compute capability."""
    if device.type == "cpu":
        return _cpu_kind(dtype, os.environ.get("TTC_CPU_ISA"))
    major = torch.cuda.get_device_capability(device)[0]
    return "sm_100" if major >= 10 else "sm_90" if major == 9 else "sm_80"


@lru_cache
def _cpu_kind(dtype: torch.dtype, wanted: str | None) -> str:
    return torch.ops.ttc_kernels.tree_attention_cpu_isa(dtype)


@lru_cache
def cost_model(kind: str, dtype: torch.dtype, kv_bytes: int, head_dim: int) -> dict[str, Any]:
    """The constants for one dtype, cache element size and head_dim, as `_host.PlanOptions` wants.

    Reading scales with the bytes of an element, and all work on rows and tokens with head_dim.
    """
    device = _table()[kind]
    costs = {k: v for k, v in device.items() if k not in ("dtypes", "source")}
    costs.update(device["dtypes"][str(dtype).removeprefix("torch.")])
    for name in _PER_DIM:
        costs[name] = costs[name] * head_dim / _HEAD_DIM
    for name in ("token", "token_again"):
        costs[name] *= kv_bytes / dtype.itemsize
    # Outputs of twice as many dimensions fill the registers with half the rows.
    if kind == "sm_80" and head_dim > 128:
        costs["max_tile_rows"] //= 2
    return costs


@lru_cache
def _table() -> dict[str, Any]:
    return json.loads(COSTS_FILE.read_text())
