"""FlashInfer's ways to attend over a tree, on the same pages as ours; needs flashinfer-python."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch

from ..forest import Forest, Pages
from .base import Problem, Run, Skip

_WORKSPACE_BYTES = 512 << 20
# FlashInfer counts the elements of a mask in 32 bits.
_LONGEST_MASK = 2**31 - 1


@dataclass(frozen=True)
class PagedLevel:
    """One level of a cascade as FlashInfer's plan takes it, int32 on the CPU.

    Attributes:
        qo_indptr: [groups + 1], first query of each group; groups are consecutive.
        kv_indptr: [groups + 1], first of each group's pages.
        kv_indices: page ids.
        last_page_len: [groups], tokens in the last page of each group.
    """

    qo_indptr: torch.Tensor
    kv_indptr: torch.Tensor
    kv_indices: torch.Tensor
    last_page_len: torch.Tensor


class _Planned:
    """A wrapper that plans before it runs; planning is timed apart."""

    def __init__(self, plan: Callable[[], object], run: Run) -> None:
        self.plan, self._run = plan, run
        plan()

    def __call__(self) -> torch.Tensor:
        return self._run()


def build_cascade(problem: Problem) -> Run:
    """MultiLevelCascadeAttentionWrapper, a level for each depth of the forest.

    Raises:
        Skip: if FlashInfer is missing, or there is a draft tree.
    """
    flashinfer = _module(problem)
    if problem.forest.draft_parents is not None:
        raise Skip("takes no draft tree")
    levels = page_levels(problem.forest, problem.pages, problem.page_size)
    wrapper = flashinfer.MultiLevelCascadeAttentionWrapper(len(levels), _workspace(problem), "NHD")

    def plan() -> None:
        wrapper.plan(
            [level.qo_indptr for level in levels],
            [level.kv_indptr for level in levels],
            [level.kv_indices for level in levels],
            [level.last_page_len for level in levels],
            *_heads(problem),
            problem.page_size,
            causal=bool((problem.forest.query_counts > 1).any()),
            q_data_type=problem.q.dtype,
            kv_data_type=problem.k.dtype,
        )

    return _Planned(plan, lambda: wrapper.run(problem.q, problem.caches))


def build_batch_attention(problem: Problem) -> Run:
    """BatchAttention: persistent kernel, every branch on its own but on shared pages.

    Raises:
        Skip: if FlashInfer is missing, or there is a draft tree.
    """
    flashinfer = _module(problem)
    if problem.forest.draft_parents is not None:
        raise Skip("takes no draft tree")
    rows = branch_pages(problem.forest, problem.pages, problem.page_size)
    wrapper = flashinfer.BatchAttention("NHD", str(problem.device))
    indices = rows.kv_indices.to(problem.device)
    kv_lens = torch.from_numpy(problem.pages.kv_lens)
    hq, hkv, dim = _heads(problem)

    def plan() -> None:
        wrapper.plan(
            rows.qo_indptr,
            rows.kv_indptr,
            indices,
            kv_lens,
            hq,
            hkv,
            dim,
            dim,
            problem.page_size,
            causal=True,
            q_data_type=problem.q.dtype,
            kv_data_type=problem.k.dtype,
        )

    return _Planned(plan, lambda: wrapper.run(problem.q, problem.caches)[0])


def build_masked(problem: Problem) -> Run:
    """One masked prefill for each root: its queries over the unique tokens of its tree.

    Raises:
        Skip: if FlashInfer is missing, or the mask has too many elements.
    """
    flashinfer = _module(problem)
    problem.require_bytes(problem.forest.unique_tokens)
    qo_indptr, kv_indptr, tokens, mask = root_masks(problem.forest)
    # Pages of one token: unique tokens in the order of the masks.
    caches = tuple(x.transpose(0, 1).contiguous()[:, None] for x in (problem.k, problem.v))
    wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(
        _workspace(problem), "NHD", backend="fa2"
    )
    # With a mask the plan reads the pointers on the device.
    ones = torch.ones(len(qo_indptr) - 1, dtype=torch.int32)
    qo_indptr, kv_indptr, tokens, mask, ones = (
        x.to(problem.device) for x in (qo_indptr, kv_indptr, tokens, mask, ones)
    )

    def plan() -> None:
        wrapper.plan(
            qo_indptr,
            kv_indptr,
            tokens,
            ones,
            *_heads(problem),
            1,
            custom_mask=mask,
            q_data_type=problem.q.dtype,
            kv_data_type=problem.k.dtype,
        )

    return _Planned(plan, lambda: wrapper.run(problem.q, caches))


def page_levels(forest: Forest, pages: Pages, page_size: int) -> list[PagedLevel]:
    """The levels of a cascade over pages: whole shared pages above, what is left at the leaves.

    An inner node holds the pages that it fills; a page that it shares with a child was copied by
    the child. Leaves are all on the last level, where a causal mask belongs. Rows without an inner
    node on a level form a group without pages; a level without any pages is left out.
    """
    depth = max(map(len, forest.row_nodes))
    ptr, levels = forest.query_ptr, []
    for level in range(depth - 1):
        groups, previous = [], None
        for row, path in enumerate(forest.row_nodes):
            node = path[level] if level < len(path) - 1 else None
            if node is None or node != previous:
                begin, end = (0, 0) if node is None else _full_pages(forest, node, page_size)
                groups.append((ptr[row], pages.block_tables[row, begin:end], page_size))
            previous = node
        levels.append(groups)
    last = []
    for row, path in enumerate(forest.row_nodes):
        length = int(pages.kv_lens[row])
        begin = _full_pages(forest, path[-1], page_size)[0]
        table = pages.block_tables[row, begin : -(-length // page_size)]
        last.append((ptr[row], table, (length - 1) % page_size + 1))
    levels.append(last)
    return [_level(g, forest.num_queries) for g in levels if any(len(table) for _, table, _ in g)]


def branch_pages(forest: Forest, pages: Pages, page_size: int) -> PagedLevel:
    """Every row on its own, with all pages of its table."""
    groups = []
    for row, length in enumerate(pages.kv_lens.tolist()):
        table = pages.block_tables[row, : -(-length // page_size)]
        groups.append((forest.query_ptr[row], table, (length - 1) % page_size + 1))
    return _level(groups, forest.num_queries)


def root_masks(
    forest: Forest,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """For each root its queries, the unique tokens below it and which query sees which.

    Returns:
        (qo_indptr, kv_indptr, tokens, mask): int32, and bool of the roots' masks end to end.

    Raises:
        Skip: if the mask has too many elements.
    """
    root_of = np.arange(len(forest.parents))
    for node, parent in enumerate(forest.parents):
        root_of[node] = root_of[parent] if parent >= 0 else node
    token_root = root_of.repeat(forest.sizes)
    roots = np.flatnonzero(np.array(forest.parents) < 0)
    bounds = forest.query_ptr[forest.node_rows[:, roots]]
    counts = [int((token_root == root).sum()) for root in roots]
    elements = sum((bounds[1] - bounds[0]) * counts)
    if elements > _LONGEST_MASK:
        raise Skip(f"needs a mask of {elements:.1e} elements")
    tokens, masks = [], []
    for i, root in enumerate(roots):
        held = np.flatnonzero(token_root == root)
        first, last = torch.from_numpy(forest.query_ranges[:, held])
        queries = torch.arange(*bounds[:, i].tolist())[:, None]
        tokens.append(held)
        masks.append(((queries >= first) & (queries < last)).flatten())
    return (
        _int32([0, *bounds[1]]),
        _int32([0, *np.cumsum(counts)]),
        _int32(np.concatenate(tokens)),
        torch.cat(masks),
    )


def _full_pages(forest: Forest, node: int, page_size: int) -> tuple[int, int]:
    """The pages that a node begins in and fills, as positions in its rows' tables."""
    return int(forest.ends[node] - forest.sizes[node]) // page_size, int(
        forest.ends[node]
    ) // page_size


def _level(groups: list[tuple[int, np.ndarray, int]], num_queries: int) -> PagedLevel:
    return PagedLevel(
        qo_indptr=_int32([*(begin for begin, _, _ in groups), num_queries]),
        kv_indptr=_int32(np.cumsum([0, *(len(table) for _, table, _ in groups)])),
        kv_indices=_int32(np.concatenate([table for _, table, _ in groups])),
        last_page_len=_int32([last for _, _, last in groups]),
    )


def _int32(values: object) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values, np.int32))


def _heads(problem: Problem) -> tuple[int, int, int]:
    return problem.q.shape[1], problem.k.shape[0], problem.q.shape[2]


def _workspace(problem: Problem) -> torch.Tensor:
    return torch.empty(_WORKSPACE_BYTES, dtype=torch.uint8, device=problem.device)


def _module(problem: Problem) -> ModuleType:
    if problem.device.type != "cuda":
        raise Skip("runs on a GPU only")
    try:
        return importlib.import_module("flashinfer")
    except ImportError as error:
        raise Skip(f"flashinfer: {error}") from error
