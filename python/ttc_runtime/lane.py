"""A lane: one model, its pages, and the sequences that run on it in shared batches."""

from __future__ import annotations

import time
from collections.abc import Iterable

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
        # Sequences that run tokens again which their lost ancestors ran before.
        self._recovering: dict[int, Sequence] = {}

    def prepare(self, sequence: Sequence, *, sampled: bool) -> Sequence | None:
        """Attach a sequence to the pool.

        sampled: the output after its last token will be needed, even if a parent ran that token.
        Returns the sequence to be run next: itself once attached, or the ancestor whose tokens it
        builds on; None if it waits for another sequence that runs the same tokens.
        """
        if sequence.kv is not None:
            return sequence
        parent = sequence.parent
        if parent is None:
            return self._attach_root(sequence)
        shared = sequence.fork_len
        if parent.kv is None and _lost(parent, shared):
            return self._recover(sequence, sampled)
        sampled = sampled and len(sequence.tokens) == shared
        if parent.kv is None or parent.length < shared:
            target = self.prepare(parent, sampled=sampled)
            if target is not parent or parent.length < shared:
                return target
        return self._fork(sequence, parent, shared, sampled)

    def _recover(self, sequence: Sequence, sampled: bool) -> Sequence | None:
        """Attach a sequence whose parent has lost its pages to whatever relative holds most of its
        tokens; what is missing it runs itself, unless another growing one is at that already.

        The lost ancestors themselves stay detached: a chain of them, each with a half-full page of
        its own, could take more pages than there are.
        """
        lineage = _lineage(sequence)
        attached = sequence.ledger.attached.values()
        shared = [min(_common_tokens(lineage, s), s.length) for s in attached]
        best = max(shared, default=0)
        if best < sequence.fork_len and sampled:
            others = [s for s in self._recovering.values() if s.ledger is sequence.ledger]
            if any(_common_tokens(lineage, s) > best for s in others):
                return None
        if best == 0:
            root = sequence
            while root.parent is not None:
                root = root.parent
            return self.prepare(root, sampled=False)
        holders = [s for s, length in zip(attached, shared, strict=True) if length == best]
        # One that ended there may still have the output behind it.
        holder = max(holders, key=lambda s: s.length == best and s.logits is not None)
        self._fork(sequence, holder, best, sampled and best == len(sequence.tokens))
        if sequence.length < sequence.fork_len:
            self._recovering[id(sequence)] = sequence
        return sequence

    def _fork(self, sequence: Sequence, holder: Sequence, shared: int, sampled: bool) -> Sequence:
        """Attach a sequence to the first `shared` tokens of one that holds them."""
        if sampled and (holder.logits is None or holder.length > shared):
            shared -= 1  # the output is gone: run the last token again
        kv = _kv(holder).fork(1)[0]
        if kv.length > shared:
            kv.truncate(shared)
        sequence.attach(kv, shared, holder, shared)
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
        root.attach(kv, match, *self._same_pages(root.ledger.attached.values(), kv))
        self._prefilling[id(root)] = (root, tokens)
        return root

    def _same_pages(
        self, others: Iterable[Sequence], kv: PoolBranch
    ) -> tuple[Sequence | None, int]:
        """Of some sequences the one that shares most tokens' pages with a branch, and how many."""
        best, most, size = None, 0, self.model.page_size
        for other in others:
            shared = common_prefix(_kv(other).pages, kv.pages) * size
            shared = min(shared, other.length, kv.length)
            if shared > most:
                best, most = other, shared
        return best, most

    def release(self, sequence: Sequence) -> None:
        """Give up a sequence's pages; it can be prepared and run again."""
        if sequence.kv is not None:
            self._prefilling.pop(id(sequence), None)
            self._recovering.pop(id(sequence), None)
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
            if sequence.length >= sequence.fork_len:
                self._recovering.pop(id(sequence), None)
            sequence.ledger.seconds["decode" if count == 1 else "prefill"] += share * count


def _lost(sequence: Sequence, shared: int) -> bool:
    """Whether the first tokens were run, and the sequence that ran the last of them has no pages.

    A sequence that was forked behind them has not run them itself.
    """
    while sequence.parent is not None and sequence.fork_len >= shared:
        sequence = sequence.parent
    return sequence.kv is None and sequence.ran >= shared


def _lineage(sequence: Sequence) -> dict[int, int]:
    """Of a sequence and each of its ancestors, by their `id`: how many tokens it has from it."""
    found, common = {id(sequence): len(sequence.tokens)}, len(sequence.tokens)
    while sequence.parent is not None:
        common = min(common, sequence.fork_len)
        sequence = sequence.parent
        found[id(sequence)] = common
    return found


def _common_tokens(lineage: dict[int, int], other: Sequence) -> int:
    """Tokens that a sequence with this lineage has in common with another by descent."""
    common, ancestor = len(other.tokens), other
    while id(ancestor) not in lineage:
        if ancestor.parent is None:
            return 0
        common = min(common, ancestor.fork_len)
        ancestor = ancestor.parent
    return min(common, lineage[id(ancestor)])


def _kv(sequence: Sequence) -> PoolBranch:
    if sequence.kv is None:
        raise RuntimeError("lane: a sequence must be prepared before it is run")
    return sequence.kv
