"""The tensors every contender starts from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..workloads import Tree

# Computes the attention of a prepared problem; the result is [num_queries, Hq, D].
Run = Callable[[], torch.Tensor]


class Skip(Exception):
    """A contender cannot run on a problem; the message says why."""


@dataclass(frozen=True)
class Problem:
    """Attention of every leaf of a tree over the tokens on its path.

    Attributes:
        tree: the shape.
        q: [num_queries, Hq, D], one query per leaf.
        k: [Hkv, unique_tokens, D], the unique tokens in the order of `Tree`.
        v: like k.
        max_bytes: most that a contender may allocate for its own layout of K and V.
    """

    tree: Tree
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    max_bytes: int

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.q.shape[1] // self.k.shape[0]

    def folded_queries(self) -> torch.Tensor:
        """[num_queries, Hkv, group, D]: without a mask a group of heads is just more rows."""
        return self.q.unflatten(1, (self.k.shape[0], self.group))

    def kv_of(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Copy K and V of `tokens` [nodes, n] to [nodes, Hkv, n, D].

        Raises:
            Skip: if the copies need more than max_bytes.
        """
        hkv, _, dim = self.k.shape
        needed = 2 * tokens.numel() * hkv * dim * self.k.element_size()
        if needed > self.max_bytes:
            raise Skip(f"needs {needed / 2**30:.1f} GiB")
        shape = (hkv, *tokens.shape, dim)
        k, v = (x.index_select(1, tokens.flatten()).view(shape) for x in (self.k, self.v))
        return k.transpose(0, 1), v.transpose(0, 1)


def make_problem(
    tree: Tree,
    heads: tuple[int, int],
    head_dim: int,
    dtype: torch.dtype,
    max_bytes: int,
    seed: int = 0,
) -> Problem:
    """Draw normal q, k and v for a tree.

    Args:
        tree: the shape.
        heads: query heads and KV heads.
        head_dim: elements per head.
        dtype: of q, k and v.
        max_bytes: see `Problem`.
        seed: of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype).normal_(generator=generator)

    kv_shape = (heads[1], tree.unique_tokens, head_dim)
    q = normal(tree.num_queries, heads[0], head_dim)
    return Problem(tree, q, normal(*kv_shape), normal(*kv_shape), max_bytes)
