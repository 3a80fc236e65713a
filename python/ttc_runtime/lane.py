"""A lane: one model, its pages, and the sequences that run on it in shared batches."""

from __future__ import annotations

import time

import numpy as np
from torch import Tensor

from ttc_kernels import Branch as PoolBranch
from ttc_kernels import OutOfPages
from ttc_runtime.models import PagedModel
from ttc_runtime.prefix_cache import PrefixCache, common_prefix
from ttc_runtime.sequence import Sequence

CHUNK = 1024  # new tokens of prompts and steps to one forward pass, beside decoding rows


class Lane:
    """Runs sequences on one model and shares their prefixes.

    model: with its pages allocated.
    """

    def __init__(self, model: PagedModel) -> None:
        self.model = model
        self.cache = PrefixCache(shortest=model.page_size)
        self._prefilling: dict[int, tuple[Sequence, np.ndarray]] = {}

    def prepare(self, sequence: Sequence, *, sampled: bool) -> Sequence | None:
        """Attach a sequence to the pool.

        sampled: the output after its last token will be needed, even if a parent ran that token.
        Returns the sequence to be run next: itself once attached, or the ancestor whose tokens it
        builds on; None if it waits for another prompt with the same prefix.
        """
        if sequence.kv is not None:
            return sequence
        parent = sequence.parent
        if parent is None:
            return self._attach_root(sequence)
        shared = sequence.fork_len
        sampled = sampled and len(sequence.tokens) == shared
        holder = parent
        if parent.kv is None or parent.length < shared:
            relative = _relative(sequence)
            if relative is None:
                target = self.prepare(parent, sampled=sampled)
                if target is not parent or parent.length < shared:
                    return target
            else:
                holder = relative
        if sampled and (holder.logits is None or holder.length > shared):
            shared -= 1  # the output is gone: run the last token again
        kv = _kv(holder).fork(1)[0]
        if kv.length > shared:
            kv.truncate(shared)
        sequence.attach(kv, shared, holder)
        if sampled and holder.length == shared:
            sequence.logits = holder.logits
        return sequence

    def _attach_root(self, root: Sequence) -> Sequence | None:
        tokens = np.asarray(root.tokens, np.int64)
        match, key = self.cache.longest(tokens)
        for _, other in self._prefilling.values():
            shared = min(common_prefix(other, tokens), len(tokens) - 1)
            if shared > match and self.cache.long_enough(shared, tokens):
                return None
        kv = self.cache.fork(key, match) if key else self.model.pool.new_branch()
        root.attach(kv, match, None)
        self._prefilling[id(root)] = (root, tokens)
        return root

    def release(self, sequence: Sequence) -> None:
        """Give up a sequence's pages; it can be prepared and run again."""
        if sequence.kv is not None:
            self._prefilling.pop(id(sequence), None)
            sequence.detach()

    def release_all(self, sequences: list[Sequence]) -> None:
        for sequence in sequences:
            self.release(sequence)

    def run(
        self, decode: list[Sequence], prefill: list[Sequence], wanted=None
    ) -> tuple[Tensor, list[Sequence]]:
        """One forward pass: a token of each of `decode`, and a chunk of each of `prefill`.

        wanted: function of (sequence, first, end) giving the token indices whose outputs are
        needed; by default the last token of a sequence that has no more to run. Returns the
        outputs, decode rows first, and the prefill sequences that took part, in order; prefill
        sequences beyond `CHUNK` or the free pages wait. Raises OutOfPages if nothing can run, with
        the pool unchanged.
        """
        started = time.perf_counter()
        pool = self.model.pool
        slots = [pool.append_all([_kv(sequence) for sequence in decode])] if decode else []
        ran, counts, room = [], [1] * len(decode), CHUNK
        refused: OutOfPages | None = None
        for sequence in prefill:
            count = min(sequence.pending, room)
            if count == 0:
                break
            try:
                slots.append(_kv(sequence).append(count))
            except OutOfPages as error:
                refused = error
                continue
            ran.append(sequence)
            counts.append(count)
            room -= count
        rows = decode + ran
        if not rows:
            raise refused or RuntimeError("lane: no row has a token to run")
        logits = self._forward(rows, len(decode), counts, slots, wanted)
        self._charge(rows, counts, time.perf_counter() - started)
        for sequence in ran:
            if sequence.pending == 0 and id(sequence) in self._prefilling:
                self.cache.insert(self._prefilling.pop(id(sequence))[1], _kv(sequence))
        return logits, ran

    def _forward(self, rows, num_decode, counts, slots, wanted) -> Tensor:
        ids = [np.fromiter((s.tokens[s.length] for s in rows[:num_decode]), np.int64, num_decode)]
        starts = np.fromiter((s.length for s in rows), np.int64, len(rows))
        q_lens = np.asarray(counts, np.int32)
        positions, keep = [starts[:num_decode]], [np.arange(num_decode)]
        offset = num_decode
        for sequence, count in zip(rows[num_decode:], counts[num_decode:], strict=True):
            first, end = sequence.length, sequence.length + count
            ids.append(np.asarray(sequence.tokens[first:end], np.int64))
            positions.append(np.arange(first, end))
            if wanted is not None:
                keep.append(np.asarray(wanted(sequence, first, end), np.int64) - first + offset)
            elif end == len(sequence.tokens):
                keep.append(np.array([offset + count - 1]))
            offset += count
        return self.model.forward(
            np.concatenate(ids),
            np.concatenate(positions),
            np.concatenate(slots),
            [_kv(s) for s in rows],
            (starts + q_lens).astype(np.int32),
            q_lens,
            np.concatenate(keep),
        )

    def _charge(self, rows: list[Sequence], counts: list[int], seconds: float) -> None:
        share = seconds / max(1, sum(counts))
        for sequence, count in zip(rows, counts, strict=True):
            sequence.grow(count)
            sequence.ledger.seconds["decode" if count == 1 else "prefill"] += share * count


def _relative(sequence: Sequence) -> Sequence | None:
    """One that forked from the same parent behind the shared tokens, and still holds them all.

    Where memory was short the parent may have lost its pages, but not the tokens themselves.
    """
    shared = sequence.fork_len
    for other in sequence.ledger.attached.values():
        ancestor, common = other, other.length
        while ancestor.parent is not None and ancestor is not sequence.parent and common >= shared:
            common = min(common, ancestor.fork_len)
            ancestor = ancestor.parent
        if ancestor is sequence.parent and common >= shared:
            return other
    return None


def _kv(sequence: Sequence) -> PoolBranch:
    if sequence.kv is None:
        raise RuntimeError("lane: a sequence must be prepared before it is run")
    return sequence.kv
