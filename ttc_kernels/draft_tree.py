"""Trees of draft tokens: their links and masks, other engines' layouts of them, and what stays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from .verify_result import VerifyResult

__all__ = ["MAX_DRAFT_NODES", "DraftTree", "commit_plan"]

MAX_DRAFT_NODES = 256
"""Nodes of one request, its last committed token included."""

_Indices = torch.Tensor | np.ndarray | Sequence[int]


class DraftTree:
    """Draft tokens of many requests as trees, packed one request after the other.

    Node 0 of a request is its last committed token; the logits of a node predict what follows it.
    A request without nodes is padding.

        tokens   the  cat  dog  sat          0 the -+- 1 cat --- 3 sat
        parent    -1    0    0    1                 |
        node       0    1    2    3                 +- 2 dog

    Args:
        parent: int32 ``[N]``, each node's parent within its request, which comes before it; -1 for
            node 0.
        cu_nodes: int32 ``[B + 1]``: nodes ``cu_nodes[b]`` to ``cu_nodes[b + 1]`` belong to request
            ``b``, at most 256.
        width: columns of results, more than the deepest node's depth; found by looking where the
            arguments are on the host, else 256.
        device: where the tensors go, by default where they are.

    Attributes: parent, cu_nodes, num_nodes, num_requests, width, device.

    Raises:
        ValueError: for what is no tree. Tensors on a GPU are not looked at; a request there that is
            no tree gets the status 2.

    >>> tree = DraftTree([-1, 0, 0, 1], [0, 4])
    >>> tree.width, tree.links()[0].tolist()
    (3, [1, 3, -1, -1])
    """

    def __init__(
        self, parent: _Indices, cu_nodes: _Indices, *, width: int | None = None, device=None
    ) -> None:
        self._only_chains: bool | None = None  # not looked at
        on_host = not any(isinstance(x, torch.Tensor) and x.is_cuda for x in (parent, cu_nodes))
        if on_host:
            nodes, ends = _int32("parent", parent), _int32("cu_nodes", cu_nodes)
            deepest, self._only_chains = _check(nodes, ends)
            if width is not None and width <= deepest:
                raise ValueError(f"DraftTree: width must be more than {deepest}, got {width}")
            width = deepest + 1 if width is None else width
        if width is not None and not isinstance(width, int):
            raise TypeError(f"DraftTree: width must be an int, got {type(width).__name__}")
        self.parent = torch.as_tensor(parent, dtype=torch.int32, device=device).contiguous()
        self.cu_nodes = torch.as_tensor(cu_nodes, dtype=torch.int32, device=device).contiguous()
        self.width = MAX_DRAFT_NODES if width is None else width

    @classmethod
    def chains(cls, num_drafts: _Indices, device=None) -> DraftTree:
        """Chains of so many drafts, int ``[B]``: a request has a node more than it has drafts.

        Raises ValueError for numbers below 0 or of too many nodes.

        >>> DraftTree.chains([2, 0]).parent.tolist()
        [-1, 0, 1, -1]
        """
        drafts = _int32("num_drafts", num_drafts)
        if drafts.ndim != 1 or (drafts < 0).any():
            raise ValueError(f"DraftTree.chains: num_drafts must be [B], >= 0, got {num_drafts}")
        counts = drafts.astype(np.int64) + 1
        cu_nodes = np.concatenate([[0], counts.cumsum()])
        parent = np.arange(cu_nodes[-1]) - np.repeat(cu_nodes[:-1], counts) - 1
        return cls(parent.astype(np.int32), cu_nodes.astype(np.int32), device=device)

    @property
    def device(self) -> torch.device:
        return self.parent.device

    @property
    def num_nodes(self) -> int:
        return self.parent.shape[0]

    @property
    def num_requests(self) -> int:
        return self.cu_nodes.shape[0] - 1

    def requests(self) -> torch.Tensor:
        """int64 ``[N]``, the request of each node."""
        index = torch.arange(self.num_nodes, device=self.device)
        return torch.searchsorted(self.cu_nodes[1:].long(), index, right=True)

    def links(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """int32 ``[N]`` each: first child, next sibling (both within the request, -1 for none) and
        depth, 0 at the root. Children are in the order of their indices. No wait for a GPU.

        >>> [x.tolist() for x in DraftTree([-1, 0, 0, 1], [0, 4]).links()]
        [[1, 3, -1, -1], [-1, 2, -1, -1], [0, 1, 1, 2]]
        """
        n, device = self.num_nodes, self.device
        base = self.cu_nodes.long()[self.requests()] if n else torch.empty(0, dtype=torch.int64)
        index = torch.arange(n, device=device)
        parent = torch.where(self.parent < 0, -1, self.parent + base)
        is_child = parent >= 0
        place = torch.where(is_child, parent, n)
        first = torch.full((n + 1,), n, dtype=torch.int64, device=device)
        first = first.scatter_reduce(0, place, index, "amin")[:n]
        # Sorted by parent, siblings are neighbours, in the order of their indices.
        order = torch.argsort(place, stable=True)
        later = torch.cat([order[1:], torch.full((1,), n, device=device)])[:n]
        same = is_child[order] & (
            torch.cat([place, place.new_full((1,), n)])[later] == place[order]
        )
        following = torch.empty_like(index)
        following[order] = torch.where(same, later, n)
        local = lambda x: torch.where(x < n, x - base, -1).int()  # noqa: E731
        return local(first), local(following), self._depth(parent).int()

    def _depth(self, parent: torch.Tensor) -> torch.Tensor:
        depth = torch.zeros_like(parent)
        above = parent
        for _ in range(self.width - 1):
            depth += above >= 0
            above = torch.where(above >= 0, parent[above.clamp(min=0)], -1)
        return depth

    def mask(self) -> torch.Tensor:
        """int64 ``[N, words]``: bit ``i % 64`` of word ``i // 64`` is set where node ``i`` of the
        request is an ancestor of the node, or the node itself.

        >>> DraftTree([-1, 0, 0, 1], [0, 4]).mask()[:, 0].tolist()
        [1, 3, 5, 11]
        """
        n, device = self.num_nodes, self.device
        words = MAX_DRAFT_NODES // 64
        bits = torch.zeros((n, MAX_DRAFT_NODES), dtype=torch.int64, device=device)
        base = self.cu_nodes.long()[self.requests()] if n else torch.empty(0, dtype=torch.int64)
        index = torch.arange(n, device=device)
        at = index - base
        for _ in range(self.width):
            bits[index, at.clamp(min=0)] |= (at >= 0).long()
            at = torch.where(at >= 0, self.parent[(base + at).clamp(min=0)].long(), -1)
        shifts = torch.arange(64, device=device)
        return (bits.view(n, words, 64) << shifts).sum(-1)

    def to_sglang(self, num_nodes: int | None = None) -> tuple[torch.Tensor, ...]:
        """SGLang's ``retrive_index``, ``retrive_next_token`` and ``retrive_next_sibling``.

        num_nodes: columns, by default those of the largest request. Returns int64 ``[B, columns]``,
        -1 where there is none; the index of a node is its place among all columns. Of a tree on a
        GPU the sizes have to be given, or this waits for it.

        >>> [x.tolist() for x in DraftTree([-1, 0, 0, 1], [0, 4]).to_sglang()]
        [[[0, 1, 2, 3]], [[1, 3, -1, -1]], [[-1, 2, -1, -1]]]
        """
        counts = self.cu_nodes.diff()
        if num_nodes is None or not counts.is_cuda:
            largest = int(counts.max()) if len(counts) else 0
            if num_nodes is not None and num_nodes < largest:
                raise ValueError(
                    f"DraftTree.to_sglang: num_nodes must be at least {largest}, as many as the "
                    f"largest request has, got {num_nodes}"
                )
        columns = largest if num_nodes is None else num_nodes
        request = self.requests()
        local = torch.arange(self.num_nodes, device=self.device) - self.cu_nodes.long()[request]
        first, following, _ = self.links()
        shape = (self.num_requests, columns)
        tables = [torch.full(shape, -1, dtype=torch.int64, device=self.device) for _ in range(3)]
        for table, values in zip(
            tables, (request * columns + local, first, following), strict=True
        ):
            table[request, local] = values.long()
        return tuple(tables)

    @classmethod
    def from_sglang(cls, next_token: torch.Tensor, next_sibling: torch.Tensor) -> DraftTree:
        """The trees of SGLang's ``retrive_next_token`` and ``retrive_next_sibling``, ``[B, n]``.

        Columns at the end that the links do not reach are padding. Anything else that is no tree
        raises ValueError. Looks at the tensors, so it waits for a GPU.

        >>> tree = DraftTree([-1, 0, 0, 1], [0, 4])
        >>> DraftTree.from_sglang(*tree.to_sglang()[1:]).parent.tolist()
        [-1, 0, 0, 1]
        """
        child, sibling = (
            _int32("links", x.flatten()).reshape(x.shape) for x in (next_token, next_sibling)
        )
        if child.ndim != 2 or child.shape != sibling.shape:
            raise ValueError(
                f"DraftTree.from_sglang: both must be [B, n], got {list(child.shape)} and "
                f"{list(sibling.shape)}"
            )
        parents: list[int] = []
        ends = [0]
        for b, (first, following) in enumerate(zip(child.tolist(), sibling.tolist(), strict=True)):
            found = {0: -1}
            waiting = [0]
            while waiting:
                node = waiting.pop()
                x = first[node]
                while x != -1:
                    if not 0 < x < len(first) or x in found:
                        raise ValueError(
                            f"DraftTree.from_sglang: request {b} is no tree at node {x}"
                        )
                    found[x] = node
                    waiting.append(x)
                    x = following[x]
            if sorted(found) != list(range(len(found))):
                raise ValueError(f"DraftTree.from_sglang: request {b} has nodes without a parent")
            parents += [found[i] for i in range(len(found))]
            ends.append(len(parents))
        return cls(np.array(parents, np.int32), np.array(ends, np.int32), device=next_token.device)

    @classmethod
    def from_vllm(cls, cu_num_draft_tokens: torch.Tensor) -> DraftTree:
        """The chains of vLLM's ``cu_num_draft_tokens``, int ``[B]``: running sums of the drafts.

        >>> DraftTree.from_vllm(torch.tensor([2, 2, 3])).cu_nodes.tolist()
        [0, 3, 4, 6]
        """
        ends = _int32("cu_num_draft_tokens", cu_num_draft_tokens)
        if ends.ndim != 1 or (np.diff(ends, prepend=0) < 0).any():
            raise ValueError(
                f"DraftTree.from_vllm: cu_num_draft_tokens must be [B] and rise from 0, got "
                f"{cu_num_draft_tokens.tolist()}"
            )
        return cls.chains(np.diff(ends, prepend=0), device=cu_num_draft_tokens.device)

    def to_vllm(self) -> torch.Tensor:
        """vLLM's ``cu_num_draft_tokens``, int32 ``[B]``, of chains. Raises ValueError for others.

        >>> DraftTree.chains([2, 0, 1]).to_vllm().tolist()
        [2, 2, 3]
        """
        local = torch.arange(self.num_nodes, device=self.device) - self.cu_nodes[
            :-1
        ].repeat_interleave(self.cu_nodes.diff().long())
        if not torch.equal(self.parent, (local - 1).int()):
            raise ValueError("DraftTree.to_vllm: only chains have vLLM's layout")
        if (self.cu_nodes.diff() == 0).any():
            raise ValueError("DraftTree.to_vllm: a request without nodes has no place in it")
        counts = torch.arange(1, self.num_requests + 1, device=self.device)
        return (self.cu_nodes[1:] - counts).int()


def commit_plan(
    result: VerifyResult, tree: DraftTree, slots: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `commit_kv` has to move so that accepted drafts stand one behind the other.

    Args:
        result: of a verification.
        tree: the nodes that were verified.
        slots: int32 ``[N]``, where each node's keys and values are; those of a request in the order
            of its positions, as `Branch.append` returns them.

    Returns:
        ``(src_slots, dst_slots)``, int32 ``[B * (width - 1)]``, -1 where nothing is to be done. A
        request then holds its first ``1 + num_accepted`` slots, the last committed token's among
        them. No wait for a GPU.

    Raises:
        ValueError: for a wrong shape. TypeError: for a wrong dtype.

    >>> from ttc_kernels import VerifyResult
    >>> tree = DraftTree([-1, 0, 0, 2], [0, 4])
    >>> result = VerifyResult.empty(tree)
    >>> result.num_accepted[0], result.path[0] = 2, torch.tensor([0, 2, 3])
    >>> [x.tolist() for x in commit_plan(result, tree, torch.tensor([8, 9, 10, 11]).int())]
    [[10, 11], [9, 10]]
    """
    if slots.dtype != torch.int32:
        raise TypeError(f"commit_plan: slots must be int32, got {slots.dtype}")
    if slots.shape != (tree.num_nodes,):
        raise ValueError(f"commit_plan: slots must be [{tree.num_nodes}], got {list(slots.shape)}")
    if result.path.shape[0] != tree.num_requests:
        raise ValueError(
            f"commit_plan: result must be of the tree's {tree.num_requests} requests, got "
            f"{result.path.shape[0]}"
        )
    columns = result.path.shape[1]
    step = torch.arange(1, columns, device=slots.device)
    node, begin = result.path[:, 1:], tree.cu_nodes[:-1, None]
    moved = (step <= result.num_accepted[:, None]) & (node != step)
    if not tree.num_nodes:
        nothing = torch.full((moved.numel(),), -1, dtype=torch.int32, device=slots.device)
        return nothing, nothing.clone()
    last = tree.num_nodes - 1
    src = slots[(begin + node).clamp(0, last).long()]
    dst = slots[(begin + step).clamp(0, last).long()]
    return (
        torch.where(moved, src, -1).flatten().contiguous(),
        torch.where(moved, dst, -1).flatten().contiguous(),
    )


def _int32(name: str, values: _Indices) -> np.ndarray:
    array = values.cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"DraftTree: {name} must be int32, got {array.dtype}")
    if (
        array.dtype != np.int32
        and array.size
        and not (-(2**31) <= array.min() <= array.max() < 2**31)
    ):
        raise ValueError(
            f"DraftTree: {name} must be within int32, got {array.min()} to {array.max()}"
        )
    return array.astype(np.int32)


def _check(parent: np.ndarray, cu_nodes: np.ndarray) -> tuple[int, bool]:
    """The largest depth, and whether all are chains. Raises ValueError for what is no tree."""
    if parent.ndim != 1 or cu_nodes.ndim != 1 or len(cu_nodes) < 1:
        raise ValueError(
            f"DraftTree: parent must be [N] and cu_nodes [B + 1], got {list(parent.shape)} and "
            f"{list(cu_nodes.shape)}"
        )
    counts = np.diff(cu_nodes)
    if cu_nodes[0] != 0 or cu_nodes[-1] != len(parent) or (counts < 0).any():
        raise ValueError(
            f"DraftTree: cu_nodes must rise from 0 to {len(parent)}, got {cu_nodes.tolist()}"
        )
    if (counts > MAX_DRAFT_NODES).any():
        raise ValueError(
            f"DraftTree: a request must have at most {MAX_DRAFT_NODES} nodes, got {counts.max()}"
        )
    begin = np.repeat(cu_nodes[:-1], counts)
    local = np.arange(len(parent)) - begin
    good = np.where(local == 0, parent == -1, (parent >= 0) & (parent < local))
    if not good.all():
        at = int(np.argmin(good))
        expected = "-1, the root's" if local[at] == 0 else f"in [0, {local[at]}), an earlier node"
        raise ValueError(f"DraftTree: parent[{at}] must be {expected}, got {parent[at]}")
    depth = 0
    parents = np.where(parent >= 0, parent + begin, -1)
    above = parents
    while (above >= 0).any():
        depth += 1
        above = np.where(above >= 0, parents[above], -1)
    return depth, bool((parent == local - 1).all())
