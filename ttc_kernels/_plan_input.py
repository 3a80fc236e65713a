"""What callers hand to a plan, checked and as numpy arrays of int32."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import torch

from ._host import is_int32_vectors

OP = "plan_tree_attention"


def fail(argument: str, expected: str, got: str) -> NoReturn:
    """Raise ValueError in the project's form."""
    raise ValueError(f"{OP}: {argument} must be {expected}, got {got}")


def int_vector(value: Any, name: str, size: int | None = None) -> np.ndarray:
    """`value` as a contiguous int32 vector; floats, other shapes and other sizes are refused."""
    array = np.asarray(value)
    if array.size == 0:
        array = array.astype(np.int32)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise TypeError(
            f"{OP}: {name} must be an int32 vector, got {array.dtype} {list(array.shape)}"
        )
    if size is not None and len(array) != size:
        fail(name, f"int32 [{size}]", f"[{len(array)}]")
    if array.dtype == np.int32:
        return np.ascontiguousarray(array)
    _check_int32(array, name)
    return array.astype(np.int32)


def integer(value: Any, name: str) -> int:
    """An integer of whatever type; floats, which would be cut off, are refused."""
    try:
        return operator.index(value)
    except TypeError as error:
        raise TypeError(f"{OP}: {name} must be an int, got {value!r}") from error


def _check_int32(array: np.ndarray, name: str) -> None:
    if array.dtype == np.int32 or not array.size:
        return
    if array.max() > 2**31 - 1 or array.min() < -(2**31):
        fail(name, "within int32", f"{array.min()}..{array.max()}")


def block_table_arrays(block_tables: Any, num_rows: int) -> np.ndarray | list[np.ndarray]:
    """int32 [B, max_pages], or a list of int32 vectors; not copied if that is what was given."""
    if isinstance(block_tables, torch.Tensor):
        if block_tables.device.type != "cpu":
            fail(
                "block_tables",
                "on the CPU, where the plan is made (a plan never waits for a device)",
                str(block_tables.device),
            )
        block_tables = block_tables.numpy()
    if isinstance(block_tables, np.ndarray):
        if block_tables.ndim != 2 or block_tables.dtype.kind not in "iu":
            raise TypeError(
                f"{OP}: block_tables must be int32 [B, max_pages] or a list of int32 vectors, got "
                f"{block_tables.dtype} {list(block_tables.shape)}"
            )
        _check_int32(block_tables, "block_tables")
        tables: np.ndarray | list[np.ndarray] = np.ascontiguousarray(block_tables, np.int32)
    elif not isinstance(block_tables, Sequence):
        raise TypeError(
            f"{OP}: block_tables must be int32 [B, max_pages] or a list of int32 vectors, got "
            f"{type(block_tables).__name__}"
        )
    elif is_int32_vectors(block_tables):
        tables = list(block_tables)
    else:
        tables = [int_vector(t, f"block_tables[{i}]") for i, t in enumerate(block_tables)]
    if len(tables) != num_rows:
        fail("block_tables", f"{num_rows} rows, as kv_lens", f"{len(tables)}")
    return tables


def draft_arrays(
    draft_parents: Sequence[Any] | None, q_lens: np.ndarray
) -> list[np.ndarray | None]:
    """Per row None or its parents; an empty list if there is no draft tree at all."""
    if draft_parents is None:
        return []
    if len(draft_parents) != len(q_lens):
        fail("draft_parents", f"{len(q_lens)} entries, as kv_lens", f"{len(draft_parents)}")
    out: list[np.ndarray | None] = []
    for i, parents in enumerate(draft_parents):
        name = f"draft_parents[{i}]"
        out.append(None if parents is None else int_vector(parents, name, int(q_lens[i])))
    return out if any(x is not None for x in out) else []
