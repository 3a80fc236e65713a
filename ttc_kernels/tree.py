"""Pages, branches, and the plan of one tree attention call."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ._host import Branch, OutOfPages, PagePool
from ._host import plan as _host_plan

__all__ = ["Branch", "OutOfPages", "PagePool", "TreeAttentionPlan", "plan_tree_attention"]

_OP = "plan_tree_attention"
# PlanHeader::max_page and ::kv_lens in csrc/common/plan_layout.h
_HEADER_MAX_PAGE, _HEADER_KV_LENS = 14, 18
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class TreeAttentionPlan:
    """What one `tree_attention` call does: work items, pages, lengths, merge lists.

    Made by `plan_tree_attention`; valid for every layer of a model as long as the rows, their
    pages and their query lengths stay as they are.

    Attributes:
        buffer: int32 [n] on the CPU, the plan as the kernels read it.
        stats: what was decided and why: `unique_kv_tokens`, `path_kv_tokens`, `work_items`,
            `partials`, `kv_bytes` (each page range an item covers, counted once however many query
            tiles read it), `kv_bytes_read` (every read), `flops`, `plan_us`, `decision`.
        num_queries: T, the rows of q that the plan expects.
        max_page: the largest page id in use, -1 if none.
    """

    def __init__(
        self,
        tables: np.ndarray | list[np.ndarray],
        kv_lens: np.ndarray,
        q_lens: np.ndarray,
        parents: list[np.ndarray | None],
        options: dict[str, Any],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._tables, self._q_lens, self._parents = tables, q_lens, parents
        self._options = options
        self.dtype, self.device = dtype, device
        self.num_queries = int(q_lens.sum())
        self._make(kv_lens)

    def _make(self, kv_lens: np.ndarray) -> None:
        start = time.perf_counter()
        array, self._capacity, self.stats = _host_plan(
            self._tables, kv_lens, self._q_lens, self._parents, **self._options
        )
        self.buffer = torch.from_numpy(array)
        at = int(array[_HEADER_KV_LENS])
        self._kv_lens = array[at : at + len(kv_lens)]
        self.max_page = int(array[_HEADER_MAX_PAGE])
        self.stats["plan_us"] = (time.perf_counter() - start) * 1e6

    def update(self, kv_lens: Any) -> None:
        """Take new lengths after appends into pages that the block tables already held.

        Lengths that stay on the planned pages are written in place: no planning is done. Growth
        onto further reserved pages, or shrinking, plans again from the tables given at first.

        Args:
            kv_lens: int32 [B], the new length of every row in tokens.

        Raises:
            ValueError: wrong number of rows, or a length past the row's block table; the plan is
                then unchanged.
        """
        new = _int_vector(kv_lens, "kv_lens")
        if new.shape != self._kv_lens.shape:
            _fail("kv_lens", f"int32 [{len(self._kv_lens)}]", f"[{len(new)}]")
        grows = (
            (new >= self._kv_lens) & (new <= self._capacity) & ((new == 0) == (self._kv_lens == 0))
        )
        if grows.all():
            self._kv_lens[:] = new
        else:
            self._make(new)

    def __repr__(self) -> str:
        s = self.stats
        return (
            f"TreeAttentionPlan(rows={len(self._kv_lens)}, queries={self.num_queries}, "
            f"unique_kv_tokens={s['unique_kv_tokens']}, path_kv_tokens={s['path_kv_tokens']}, "
            f"work_items={s['work_items']}, partials={s['partials']}, {s['decision']!r})"
        )


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
    device: torch.device | str = "cpu",
    draft_parents: Sequence[Any] | None = None,
    window_left: int = -1,
    deterministic: bool = False,
) -> TreeAttentionPlan:
    """Turn block tables and lengths into the work of one tree attention call.

    Rows that begin with the same pages share them: the pages are read once for all their queries.
    Where sharing costs more than it saves the plan declines, and `plan.stats["decision"]` says so.

    Args:
        block_tables: list of B int32 arrays, or int32 [B, max_pages]; page ids. Entries past a
            row's length are ignored.
        kv_lens: int32 [B], tokens of each row, its own query tokens included. 0 = an empty row.
        q_lens: int32 [B], query tokens of each row, default 1 each. The queries are the row's last
            tokens and causal among themselves.
        page_size: tokens per page.
        num_q_heads: Hq.
        num_kv_heads: Hkv, a divisor of Hq.
        head_dim: 64, 96, 128 or 256.
        dtype: of q and the caches: float32, float16 or bfloat16.
        device: where the attention will run.
        draft_parents: per row None or int32 [q_len]: its query tokens are a draft tree; the parent
            of each token among them, -1 = child of the prefix, parents before children.
        window_left: keys further than this many positions to the left are not seen; -1 = all are.
        deterministic: cut at fixed absolute positions only, so that a row's bits do not depend on
            the other rows.

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
        raise TypeError(f"{_OP}: dtype must be float32, float16 or bfloat16, got {dtype}")
    device = torch.device(device)
    if device.type != "cpu":
        _fail("device", "cpu (no other backend is built)", str(device))
    lens = _int_vector(kv_lens, "kv_lens")
    queries = np.ones_like(lens) if q_lens is None else _int_vector(q_lens, "q_lens")
    if len(queries) != len(lens):
        _fail("q_lens", f"int32 [{len(lens)}]", f"[{len(queries)}]")
    parents = _draft_arrays(draft_parents, queries)
    options = {
        "page_size": int(page_size),
        "num_q_heads": int(num_q_heads),
        "num_kv_heads": int(num_kv_heads),
        "head_dim": int(head_dim),
        "element_bytes": dtype.itemsize,
        "window_left": int(window_left),
        "deterministic": bool(deterministic),
        "num_workers": torch.get_num_threads(),
    }
    tables = _tables(block_tables, len(lens))
    return TreeAttentionPlan(tables, lens, queries, parents, options, dtype, device)


def _fail(argument: str, expected: str, got: str) -> None:
    raise ValueError(f"{_OP}: {argument} must be {expected}, got {got}")


def _int_vector(value: Any, name: str) -> np.ndarray:
    """`value` as a new int32 vector; floats and other shapes are refused."""
    array = np.asarray(value)
    if array.size == 0:
        array = array.astype(np.int32)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise TypeError(
            f"{_OP}: {name} must be an int32 vector, got {array.dtype} {list(array.shape)}"
        )
    if array.size and (array.max() > 2**31 - 1 or array.min() < -(2**31)):
        _fail(name, "within int32", f"{array.min()}..{array.max()}")
    return array.astype(np.int32)


def _tables(block_tables: Any, num_rows: int) -> np.ndarray | list[np.ndarray]:
    if isinstance(block_tables, torch.Tensor):
        block_tables = block_tables.numpy()
    if isinstance(block_tables, np.ndarray):
        if block_tables.ndim != 2 or block_tables.dtype.kind not in "iu":
            raise TypeError(
                f"{_OP}: block_tables must be int32 [B, max_pages] or a list of int32 vectors, got "
                f"{block_tables.dtype} {list(block_tables.shape)}"
            )
        tables: np.ndarray | list[np.ndarray] = block_tables.astype(np.int32)
    elif not isinstance(block_tables, Sequence):
        raise TypeError(
            f"{_OP}: block_tables must be int32 [B, max_pages] or a list of int32 vectors, got "
            f"{type(block_tables).__name__}"
        )
    else:
        tables = [_int_vector(t, f"block_tables[{i}]") for i, t in enumerate(block_tables)]
    if len(tables) != num_rows:
        _fail("block_tables", f"{num_rows} rows, as kv_lens", f"{len(tables)}")
    return tables


def _draft_arrays(
    draft_parents: Sequence[Any] | None, q_lens: np.ndarray
) -> list[np.ndarray | None]:
    if draft_parents is None:
        return []
    if len(draft_parents) != len(q_lens):
        _fail("draft_parents", f"{len(q_lens)} entries, as kv_lens", f"{len(draft_parents)}")
    out: list[np.ndarray | None] = []
    for i, parents in enumerate(draft_parents):
        array = None if parents is None else _int_vector(parents, f"draft_parents[{i}]")
        if array is not None and len(array) != q_lens[i]:
            _fail(f"draft_parents[{i}]", f"int32 [{q_lens[i]}]", f"[{len(array)}]")
        out.append(array)
    return out
