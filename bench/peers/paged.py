"""Kernels that read block tables: every branch on its own, but on pages shared with the others."""

from __future__ import annotations

import importlib
import inspect

import torch

from .base import Problem, Run, Skip


def build_torch_paged(problem: Problem) -> Run:
    """torch's ragged flash attention over block tables, where this torch has it.

    Raises:
        Skip: if it has not, or cannot do it on this device.
    """
    from torch.nn.attention.varlen import varlen_attn

    parameters = inspect.signature(varlen_attn).parameters
    if problem.device.type != "cuda" or "block_table" not in parameters:
        raise Skip(f"torch {torch.__version__} has no paged flash attention here")
    _refuse_drafts(problem)
    k_cache, v_cache = problem.caches
    tables, lens = _tables(problem)
    forest = problem.forest
    q_ptr = torch.from_numpy(forest.query_ptr).int().to(problem.device)
    longest_q, longest_k = int(forest.query_counts.max()), int(forest.kv_lens.max())

    def run() -> torch.Tensor:
        out = varlen_attn(
            problem.q,
            k_cache,
            v_cache,
            q_ptr,
            None,
            longest_q,
            longest_k,
            window_size=(-1, 0) if longest_q > 1 else (-1, -1),
            enable_gqa=True,
            seqused_k=lens,
            block_table=tables,
        )
        assert isinstance(out, torch.Tensor)  # the log-sum-exp was not asked for
        return out

    return run


def build_flash_attn(problem: Problem) -> Run:
    """flash_attn_with_kvcache of the flash-attn package, version 3 if it is there, else 2.

    Raises:
        Skip: if neither is installed, or the rows have different numbers of queries.
    """
    name, tables_argument = "flash_attn_interface", "page_table"
    try:
        package = importlib.import_module(name)
    except ImportError:
        try:
            package = importlib.import_module("flash_attn")
        except ImportError:
            raise Skip("flash-attn is not installed") from None
        tables_argument = "block_table"
        if problem.page_size % 256:
            raise Skip("flash-attn 2 needs pages of a multiple of 256 tokens") from None
    _refuse_drafts(problem)
    counts = problem.forest.query_counts
    if (counts != counts[0]).any():
        raise Skip("needs equally many queries in every row")
    k_cache, v_cache = problem.caches
    tables, lens = _tables(problem)
    q = problem.q.unflatten(0, (-1, int(counts[0])))

    def run() -> torch.Tensor:
        out = package.flash_attn_with_kvcache(
            q, k_cache, v_cache, cache_seqlens=lens, causal=True, **{tables_argument: tables}
        )
        return out.flatten(0, 1)

    return run


def _refuse_drafts(problem: Problem) -> None:
    if problem.forest.draft_parents is not None:
        raise Skip("takes no draft tree")


def _tables(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """Block tables and lengths on the device; some kernels load entries past a row's end."""
    tables = torch.from_numpy(problem.pages.block_tables)
    held = tables < problem.pages.page_tokens.shape[0]
    tables = torch.where(held, tables, torch.zeros_like(tables)).to(problem.device)
    return tables, torch.from_numpy(problem.pages.kv_lens).to(problem.device)
