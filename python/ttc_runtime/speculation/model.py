"""Drafts from a small model."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ttc_kernels import Branch as PoolBranch
from ttc_kernels import OutOfPages, row_descriptor, sample_children
from ttc_runtime.models import PagedModel
from ttc_runtime.prefix_cache import common_prefix
from ttc_runtime.speculation.drafts import Draft, Request

_WIDTH = 4  # guesses that follow one node of a tree
_LARGEST_RUN = 1024  # tokens of one branch to a pass
_HEAD = 4  # first tokens that texts with a common beginning have to share
_PATIENCE = 256  # rounds after which an unused branch gives its pages back


@dataclass(eq=False)
class _State:
    """What the draft model holds of one sequence: `tokens`, all of them run."""

    kv: PoolBranch
    tokens: list[int] = field(default_factory=list)
    used: int = 0


@dataclass
class _Node:
    """A guess. score: sum of log weights from the root, never above its parent's."""

    parent: int
    token: int
    score: float
    depth: int
    expanded: bool = False


@dataclass
class _Run:
    """New tokens behind a pool branch. parents, depths: int[n] if they are a tree, the first depth
    being 0. wanted: of which the output is asked for, by default the last."""

    kv: PoolBranch
    tokens: list[int]
    parents: np.ndarray | None = None
    depths: np.ndarray | None = None
    wanted: list[int] | None = None


class ModelDrafter:
    """Guesses of a small model with the policy's vocabulary.

    Its guess at a position is drawn with the very noise that the policy's own token will be drawn
    with (Gumbel coupling, Daliri et al., 2408.07978), so that equal distributions give equal
    tokens. A tree holds the paths with the largest product of weights, where the weights of a
    node's children are those of their noisy scores; at temperature 0, their probabilities (EAGLE-2,
    2406.16858).

    model: with its pages allocated. as_tree: grow trees instead of chains.
    """

    def __init__(self, model: PagedModel, as_tree: bool) -> None:
        self.model, self.as_tree = model, as_tree
        self.tokens_run = 0
        self._states: dict[int, _State] = {}
        self._round = 0

    def propose(self, requests: list[Request], length: int) -> list[Draft]:
        self._round += 1
        if self._round % _PATIENCE == 0:
            self._forget(self._round - _PATIENCE)
        try:
            return self._propose(requests, length)
        except OutOfPages:  # the next rounds have a whole pool
            self.forget_all()
            return [Draft() for _ in requests]

    def forget_all(self) -> None:
        """Give all pages back."""
        self._forget(self._round)

    def _forget(self, before: int) -> None:
        for key in [key for key, state in self._states.items() if state.used <= before]:
            self._states.pop(key).kv.free()

    def _propose(self, requests: list[Request], length: int) -> list[Draft]:
        drafts = [Draft() for _ in requests]
        ready = self._catch_up(requests)
        if not ready:
            return drafts
        grown = _Grown(self, [requests[i] for i, _, _ in ready], length)
        logits = torch.stack([row for _, _, row in ready])
        grown.grow([state for _, state, _ in ready], logits)
        for (i, _, _), draft in zip(ready, grown.drafts(), strict=True):
            drafts[i] = draft
        return drafts

    def _catch_up(self, requests: list[Request]) -> list[tuple[int, _State, Tensor]]:
        """Run what the policy has taken since. Returns the requests that are up to date, with their
        states and outputs; one whose beginning another is about to run waits for it."""
        rows: list[tuple[int, _State, list[int]]] = []
        starting: list[list[int]] = []
        for i, request in enumerate(requests):
            sequence = request.sequence
            tokens = sequence.tokens
            if request.depth < 1 or len(tokens) >= self.model.max_positions:
                continue
            state = self._states.get(id(sequence))
            if state is None:
                state = self._begin(tokens, starting)
                if state is None:
                    continue
                starting.append(tokens)
                self._states[id(sequence)] = state
            state.used = self._round
            shared = min(_common(state.tokens, tokens), len(tokens) - 1)
            if shared < len(state.tokens):
                state.kv.truncate(shared)
                del state.tokens[shared:]
            rows.append((i, state, tokens[shared : shared + _LARGEST_RUN]))
        if not rows:
            return []
        logits = self.run([_Run(state.kv, new) for _, state, new in rows])
        for _, state, new in rows:
            state.tokens += new
        return [
            (i, state, logits[row])
            for row, (i, state, _) in enumerate(rows)
            if len(state.tokens) == len(requests[i].sequence.tokens)
        ]

    def _begin(self, tokens: list[int], starting: list[list[int]]) -> _State | None:
        """A state that shares what another one has of the tokens; None where one is about to run
        more of them. Only those that begin alike are compared: other problems mostly do not."""
        best, source = 0, None
        head = tokens[:_HEAD]
        for state in self._states.values():
            if state.tokens[:_HEAD] == head:
                shared = min(_common(state.tokens, tokens), len(tokens) - 1)
                if shared > best:
                    best, source = shared, state
        alike = (other for other in starting if other[:_HEAD] == head)
        if any(min(_common(other, tokens), len(tokens) - 1) > best for other in alike):
            return None
        if source is None:
            return _State(self.model.pool.new_branch())
        kv = source.kv.fork(1)[0]
        if kv.length > best:
            kv.truncate(best)
        return _State(kv, source.tokens[:best])

    def run(self, rows: list[_Run]) -> Tensor:
        """Run new tokens of pool branches; returns the wanted outputs, one row after the other.

        Raises OutOfPages with the branches as they were.
        """
        starts = [row.kv.length for row in rows]
        slots = []
        try:
            for row in rows:
                slots.append(row.kv.append(len(row.tokens)))
        except OutOfPages:
            for row, start in zip(rows[: len(slots)], starts, strict=False):
                row.kv.truncate(start)
            raise
        counts = np.array([len(row.tokens) for row in rows], np.int32)
        ends = counts.cumsum(dtype=np.int64)
        self.tokens_run += int(ends[-1])
        positions, keep = [], []
        for row, start, end in zip(rows, starts, ends.tolist(), strict=True):
            count = len(row.tokens)
            positions.append(start + (np.arange(count) if row.depths is None else row.depths))
            keep.append(end - count + np.asarray(row.wanted or [count - 1], np.int64))
        parents = [row.parents for row in rows]
        with self.model.threads():
            return self.model.forward(
                np.concatenate([np.asarray(row.tokens, np.int64) for row in rows]),
                np.concatenate(positions),
                np.concatenate(slots),
                [row.kv for row in rows],
                np.array(starts, np.int32) + counts,
                counts,
                np.concatenate(keep),
                draft_parents=parents if any(p is not None for p in parents) else None,
            ).clone()


class _Grown:
    """Drafts on their way, of many requests in shared passes."""

    def __init__(self, drafter: ModelDrafter, requests: list[Request], length: int) -> None:
        self.drafter, self.requests, self.length = drafter, requests, length
        self.nodes: list[list[_Node]] = [[] for _ in requests]

    def grow(self, states: list[_State], logits: Tensor) -> None:
        """Children of the tips, then passes over the best of them, until no pass is of use."""
        tips = [(i, -1) for i in range(len(states))]
        while tips:
            self._add_children(tips, logits)
            tips = [tip for i in range(len(states)) for tip in self._to_expand(i)]
            if not tips:
                return
            for i, v in tips:
                self.nodes[i][v].expanded = True
            if self.drafter.as_tree:
                logits = self._run_trees(states, tips)
            else:
                logits = self.drafter.run(
                    [_Run(states[i].kv, [self.nodes[i][v].token]) for i, v in tips]
                )
                for i, v in tips:  # what is accepted need not be run again
                    states[i].tokens.append(self.nodes[i][v].token)

    def _run_trees(self, states: list[_State], tips: list[tuple[int, int]]) -> Tensor:
        """Run all nodes of each tree that have been expanded, as a tree behind its branch. The
        earlier ones run again: a few tokens of a small model, for no page of their own."""
        rows = []
        for i in dict.fromkeys(i for i, _ in tips):
            expanded = [v for v, node in enumerate(self.nodes[i]) if node.expanded]
            place = {v: at for at, v in enumerate(expanded)} | {-1: -1}
            nodes = [self.nodes[i][v] for v in expanded]
            parents = np.array([place[node.parent] for node in nodes], np.int32)
            depths = np.array([node.depth - 1 for node in nodes], np.int64)
            wanted = [place[v] for j, v in tips if j == i]
            rows.append(_Run(states[i].kv, [n.token for n in nodes], parents, depths, wanted))
        logits = self.drafter.run(rows)
        for row in rows:
            row.kv.truncate(row.kv.length - len(row.tokens))
        return logits

    def _add_children(self, tips: list[tuple[int, int]], logits: Tensor) -> None:
        width = min(_WIDTH, self.length) if self.drafter.as_tree else 1
        greedy = np.array([self.requests[i].sampling.temperature == 0 for i, _ in tips])
        for chosen in (greedy, ~greedy):
            at = np.flatnonzero(chosen)
            if len(at):
                self._add(tips, logits, at, width, noisy=not greedy[at[0]])

    def _add(self, tips, logits: Tensor, at: np.ndarray, width: int, noisy: bool) -> None:
        requests = [self.requests[tips[j][0]] for j in at]
        rows = logits[torch.from_numpy(at).to(logits.device)]
        sampling = [request.sampling for request in requests]
        column = lambda name, dtype: torch.tensor([getattr(s, name) for s in sampling], dtype=dtype)  # noqa: E731
        desc = row_descriptor(
            rows,
            column("temperature", torch.float32) if noisy else 1.0,
            column("top_k", torch.int32),
            column("top_p", torch.float32),
            column("min_p", torch.float32),
        )
        depths = [self.nodes[tips[j][0]][tips[j][1]].depth if tips[j][1] >= 0 else 0 for j in at]
        positions = [len(r.sequence.tokens) + d for r, d in zip(requests, depths, strict=True)]
        tokens, _, scores = sample_children(
            rows, desc, width, "without_replacement" if noisy else "topk",
            seeds=torch.tensor([request.seed for request in requests]),
            positions=torch.tensor(positions), noise="target" if noisy else "draft",
        )  # fmt: skip
        if noisy:
            weights = scores.log_softmax(1)
        else:
            weights = scores - desc[:, 3:4]
        for j, ids, values, depth in zip(
            at.tolist(), tokens.tolist(), weights.tolist(), depths, strict=True
        ):
            i, v = tips[j]
            above = self.nodes[i][v].score if v >= 0 else 0.0
            self.nodes[i] += [
                _Node(v, token, above + min(value, 0.0), depth + 1)
                for token, value in zip(ids, values, strict=True)
                if token >= 0
            ]

    def _best(self, i: int) -> list[int]:
        """The likeliest nodes, parents before children: a parent's score is at least a child's."""
        nodes = self.nodes[i]
        order = sorted(range(len(nodes)), key=lambda v: (-nodes[v].score, nodes[v].depth, v))
        return sorted(order[: self.length])

    def _to_expand(self, i: int) -> list[tuple[int, int]]:
        """The deepest of the best nodes, if children of theirs could be among the best."""
        nodes, request = self.nodes[i], self.requests[i]
        if not nodes:
            return []
        depth = nodes[-1].depth
        longest = min(request.depth, self.length)
        room = self.drafter.model.max_positions - len(request.sequence.tokens)
        if depth >= min(longest, room):
            return []
        deepest = (v for v in self._best(i) if nodes[v].depth == depth)
        return [(i, v) for v in deepest if not nodes[v].expanded]

    def drafts(self) -> list[Draft]:
        """What was grown, cut to the length."""
        made = []
        for i in range(len(self.requests)):
            kept = self._best(i)
            place = {v: at for at, v in enumerate(kept)} | {-1: -1}
            nodes = [self.nodes[i][v] for v in kept]
            made.append(Draft([n.token for n in nodes], [place[n.parent] for n in nodes]))
        return made


def _common(a: list[int], b: list[int]) -> int:
    """Number of leading tokens in common."""
    n = min(len(a), len(b))
    if a[:n] == b[:n]:
        return n
    return common_prefix(np.asarray(a[:n], np.int64), np.asarray(b[:n], np.int64))
