"""Grows branches by verified drafts, as the policy would have grown them token by token."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import torch

from ttc_kernels import OutOfPages, RowFilters, verify_sampled
from ttc_runtime.search import Search
from ttc_runtime.speculation.drafts import Draft, Drafter, Request
from ttc_runtime.speculation.settings import Speculation
from ttc_runtime.speculation.verification import Pass

if TYPE_CHECKING:
    from ttc_runtime.generation import Policy, _Growth

_REST = 32  # passes without drafts after drafts were of no use
_DECAY = 0.8


class _Length:
    """Drafts on a path, from how many of them were accepted lately."""

    def __init__(self, settings: Speculation) -> None:
        self._most, self._adaptive = settings.length, settings.adaptive
        self._accepted, self._seen, self._resting = settings.length / 2, 0, 0

    def next(self) -> int:
        if not self._adaptive:
            return self._most
        if self._resting > 0:
            self._resting -= 1
            return 1 if self._resting == 0 else 0
        return max(1, min(self._most, round(2 * self._accepted) + 1))

    def record(self, accepted: float) -> None:
        """accepted: drafts accepted of a branch, on average over a pass."""
        self._accepted = _DECAY * self._accepted + (1 - _DECAY) * accepted
        self._seen += 1
        if self._adaptive and self._accepted < 0.15 and self._seen >= 16:
            self._resting, self._seen, self._accepted = _REST, 0, 0.5


class Speculator:
    """Drafts for growing branches, verified in one pass of the policy.

    The tokens are drawn by `verify_sampled`, at every position with the noise that ordinary
    decoding uses there: the text does not depend on the drafts.

    settings: how to draft. drafter: makes the drafts. num_weights: of the draft model's linear
    layers.
    """

    def __init__(self, settings: Speculation, drafter: Drafter, num_weights: int = 0) -> None:
        self.settings, self.drafter, self.num_weights = settings, drafter, num_weights
        self._lengths: dict[bool, _Length] = {}

    def step(self, policy: Policy, growths: list[_Growth]) -> tuple[list[_Growth], list[_Growth]]:
        """Grow those for which there are drafts.

        growths: with one token each that is still to be run. Returns those that are due for an
        ordinary step, and the rest.
        """
        room = {g: min(g.limit - len(g.sequence.tokens), g.room) for g in growths}
        chosen = [g for g in growths if g.bias is None and not _children_wait(g)]
        is_chosen = set(map(id, chosen))
        plain = [g for g in growths if id(g) not in is_chosen]
        started = time.perf_counter()
        drafts, length = self._drafts(policy, chosen, room)
        drafting = time.perf_counter() - started
        if not any(draft.tokens for draft in drafts):
            return growths, []
        try:
            verified = Pass(policy.lane.model, [g.sequence for g in chosen], drafts)
        except OutOfPages:  # drafts need room that the branches may not have
            return growths, []
        self._grow(policy, chosen, verified, room, length, drafting, started)
        return plain, chosen

    def _drafts(self, policy: Policy, growths, room) -> tuple[list[Draft], _Length]:
        greedy = all(g.sampling.temperature == 0 for g in growths)
        length = self._lengths.setdefault(greedy, _Length(self.settings))
        longest = length.next()
        if not growths or longest < 1:
            return [Draft() for _ in growths], length
        at_most = policy.lane.model.max_positions
        requests = [
            Request(
                g.sequence, g.seed, g.sampling,
                min(room[g] - 1, longest, at_most - 1 - len(g.sequence.tokens)),
            )
            for g in growths
        ]  # fmt: skip
        before = self.drafter.tokens_run
        # A tree keeps its nodes: where few are accepted it grows in width.
        nodes = self.settings.length if self.settings.kind == "tree" else longest
        drafts = self.drafter.propose(requests, nodes)
        spent = self.drafter.tokens_run - before
        for search, share in _shares(growths).items():
            search.draft_flops += 2 * self.num_weights * spent * share
        return [_pruned(d, r.depth) for d, r in zip(drafts, requests, strict=True)], length

    def _grow(self, policy, growths, verified: Pass, room, length, drafting, started) -> None:
        tree, device = verified.tree, verified.logits.device
        seeds = torch.tensor([g.seed for g in growths], dtype=torch.int64)
        positions = torch.tensor([len(g.sequence.tokens) for g in growths], dtype=torch.int64)
        counts = np.diff(verified.cu_nodes)
        names = {
            "temperature": torch.float32, "top_k": torch.int32,
            "top_p": torch.float32, "min_p": torch.float32,
        }  # fmt: skip
        filters = RowFilters(
            *(
                torch.tensor([getattr(g.sampling, name) for g in growths], dtype=dtype)
                .repeat_interleave(torch.from_numpy(counts))
                .to(device)
                for name, dtype in names.items()
            )
        )
        tree = tree if device.type == "cpu" else _on(tree, device)
        result = verify_sampled(
            verified.logits, filters, verified.tokens.to(device), tree, seeds, positions
        )
        assert result.logprobs is not None
        tokens, logprobs = result.tokens.tolist(), result.logprobs.tolist()
        accepted, status = result.num_accepted.tolist(), result.status.tolist()
        taken = []
        for b, growth in enumerate(growths):
            if status[b]:
                path = growth.branch.path
                growth.search.failure = f"policy: the logits of branch {path} are not finite"
                tokens[b] = [max(token, 0) for token in tokens[b]]
            many = min(accepted[b] + 1, room[growth])
            taken.append(policy.take(growth, tokens[b][:many], logprobs[b][:many]))
            usage = growth.search.usage
            usage.drafted += int(counts[b]) - 1
            usage.accepted += min(taken[b] - 1, accepted[b])
            usage.verifications += 1
        verified.keep(result, taken)
        tried = [a for a, n in zip(accepted, counts, strict=True) if n > 1]
        length.record(sum(tried) / max(1, len(tried)))
        seconds = time.perf_counter() - started - drafting
        for search, share in _shares(growths).items():
            policy.ledger(search).seconds["decode"] += seconds * share
            search.draft_seconds += drafting * share


def _children_wait(growth: _Growth) -> bool:
    """Whether children forked at the tip are to take over the output of its last token."""
    tip = len(growth.sequence.tokens)
    return any(
        len(child.sequence.tokens) == child.sequence.fork_len == tip
        and child.sequence.kv is None
        and not child.freed
        for child in growth.branch.children
    )


def _pruned(draft: Draft, depth: int) -> Draft:
    """Without nodes deeper than could be taken."""
    depths = draft.depths()
    if all(d <= depth for d in depths):
        return draft
    kept = [v for v, d in enumerate(depths) if d <= depth]
    place = {v: i for i, v in enumerate(kept)} | {-1: -1}
    return Draft([draft.tokens[v] for v in kept], [place[draft.parents[v]] for v in kept])


def _shares(growths: list[_Growth]) -> dict[Search, float]:
    counts = Counter(g.search for g in growths)
    return {search: number / len(growths) for search, number in counts.items()}


def _on(tree, device):
    from ttc_kernels import DraftTree

    return DraftTree(
        tree.parent.to(device), tree.cu_nodes.to(device), width=tree.width, device=device
    )
