"""The shipped kernels draw from the target's law: joint chi-square over whole sequences.

Many requests with seeds of their own go through drafting, verification and, where a pass ended
early, ordinary sampling, on a model whose rows depend on the whole prefix. The statistic is in
standard deviations of its distribution; the controls show what a small bias does to it.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ttc_kernels import (
    DraftDistribution,
    DraftTree,
    RowFilters,
    row_descriptor,
    sample_children,
    sample_tokens,
    verify_chain,
    verify_sampled,
    verify_target_only,
    verify_tree,
)

VOCAB, TRIALS, LIMIT = 4, 40_000, 6.0
FILTERS = {"temperature": 0.9, "top_p": 0.95}
SHAPES = {"chain": [-1, 0, 1], "fork": [-1, 0, 0], "tree": [-1, 0, 0, 1, 1, 2]}


def tables(seed: int, depth: int) -> list[torch.Tensor]:
    """Logits of every prefix: ``[V**d, V]`` for each d."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(VOCAB**d, VOCAB, generator=generator) for d in range(depth + 1)]


TARGET, DRAFT = tables(1, 3), [-t for t in tables(1, 3)]  # opposite ranks show shared noise
MILD = [0.5 * t + 0.5 * u for t, u in zip(TARGET, tables(2, 3), strict=True)]


def probabilities(logits: torch.Tensor, filters: dict) -> np.ndarray:
    desc = row_descriptor(logits, **filters).double()
    x = logits.double()
    kept = (x > desc[:, 1:2]) | ((x == desc[:, 1:2]) & (torch.arange(VOCAB) < desc[:, 2:3]))
    weights = torch.where(kept, ((x - desc[:, 5:6]) / filters["temperature"]).exp(), 0)
    return (weights / weights.sum(1, keepdim=True)).numpy()


def target_law(length: int) -> np.ndarray:
    law = np.ones(1)
    for d in range(length):
        law = (law[:, None] * probabilities(TARGET[d], FILTERS)).reshape(-1)
    return law


def drafted(parent, proposal, draft, seeds, *, noise_position=0):
    """Tokens [B, n], prefix indices [B, n] and rows of q [B, n, V]."""
    n, trials = len(parent), len(seeds)
    tokens = torch.full((trials, n), -1, dtype=torch.int32)
    prefix, depth = torch.zeros(trials, n, dtype=torch.int64), [0] * n
    q = torch.zeros(trials, n, VOCAB)
    for v in range(n):
        if v:
            depth[v] = depth[parent[v]] + 1
            prefix[:, v] = prefix[:, parent[v]] * VOCAB + tokens[:, v].clamp(min=0)
        q[:, v] = draft[depth[v]][prefix[:, v]]
        kids = [w for w in range(n) if parent[w] == v]
        if kids:
            desc = row_descriptor(q[:, v], 1.0)
            mode = "topk" if proposal == "one_hot" else proposal
            ids, _, _ = sample_children(q[:, v], desc, len(kids), mode, seeds=seeds,
                                        positions=noise_position, streams=v)  # fmt: skip
            tokens[:, kids] = ids
    return tokens, prefix, depth, q


def emitted(result, length: int, seeds: torch.Tensor) -> torch.Tensor:
    """Tokens [B, length]: those of the pass, and the target's own after them."""
    assert (result.status == 0).all()
    tokens = torch.nn.functional.pad(result.tokens, (0, length - result.tokens.shape[1]), value=-1)
    prefix = torch.zeros(len(seeds), dtype=torch.int64)
    for d in range(length):
        rows = TARGET[d][prefix]
        drawn = sample_tokens(rows, row_descriptor(rows, **FILTERS), seeds, d)
        tokens[:, d] = torch.where(tokens[:, d] < 0, drawn, tokens[:, d])
        prefix = prefix * VOCAB + tokens[:, d]
    return prefix


def deviation(sequences: torch.Tensor, law: np.ndarray) -> float:
    counts = np.bincount(sequences.numpy(), minlength=len(law))
    expected = law * len(sequences)
    assert counts[law == 0].sum() == 0
    used = expected > 0
    statistic = ((counts[used] - expected[used]) ** 2 / expected[used]).sum()
    freedom = used.sum() - 1
    return float((statistic - freedom) / math.sqrt(2 * freedom))


def trial(rule, shape, proposal, draft=MILD, told=None, change=None, **drafting) -> tuple:
    """Deviation and accepted drafts of one pass of `TRIALS` requests."""
    parent = SHAPES[shape]
    seeds = torch.arange(TRIALS) * 7919 + 13
    tokens, prefix, depth, q = drafted(parent, proposal, draft, seeds, **drafting)
    if change is not None:
        tokens, prefix, q = change(tokens, prefix, q)
    n = len(parent)
    logits = torch.stack([TARGET[depth[v]][prefix[:, v]] for v in range(n)], 1).flatten(0, 1)
    tree = DraftTree(parent * TRIALS, np.arange(TRIALS + 1) * n)
    told = proposal if told is None else told
    given = DraftDistribution.one_hot()
    if told != "one_hot":
        flat = q.flatten(0, 1)
        given = DraftDistribution.dense(flat, row_descriptor(flat, 1.0), told)
    arguments = (logits, RowFilters(**FILTERS), tokens.flatten(), tree)
    if rule == "sampled":
        result = verify_sampled(*arguments, seeds, 0)
    elif rule == "target_only":
        result = verify_target_only(*arguments, seeds, 0)
    elif rule in ("token", "block"):
        result = verify_chain(*arguments, given, seeds, 0, rule=rule)
    else:
        result = verify_tree(*arguments, given, seeds, 0, rule=rule)
    length = max(depth) + 1
    return deviation(emitted(result, length, seeds), target_law(length)), result


CASES = [
    ("sampled", "tree", "iid"),
    ("target_only", "tree", "one_hot"),
    ("target_only", "tree", "without_replacement"),
    *((rule, "chain", kind) for rule in ("token", "block") for kind in ("one_hot", "iid")),
    *(
        (rule, shape, kind)
        for rule in ("rejection", "traversal")
        for shape in ("fork", "tree")
        for kind in ("one_hot", "iid", "without_replacement")
    ),
]


@pytest.mark.parametrize(("rule", "shape", "kind"), CASES)
def test_joint_distribution(rule: str, shape: str, kind: str) -> None:
    draft = DRAFT if shape == "fork" else MILD
    deviations, _ = trial(rule, shape, kind, draft)
    assert abs(deviations) < LIMIT


def test_acceptance_is_the_closed_form() -> None:
    p, q = probabilities(TARGET[0], FILTERS)[0], probabilities(MILD[0], {"temperature": 1.0})[0]
    _, result = trial("token", "chain", "iid")
    overlap = np.minimum(p, q).sum()
    error = 5 * math.sqrt(overlap * (1 - overlap) / TRIALS)
    assert abs((result.num_accepted > 0).double().mean().item() - overlap) < error
    best = np.argsort(-q, kind="stable")[:2]
    for rule in ("target_only", "rejection", "traversal", "sampled"):
        _, result = trial(rule, "fork", "one_hot")
        share = p[best].sum()
        error = 5 * math.sqrt(share * (1 - share) / TRIALS)
        assert abs((result.num_accepted > 0).double().mean().item() - share) < error
    more = {rule: trial(rule, "chain", "iid")[1].num_accepted.double().mean()
            for rule in ("token", "block")}  # fmt: skip
    assert more["block"] > more["token"]


def resorted(tokens, prefix, q):
    """Siblings of the root by q, without replacement no longer in the order of drawing."""
    share = q[:, 0].gather(1, tokens[:, 1:3].long())
    swap = (share[:, 1] > share[:, 0])[:, None]
    order = torch.where(swap, torch.tensor([[0, 2, 1]]), torch.tensor([[0, 1, 2]]))
    return tokens.gather(1, order), prefix.gather(1, order), q


@pytest.mark.parametrize(
    ("rule", "shape", "kind", "options"),
    [
        ("token", "chain", "one_hot", {"told": "iid"}),
        ("block", "chain", "one_hot", {"told": "iid"}),
        ("rejection", "fork", "one_hot", {"told": "iid"}),
        ("traversal", "fork", "one_hot", {"told": "iid"}),
        ("rejection", "fork", "without_replacement", {"change": resorted}),
        ("traversal", "fork", "without_replacement", {"change": resorted}),
    ],
)
def test_what_is_told_wrong_shows(rule, shape, kind, options) -> None:
    deviations, _ = trial(rule, shape, kind, **options)
    assert deviations > LIMIT


def test_draft_noise_shared_with_the_residual_shows() -> None:
    """The fault that vLLM shipped: the draft's Gumbel noise is used again where it is rejected."""
    from ttc_kernels.reference.verify import RESIDUAL, noise_of_words, philox4x32

    parent, trials = [-1, 0], 400_000
    seeds = torch.arange(trials)
    q = DRAFT[0].expand(trials, VOCAB)
    counters = np.tile(np.array([0, 0, 0, RESIDUAL << 24], np.uint32), (trials, 1))
    key = (seeds.numpy(), np.zeros(trials, np.int64))
    blocks = counters + np.array([1 << 31, 0, 0, 0], np.uint32)
    noise = noise_of_words(philox4x32(counters, key), philox4x32(blocks, key)[:, None])
    drafts = (q.log_softmax(1).numpy() + noise).argmax(1)
    fair, _, _ = sample_children(q, row_descriptor(q, 1.0), 1, "iid", seeds=seeds)
    logits = TARGET[0].repeat_interleave(2, 0).expand(2, VOCAB).repeat(trials, 1)
    rows = q.repeat_interleave(2, 0)
    given = DraftDistribution.dense(rows, row_descriptor(rows, 1.0))
    tree = DraftTree(parent * trials, np.arange(trials + 1) * 2)
    found = {}
    for name, chosen in (("shared", torch.from_numpy(drafts)), ("own", fair[:, 0])):
        tokens = torch.stack([torch.full((trials,), -1), chosen], 1).int().flatten()
        result = verify_chain(logits, RowFilters(**FILTERS), tokens, tree, given, seeds, 0)
        found[name] = deviation(result.tokens[:, 0].long(), target_law(1))
    assert abs(found["own"]) < LIMIT < found["shared"]


def test_mass_on_the_last_tokens_of_a_large_vocabulary() -> None:
    vocab_size, trials = 32_771, 4_000
    row = torch.full((vocab_size,), -30.0)
    places = [0, 63, 64, 8191, 8192, 32_767, 32_768, 32_770]
    row[places] = torch.linspace(-1, 1, len(places))
    q = torch.full((vocab_size,), -30.0)
    q[places] = torch.linspace(1, -1, len(places))
    seeds = torch.arange(trials)
    counts = np.zeros(len(places))
    for begin in range(0, trials, 500):
        part = seeds[begin : begin + 500]
        rows = q.expand(500, -1).contiguous()
        ids, _, _ = sample_children(rows, row_descriptor(rows, 1.0), 1, "iid", seeds=part)
        tokens = torch.stack([torch.full((500,), -1), ids[:, 0]], 1).int().flatten()
        tree = DraftTree.chains([1] * 500)
        given = DraftDistribution.dense(
            q[None], row_descriptor(q[None], 1.0), rows=torch.zeros(1000, dtype=torch.int32)
        )
        logits = row.expand(1000, -1).contiguous()
        result = verify_chain(logits, RowFilters(1.0), tokens, tree, given, part, 0)
        first = result.tokens[:, 0].numpy()
        counts += [(first == place).sum() for place in places]
    assert counts.sum() == trials
    want = row[places].double().softmax(0).numpy() * trials
    statistic = ((counts - want) ** 2 / want).sum()
    assert abs(statistic - 7) / math.sqrt(14) < LIMIT
