from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

class OutOfPages(RuntimeError): ...

class Branch:
    @property
    def length(self) -> int: ...
    @property
    def pages(self) -> npt.NDArray[np.int32]: ...
    def fork(self, n: int) -> list[Branch]: ...
    def append(self, n_tokens: int) -> npt.NDArray[np.int32]: ...
    def truncate(self, length: int) -> None: ...
    def free(self) -> None: ...

class PagePool:
    def __init__(self, num_pages: int, page_size: int = 16) -> None: ...
    @property
    def num_pages(self) -> int: ...
    @property
    def page_size(self) -> int: ...
    @property
    def num_free(self) -> int: ...
    def new_branch(self) -> Branch: ...
    def append_all(
        self, branches: Sequence[Branch], n_tokens: int = 1
    ) -> npt.NDArray[np.int32]: ...
    def block_tables(self, branches: Sequence[Branch]) -> npt.NDArray[np.int32]: ...
    def take_copies(self) -> npt.NDArray[np.int32]: ...
    def check_integrity(self) -> None: ...

class PlanOptions:
    def __init__(
        self,
        *,
        page_size: int,
        num_q_heads: int,
        num_kv_heads: int,
        head_dim: int,
        element_bytes: int,
        window_left: int,
        chunk: int,
        fold: bool,
        num_workers: int,
        max_tile_rows: int,
        fixed_tile_rows: int,
        cost: dict[str, Any],
    ) -> None: ...
    def item_cost(self, queries: int, tokens: int, is_partial: bool) -> float: ...

_Tables = npt.NDArray[np.int32] | Sequence[npt.NDArray[np.int32]]

def is_int32_vectors(items: Sequence[Any]) -> bool: ...
def plan(
    options: PlanOptions,
    block_tables: _Tables,
    kv_lens: npt.NDArray[np.int32],
    q_lens: npt.NDArray[np.int32],
    reserved_lens: npt.NDArray[np.int32] | None,
    draft_parents: Sequence[npt.NDArray[np.int32] | None],
    allocate: Callable[[int, int, int, int], npt.NDArray[np.int32]],
) -> tuple[npt.NDArray[np.int32], dict[str, Any]]: ...
def cut(
    options: PlanOptions,
    block_tables: _Tables,
    kv_lens: npt.NDArray[np.int32],
    q_lens: npt.NDArray[np.int32],
) -> tuple[
    npt.NDArray[np.int32],
    npt.NDArray[np.int32],
    npt.NDArray[np.int32],
    tuple[float, float, float],
]: ...
