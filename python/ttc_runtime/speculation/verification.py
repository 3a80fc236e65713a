"""One pass of the policy over the drafts of many branches, and what stays of it.

Each branch runs its last token and its draft. A chain is a row like any other. A tree is one row
whose tokens see their ancestors only (`draft_parents`), and what was accepted is moved to its place
(`commit_kv`):

    slots      t  a  b  c  d        t -+- a --- c         accepted: a, c
    parents    -1 0  0  1  2           +- b --- d         moved:    c to where b was

The order of keys is then not the one of ordinary decoding, and sums over them may round otherwise.
In the deterministic mode every path of a tree is therefore a fork with its tokens at their own
places, and the fork with the accepted path takes the branch's place.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ttc_kernels import Branch as PoolBranch
from ttc_kernels import DraftTree, OutOfPages, VerifyResult, commit_kv, commit_plan
from ttc_runtime.models import PagedModel
from ttc_runtime.sequence import Sequence
from ttc_runtime.speculation.drafts import Draft


@dataclass(eq=False)
class _Row:
    """One row of the pass: `nodes` of a branch's tree (0 is its last token) on a pool branch."""

    kv: PoolBranch
    nodes: list[int]
    parents: np.ndarray | None = None
    slots: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))


class Pass:
    """The policy's outputs for drafts. Made by running the pass.

    model: the policy's. sequences: with one token each that is still to be run. drafts: what might
    follow it. tree: the nodes as `DraftTree`. tokens: int32 ``[N]`` of the nodes. logits: their
    outputs ``[N, V]``. Raises OutOfPages with everything as it was.
    """

    def __init__(self, model: PagedModel, sequences: list[Sequence], drafts: list[Draft]) -> None:
        self.model, self.sequences, self.drafts = model, sequences, drafts
        counts = [1 + len(draft.tokens) for draft in drafts]
        self.cu_nodes = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        parents = [p for draft in drafts for p in (-1, *(parent + 1 for parent in draft.parents))]
        self.tree = DraftTree(np.array(parents, np.int32), self.cu_nodes)
        self.rows: list[list[_Row]] = []
        try:
            for sequence, draft in zip(sequences, drafts, strict=True):
                self.rows.append([])
                self._reserve(sequence, draft, self.rows[-1])
        except OutOfPages:
            self._undo()
            raise
        self.tokens_run = sum(len(row.nodes) for rows in self.rows for row in rows)
        ids = [t for s, d in zip(sequences, drafts, strict=True) for t in (s.tokens[-1], *d.tokens)]
        self.tokens = torch.tensor(ids, dtype=torch.int32)
        self.logits = self._forward(np.asarray(ids, np.int64))

    def _reserve(self, sequence: Sequence, draft: Draft, rows: list[_Row]) -> None:
        kv = sequence.kv
        assert kv is not None and sequence.pending == 1
        every = list(range(1 + len(draft.tokens)))
        if draft.is_chain:
            rows.append(_Row(kv, every))
        elif not self.model.deterministic:
            rows.append(_Row(kv, every, np.array([-1, *(p + 1 for p in draft.parents)], np.int32)))
        else:
            paths = draft.paths()
            forks = [kv, *kv.fork(len(paths) - 1)] if len(paths) > 1 else [kv]
            rows += [
                _Row(fork, [0, *(v + 1 for v in path)])
                for fork, path in zip(forks, paths, strict=True)
            ]
        for row in rows:
            row.slots = row.kv.append(len(row.nodes))

    def _undo(self) -> None:
        for sequence, rows in zip(self.sequences, self.rows, strict=False):
            for row in rows:
                if row.kv is not sequence.kv:
                    row.kv.free()
                elif len(row.slots):
                    row.kv.truncate(sequence.length)

    def _forward(self, ids: np.ndarray) -> Tensor:
        token_ids, positions, slots, keep = [], [], [], []
        offset = 0
        rows = [row for group in self.rows for row in group]
        starts = [
            s.length for s, group in zip(self.sequences, self.rows, strict=True) for _ in group
        ]
        for b, group in enumerate(self.rows):
            depths = np.array([0, *self.drafts[b].depths()])
            where = np.zeros(len(depths), np.int64)
            for row in group:
                nodes = np.array(row.nodes)
                token_ids.append(ids[self.cu_nodes[b] + nodes])
                positions.append(self.sequences[b].length + depths[nodes])
                slots.append(row.slots)
                # Rows agree on the nodes that they share; any of them will do.
                where[nodes] = offset + np.arange(len(nodes))
                offset += len(nodes)
            keep.append(where)
        q_lens = np.array([len(row.nodes) for row in rows], np.int32)
        parents = [row.parents for row in rows]
        return self.model.forward(
            np.concatenate(token_ids),
            np.concatenate(positions),
            np.concatenate(slots),
            [row.kv for row in rows],
            np.array(starts, np.int32) + q_lens,
            q_lens,
            np.concatenate(keep),
            draft_parents=parents if any(p is not None for p in parents) else None,
        )

    def keep(self, result: VerifyResult, taken: list[int]) -> None:
        """Keep the KV of each branch's last token and of the drafts that were taken.

        taken: tokens of each result that its branch took, the last of which is still to be run.
        """
        path = result.path.cpu().numpy()
        for b, (sequence, group) in enumerate(zip(self.sequences, self.rows, strict=True)):
            kept = path[b, : taken[b]].tolist()
            chosen = group[0]
            if len(group) > 1:
                chosen = next(row for row in group if row.nodes[: len(kept)] == kept)
                for row in group:
                    if row is not chosen:
                        row.kv.free()
                sequence.kv = chosen.kv
        self._move(result, taken)
        for b, sequence in enumerate(self.sequences):
            kv = sequence.kv
            assert kv is not None
            kv.truncate(sequence.length + taken[b])
            run = sum(len(row.nodes) for row in self.rows[b])
            sequence.ledger.run += run - taken[b]
            sequence.grow(taken[b])

    def _move(self, result: VerifyResult, taken: list[int]) -> None:
        """In trees of one row, bring the accepted path together."""
        moving = [len(rows) == 1 and rows[0].parents is not None for rows in self.rows]
        if not any(moving):
            return
        slots = torch.zeros(self.tree.num_nodes, dtype=torch.int32)
        limits = torch.zeros(len(taken), dtype=torch.int32)
        for b, rows in enumerate(self.rows):
            if moving[b]:
                slots[self.cu_nodes[b] : self.cu_nodes[b + 1]] = torch.from_numpy(rows[0].slots)
                limits[b] = taken[b] - 1
        tokens, path, status = (x.cpu() for x in (result.tokens, result.path, result.status))
        host = VerifyResult(limits, tokens, path, None, status)
        src, dst = commit_plan(host, self.tree, slots)
        used = src >= 0
        if used.any():
            device = self.model.device
            commit_kv(
                self.model.k_caches, self.model.v_caches,
                src[used].to(device), dst[used].to(device),
            )  # fmt: skip
