"""A cascade over any forest: the nodes of each depth in one go, rows' own queries apart."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from ..devices import best_seconds
from ..forest import Forest
from .base import Problem, Run, Skip
from .flash import State, flash, merge, varlen_flash


@dataclass(frozen=True)
class Part:
    """Queries [q_begin, q_end) that see all of the unique tokens; `causal` among themselves."""

    q_begin: int
    q_end: int
    tokens: np.ndarray
    causal: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Queries and tokens."""
        return self.q_end - self.q_begin, len(self.tokens)


def cut_levels(forest: Forest, two_levels: bool = False) -> list[list[Part]]:
    """The parts of each level; those of one level have no query in common.

    Level l holds the nodes at depth l. The tokens that are queries themselves form a last level,
    where a mask is needed. With `two_levels` the roots are the first level and the rest of every
    path the second, as one part for each row.
    """
    ptr, tokens = forest.query_ptr, forest.token_ptr
    levels: dict[int, list[Part]] = {}
    own: list[Part] = []
    seen: set[int] = set()
    for row, path in enumerate(forest.row_nodes):
        count = int(forest.query_counts[row])
        rest = [np.empty(0, np.int64)]
        for depth, node in enumerate(path):
            held = np.arange(tokens[node], tokens[node + 1])
            if depth == len(path) - 1 and count > 1:
                own.append(Part(int(ptr[row]), int(ptr[row + 1]), held[-count:], causal=True))
                held = held[:-count]
            if two_levels and depth:
                rest.append(held)
            elif node not in seen:
                seen.add(node)
                first, last = forest.node_rows[:, node]
                levels.setdefault(depth, []).append(Part(int(ptr[first]), int(ptr[last]), held))
        if two_levels and len(path) > 1:
            part = Part(int(ptr[row]), int(ptr[row + 1]), np.concatenate(rest))
            levels.setdefault(1, []).append(part)
    cut = [[part for part in levels[depth] if len(part.tokens)] for depth in sorted(levels)]
    return [level for level in (*cut, own) if level]


def build_levels(problem: Problem, two_levels: bool) -> Run:
    """Prepare every level; a query without keys on a level takes nothing from it.

    Raises:
        Skip: if the copies need too much memory, or torch cannot do it.
    """
    forest = problem.forest
    levels = cut_levels(forest, two_levels)
    problem.require_bytes(sum(len(part.tokens) for level in levels for part in level))
    build = _padded_level if problem.device.type == "cpu" else _varlen_level
    runs = [build(problem, level) for level in levels]
    return lambda: merge([run() for run in runs]).to(problem.q.dtype).flatten(1, 2)


def _padded_level(problem: Problem, level: list[Part]) -> Callable[[], State]:
    """One call for the parts of one shape, or of one number of queries with keys padded.

    The faster is used. What a call computes is scattered to its queries.
    """
    exact: dict[tuple[int, int], list[Part]] = {}
    padded: dict[int, list[Part]] = {}
    for part in level:
        exact.setdefault(part.shape, []).append(part)
        padded.setdefault(part.shape[0], []).append(part)
    candidates = [_scattered(problem, list(exact.values()))]
    if len(padded) < len(exact) and not level[0].causal:
        with contextlib.suppress(Skip):  # padding may need too much memory
            candidates.append(_scattered(problem, list(padded.values())))
    return min(candidates, key=lambda fn: best_seconds(fn, problem.device, 2))


def _scattered(problem: Problem, groups: list[list[Part]]) -> Callable[[], State]:
    calls = [_one_call(problem, parts) for parts in groups]
    folded = problem.folded_queries()
    out = torch.zeros(folded.shape, device=problem.device)
    lse = torch.full(folded.shape[:-1], -torch.inf, device=problem.device)

    def run() -> State:
        for queries, call in calls:
            part_out, part_lse = call()
            out[queries] = part_out.float()
            lse[queries] = part_lse
        return out, lse

    return run


def _one_call(problem: Problem, parts: list[Part]) -> tuple[torch.Tensor, Callable[[], State]]:
    count, group = parts[0].shape[0], problem.group
    queries = _index(problem, (np.arange(part.q_begin, part.q_end) for part in parts))
    longest = max(len(part.tokens) for part in parts)
    tokens = np.zeros((len(parts), longest), np.int64)
    bias = None
    if any(len(part.tokens) < longest for part in parts):
        bias = torch.zeros(len(parts), 1, 1, longest, dtype=problem.q.dtype)
    for i, part in enumerate(parts):
        tokens[i, : len(part.tokens)] = part.tokens
        if bias is not None:
            bias[i, :, :, len(part.tokens) :] = -torch.inf
    k, v = problem.kv_of(tokens)
    # [parts, Hkv, count * group, D]
    q = problem.folded_queries()[queries].unflatten(0, (len(parts), count))
    q = q.transpose(1, 2).flatten(2, 3)
    if bias is not None:
        bias = bias.expand(-1, 1, q.shape[2], -1).to(problem.device)
    if parts[0].causal:
        masks = torch.stack([_own_mask(problem, part) for part in parts])
        bias = masks[:, None].repeat_interleave(group, 2).to(q.dtype).log()

    def call() -> State:
        out, lse = flash(q, k, v, bias)
        return (
            out.unflatten(2, (count, group)).transpose(1, 2).flatten(0, 1),
            lse.unflatten(2, (count, group)).transpose(1, 2).flatten(0, 1),
        )

    return queries, call


def _varlen_level(problem: Problem, level: list[Part]) -> Callable[[], State]:
    """One ragged call for the whole level."""
    if level[0].causal and problem.forest.draft_parents is not None:
        return _padded_draft(problem, level)
    if problem.q.dtype == torch.float32:
        raise Skip("torch's CUDA flash attention takes fp16 and bf16")
    group, causal = problem.group, level[0].causal
    queries = _index(problem, (np.arange(part.q_begin, part.q_end) for part in level))
    tokens = _index(problem, (part.tokens for part in level))
    k, v = (x[:, tokens].transpose(0, 1).contiguous() for x in (problem.k, problem.v))
    q = problem.q[queries]
    shapes = np.array([part.shape for part in level])
    if not causal:
        # Without a mask the heads of a group are more rows of their KV head.
        q = problem.folded_queries()[queries].transpose(1, 2).flatten(0, 1)
        shapes[:, 0] *= group
    ptrs = np.concatenate([[[0, 0]], shapes.cumsum(0)]).astype(np.int32)
    q_ptr, k_ptr = (torch.from_numpy(ptrs[:, i].copy()).to(problem.device) for i in range(2))
    longest = (int(shapes[:, 0].max()), int(shapes[:, 1].max()))
    complete = len(queries) == problem.forest.num_queries
    folded = problem.folded_queries().shape

    def run() -> State:
        out, lse = varlen_flash(q, k, v, q_ptr, k_ptr, longest, causal)
        if causal:
            out, lse = out.unflatten(1, folded[1:3]), lse.unflatten(1, folded[1:3])
        else:
            out = out.unflatten(0, (-1, group)).transpose(1, 2)
            lse = lse.unflatten(0, (-1, group)).transpose(1, 2)
        if complete:
            return out, lse
        all_out, all_lse = out.new_zeros(folded), lse.new_full(folded[:3], -torch.inf)
        return all_out.index_copy_(0, queries, out), all_lse.index_copy_(0, queries, lse)

    return run


def _padded_draft(problem: Problem, level: list[Part]) -> Callable[[], State]:
    """Draft trees, all of one size, by plain products: no flash kernel takes their mask."""
    count = level[0].shape[0]
    k, v = problem.kv_of(np.stack([part.tokens for part in level]))
    q = problem.folded_queries().unflatten(0, (len(level), count)).permute(0, 2, 3, 1, 4)
    hidden = ~_own_mask(problem, level[0])
    scale = problem.q.shape[2] ** -0.5

    def run() -> State:
        # [rows, Hkv, group, count, tokens]
        scores = (q @ k.transpose(-1, -2)[:, :, None]).float() * scale
        scores = scores.masked_fill(hidden, -torch.inf)
        lse = scores.logsumexp(-1)
        out = (scores - lse[..., None]).exp().to(v.dtype) @ v[:, :, None]
        return out.permute(0, 3, 1, 2, 4).flatten(0, 1), lse.permute(0, 3, 1, 2).flatten(0, 1)

    return run


def _own_mask(problem: Problem, part: Part) -> torch.Tensor:
    """bool [queries, tokens] of a part whose tokens are its queries."""
    first, last = problem.forest.query_ranges[:, part.tokens]
    queries = np.arange(part.q_begin, part.q_end)[:, None]
    return torch.from_numpy((queries >= first) & (queries < last)).to(problem.device)


def _index(problem: Problem, ranges: Iterable[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(list(ranges))).to(problem.device)
