"""The tensors every contender starts from, and what the answer is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from ..forest import Forest, Pages
from ..tree import Tree

# Computes the attention of a prepared problem; the result is [num_queries, Hq, D].
Run = Callable[[], torch.Tensor]


class Skip(Exception):
    """A contender cannot run on a problem; the message says why."""


@dataclass(frozen=True)
class Problem:
    """Attention of the queries of a forest over what they see.

    Attributes:
        forest: the workload.
        q: [num_queries, Hq, D], row by row.
        k: [Hkv, unique_tokens, D], the unique tokens in the order of `Forest`.
        v: like k.
        max_bytes: most that a contender may allocate for its own layout of K and V.
        page_size: tokens in a page, for those that read pages.
    """

    forest: Forest
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    max_bytes: int
    page_size: int = 16

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.q.shape[1] // self.k.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.q.device

    @cached_property
    def pages(self) -> Pages:
        """The forest in pages, for all contenders that read pages."""
        return self.forest.pages(self.page_size)

    @cached_property
    def caches(self) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V in those pages, [num_pages, page_size, Hkv, D].

        Unused slots hold NaN: reading one spoils the result, which is checked.
        """
        tokens = torch.from_numpy(self.pages.page_tokens).to(self.device)
        return _paged(self.k, tokens), _paged(self.v, tokens)

    def need_tree(self) -> Tree:
        """The forest as a tree of uniform levels.

        Raises:
            Skip: if it is not one.
        """
        if not isinstance(self.forest, Tree):
            raise Skip("needs uniform levels")
        return self.forest

    def folded_queries(self) -> torch.Tensor:
        """[num_queries, Hkv, group, D]: without a mask a group of heads is just more rows."""
        return self.q.unflatten(1, (self.k.shape[0], self.group))

    def require_bytes(self, tokens: int) -> None:
        """Refuse K and V of so many tokens.

        Raises:
            Skip: if they need more than max_bytes.
        """
        needed = 2 * tokens * self.k.shape[0] * self.k.shape[2] * self.k.element_size()
        if needed > self.max_bytes:
            raise Skip(f"needs {needed / 2**30:.1f} GiB")

    def kv_of(self, tokens: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Copy K and V of `tokens` [nodes, n] to [nodes, Hkv, n, D].

        Raises:
            Skip: if the copies need more than max_bytes.
        """
        self.require_bytes(tokens.size)
        return self._gather(self.k, tokens), self._gather(self.v, tokens)

    def _gather(self, x: torch.Tensor, tokens: np.ndarray) -> torch.Tensor:
        index = torch.from_numpy(tokens.ravel()).to(self.device)
        shape = (x.shape[0], *tokens.shape, x.shape[2])
        return x.index_select(1, index).view(shape).transpose(0, 1)

    def mask_of(self, row: int) -> torch.Tensor:
        """bool [queries of the row, tokens on its path]: what each query sees."""
        first, last = self.forest.query_ranges[:, self.forest.row_tokens[row]]
        queries = np.arange(*self.forest.query_ptr[row : row + 2])[:, None]
        return torch.from_numpy((queries >= first) & (queries < last)).to(self.device)

    def definition(self, count: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
        """Some queries and their attention in float64, from the definition.

        Args:
            count: how many, evenly spread.

        Returns:
            (queries, out): int64 [n] and float64 [n, Hq, D].
        """
        queries = np.unique(np.linspace(0, self.forest.num_queries - 1, count).astype(int))
        first, last = self.forest.query_ranges
        outs = []
        for query in queries:
            seen = np.flatnonzero((query >= first) & (query < last))
            k, v = (self._gather(x, seen[None])[0].double() for x in (self.k, self.v))
            scores = self.folded_queries()[query].double() @ k.transpose(1, 2)
            scores = scores / self.q.shape[2] ** 0.5
            outs.append((scores.softmax(-1) @ v).flatten(0, 1))
        return torch.from_numpy(queries).to(self.device), torch.stack(outs)


def make_problem(
    forest: Forest,
    heads: tuple[int, int],
    head_dim: int,
    dtype: torch.dtype,
    max_bytes: int,
    device: torch.device | str = "cpu",
    page_size: int = 16,
    seed: int = 0,
) -> Problem:
    """Draw normal q, k and v for a forest.

    Args:
        forest: the workload.
        heads: query heads and KV heads.
        head_dim: elements per head.
        dtype: of q, k and v.
        max_bytes: see `Problem`.
        device: where the tensors are.
        page_size: tokens in a page.
        seed: of the random numbers.
    """
    device = torch.device(device)
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device).normal_(generator=generator)

    kv_shape = (heads[1], forest.unique_tokens, head_dim)
    q = normal(forest.num_queries, heads[0], head_dim)
    return Problem(forest, q, normal(*kv_shape), normal(*kv_shape), max_bytes, page_size)


def _paged(unique: torch.Tensor, page_tokens: torch.Tensor) -> torch.Tensor:
    """Copy [Hkv, unique_tokens, D] to [num_pages, page_size, Hkv, D]."""
    num_heads, _, dim = unique.shape
    cache = unique.new_empty(*page_tokens.shape, num_heads, dim)
    tokens = page_tokens.clamp(min=0)
    for head in range(num_heads):
        cache[:, :, head] = unique[head, tokens]
    cache[page_tokens < 0] = float("nan")
    return cache
