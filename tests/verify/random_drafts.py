"""Random batches of draft trees, for the kernels and for the reference."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch

from ttc_kernels import (
    DraftDistribution,
    DraftTree,
    RowFilters,
    VerifyResult,
    row_descriptor,
    verify_chain,
    verify_greedy,
    verify_sampled,
    verify_target_only,
    verify_tree,
    verify_typical,
)
from ttc_kernels.reference import verify_drafts as rules

RULES = ("greedy", "sampled", "target_only", "token", "block", "rejection", "traversal", "typical")


@dataclass
class Batch:
    """Draft trees with random rows. kind: of the drafts; sparse: how q is given."""

    tree: DraftTree
    tokens: torch.Tensor
    logits: torch.Tensor
    filters: RowFilters
    draft_logits: torch.Tensor
    proposals: torch.Tensor
    coins: torch.Tensor
    seeds: torch.Tensor
    positions: torch.Tensor
    sparse: bool

    def draft(self) -> DraftDistribution:
        if self.sparse:
            ids = torch.arange(self.logits.shape[1], dtype=torch.int32)
            ids = ids.expand(len(self.logits), -1).flip(1).contiguous()
            logprobs = self.draft_logits.float().log_softmax(-1).flip(1).contiguous()
            return DraftDistribution.sparse(ids, logprobs, self.proposals)
        desc = row_descriptor(self.draft_logits, 1.0)
        return DraftDistribution.dense(self.draft_logits, desc, self.proposals)


def random_batch(
    seed: int,
    *,
    requests: int = 6,
    vocab_size: int = 6,
    nodes: int = 8,
    chain: bool = False,
    kind: str = "mixed",
    temperature: float = 0.8,
    dtype: torch.dtype = torch.float32,
    sparse: bool = False,
) -> Batch:
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    parents, cu_nodes = [], [0]
    for _ in range(requests):
        n = int(random.integers(0 if requests > 1 else 1, nodes + 1))
        parents += [-1 if v == 0 else v - 1 if chain else int(random.integers(v)) for v in range(n)]
        cu_nodes.append(len(parents))
    n = len(parents)
    tokens = torch.tensor(random.integers(-1, vocab_size + 1, n), dtype=torch.int32)
    proposals = {"one_hot": 0, "iid": 1, "without_replacement": 2}
    kinds = random.integers(0, 3, n) if kind == "mixed" else np.full(n, proposals[kind])
    return Batch(
        DraftTree(parents, cu_nodes),
        tokens,
        (torch.randn(n, vocab_size) * 1.5).to(dtype),
        RowFilters(temperature, top_p=0.97),
        (torch.randn(n, vocab_size)).to(dtype),
        torch.tensor(kinds, dtype=torch.int8),
        torch.tensor(random.integers(0, 2**24, n) * 2.0**-24, dtype=torch.float32),
        torch.tensor(random.integers(-(2**62), 2**62, requests)),
        torch.tensor(random.integers(0, 2**40, requests)),
        sparse,
    )


def run(rule: str, b: Batch, *, coins: bool = False, lazy: bool = False, **extra) -> VerifyResult:
    filters = b.filters
    desc = filters if lazy else row_descriptor(b.logits, filters.temperature, top_p=filters.top_p)
    options = {"coins": b.coins, **extra} if coins else extra
    keys = (b.seeds, b.positions)
    if rule == "greedy":
        return verify_greedy(b.logits, b.tokens, b.tree, **extra)
    if rule == "sampled":
        return verify_sampled(b.logits, desc, b.tokens, b.tree, *keys, **extra)
    if rule == "target_only":
        return verify_target_only(b.logits, desc, b.tokens, b.tree, *keys, **options)
    if rule == "typical":
        return verify_typical(b.logits, desc, b.tokens, b.tree, *keys, lossy=True, **extra)
    if rule in ("token", "block"):
        nodes = b.tree.cu_nodes
        return verify_chain(b.logits, desc, b.tokens, nodes, b.draft(), *keys, rule=rule, **options)
    return verify_tree(b.logits, desc, b.tokens, b.tree, b.draft(), *keys, rule=rule, **options)


def probabilities(logits: torch.Tensor, temperature: float, top_p: float | None) -> np.ndarray:
    """fp64, by the descriptor's rule."""
    desc = row_descriptor(logits, temperature, top_p=top_p).double().numpy()
    x, index = logits.double().numpy(), np.arange(logits.shape[1])
    kept = (x > desc[:, 1:2]) | ((x == desc[:, 1:2]) & (index < desc[:, 2:3]))
    scale = 1 if temperature == 0 else temperature
    weights = np.where(kept, np.exp((x - desc[:, 5:6]) / scale), 0)
    return weights / weights.sum(1, keepdims=True)


def expected(rule: str, b: Batch, *, coins: bool = False) -> list[tuple[list[int], int] | None]:
    """What the reference gives for each request, None for padding."""
    p = probabilities(b.logits, b.filters.temperature, b.filters.top_p)
    q = probabilities(b.draft_logits, 1.0, None)
    ends = b.tree.cu_nodes.tolist()
    results: list = []
    for i, (begin, end) in enumerate(itertools.pairwise(ends)):
        if begin == end:
            results.append(None)
            continue
        rows = slice(begin, end)
        uses_q = rule in ("token", "block", "rejection", "traversal")
        kinds = b.proposals[rows].tolist() if uses_q else [0] * (end - begin)
        drafts = rules.Drafts(
            b.tree.parent[rows].tolist(), b.tokens[rows].tolist(), p[rows].tolist(),
            q[rows].tolist(), kinds,
        )  # fmt: skip
        given = b.coins[rows].tolist() if coins else None
        chance = rules.Philox(b.seeds[i].item(), b.positions[i].item(), drafts, given)
        if rule == "greedy":
            drafts.p = b.logits[rows].double().tolist()
            results.append(rules.greedy(drafts))
        elif rule == "typical":
            results.append(rules.typical(drafts, chance, 0.09, 0.3))
        else:
            name = "rejection" if rule == "token" else rule
            results.append(getattr(rules, name)(drafts, chance))
    return results
