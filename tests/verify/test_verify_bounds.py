"""Verification without log-probabilities decides what it decides with them.

On a CPU most rows are then only bounded, and described where the bounds leave a doubt. What would
show a wrong bound: coins just above and below a draft's probability, and tokens near a cut.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from random_drafts import RULES, random_batch, run

from ttc_kernels import (
    DraftDistribution,
    DraftTree,
    RowFilters,
    VerifyResult,
    row_descriptor,
    verify_sampled,
    verify_target_only,
    verify_tree,
)

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
VOCAB_SIZE = 3000  # 11 blocks of 256 and a part of one
FIELDS = ("num_accepted", "tokens", "path", "status")


def assert_same_decisions(got: VerifyResult, want: VerifyResult) -> None:
    assert got.logprobs is None
    for field in FIELDS:
        a, b = getattr(got, field), getattr(want, field)
        assert torch.equal(a, b), (field, (a != b).nonzero()[:5].tolist())


def rows_of_many_kinds(count: int, dtype: torch.dtype) -> torch.Tensor:
    """What language models give, and what makes estimates hard."""
    torch.manual_seed(count)
    x = 2.5 * torch.randn(count, VOCAB_SIZE)
    for r in range(count):
        kind, likely = r % 14, torch.randint(VOCAB_SIZE, (8,))
        if kind < 4:
            x[r, likely] += torch.tensor([16.0, 14, 13, 12, 11, 10, 9, 8])
        if kind == 1:
            x[r] += 500.0
        if kind == 2:
            x[r, :700] = -torch.inf
        if kind == 3:
            x[r, :700] = -60000.0
        if kind == 4:
            x[r] *= 0.01  # all alike
        if kind == 5:
            x[r] = -5.0
            x[r, 100] = 0.0  # one token stands out from equal ones, 2^-7.2 of it
        if kind == 6:
            x[r] = torch.linspace(0, -30, VOCAB_SIZE)[torch.randperm(VOCAB_SIZE)]
        if kind == 7:
            x[r] = -torch.inf
            x[r, 500:540] = torch.randn(40)
        if kind == 8:
            x[r, :300], x[r, 2500:] = -20.0, x[r, 2500:] + 20.0
        if kind == 9:
            x[r] -= 3000.0
        if kind == 10:
            x[r, 0] = torch.nan
        if kind == 11:
            x[r] = 40.0 * torch.randn(VOCAB_SIZE)
        if kind == 12:
            x[r, :256] -= 200.0
        if kind == 13:  # where a product of logit and scale is rounded a lot
            x[r] = 50000.0 + 977 * r
            x[r, 1:] -= 8 * 0.6931472
    return x.to(dtype)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("lazy", [False, True])
def test_every_rule(rule: str, lazy: bool) -> None:
    for seed in range(8):
        vocab_size, dtype = (6, 70, 1000)[seed % 3], DTYPES[seed % 3]
        batch = random_batch(
            seed, chain=rule in ("token", "block"), vocab_size=vocab_size, dtype=dtype
        )
        batch.logits += (2 * torch.arange(vocab_size) % 7).to(dtype)
        batch.tokens[1::2] = batch.logits.argmax(1).int().roll(1)[1::2]
        coins = seed % 2 == 1 and rule not in ("greedy", "sampled", "typical")
        out = VerifyResult.empty(batch.tree, logprobs=False)
        got = run(rule, batch, coins=coins, lazy=lazy, out=out)
        assert got is out
        assert_same_decisions(got, run(rule, batch, coins=coins))


FILTERS = [
    {"temperature": 1.0},
    {"temperature": 0.6},
    {"temperature": 0.7, "top_p": 0.95},
    {"temperature": 1.5, "top_p": 0.5},
    {"temperature": 1.0, "top_k": 20},
    {"temperature": 1.0, "top_k": 10**6},
    {"temperature": 0.9, "top_k": 300, "top_p": 0.8},
    {"temperature": 1.0, "min_p": 0.02},
    {"temperature": 1.2, "top_p": 0.9, "min_p": 0.001},
    {"temperature": 1e-30},
    {"temperature": 1e-3, "top_p": 0.9},
    {"temperature": 300.0, "top_p": 0.99},
    {"temperature": 0.0},
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_tokens_near_a_cut(filters: dict, dtype: torch.dtype) -> None:
    """Many draws of few rows: some fall between what is surely kept and what may be."""
    rows = rows_of_many_kinds(14, dtype).repeat(40, 1)
    n = len(rows)
    tree = DraftTree([-1] * n, range(n + 1))
    tokens, positions = torch.zeros(n).int(), torch.arange(n)
    mask = torch.randint(-(2**31), 2**31, (n, (VOCAB_SIZE + 31) // 32)).int()
    for bitmask in (None, mask):
        desc = row_descriptor(rows, **filters, bitmask=bitmask)
        want = verify_sampled(rows, desc, tokens, tree, 5, positions, bitmask=bitmask)
        got = verify_sampled(
            rows, RowFilters(**filters), tokens, tree, 5, positions, bitmask=bitmask,
            out=VerifyResult.empty(tree, logprobs=False),
        )  # fmt: skip
        assert_same_decisions(got, want)
        drawn = want.tokens[want.tokens >= 0]
        assert len(drawn) > n / 2


def edges(p: torch.Tensor) -> torch.Tensor:
    """Coins about probabilities ``[R]``, down to the next float: ``[R, coins]``."""
    steps = torch.logspace(-6, -0.7, 24)
    near = torch.cat([-steps, steps, torch.zeros(1)])
    coins = p[:, None] * (1 + near)
    up = torch.nextafter(p, torch.ones(()))[:, None]
    down = torch.nextafter(p, torch.zeros(()))[:, None]
    return torch.cat([coins, up, down], 1).clamp(0, 1 - 2**-24)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("filters", FILTERS[:-1], ids=str)
def test_coins_near_a_probability(filters: dict, dtype: torch.dtype) -> None:
    """One or two drafts a request, and coins that are nearly, or just, their probability."""
    rows = rows_of_many_kinds(42, dtype)
    desc = row_descriptor(rows, **filters)
    rows, desc = rows[desc[:, 4] >= 0], desc[desc[:, 4] >= 0]
    x = rows.float()
    weights = torch.exp((x - desc[:, 5:6]) / filters["temperature"]) / desc[:, 8:]
    weights = torch.where(x >= desc[:, 1:2], weights, 0.0)
    p, first = weights.max(1)
    second = torch.randint(VOCAB_SIZE, (len(rows),))
    coins = edges(p)
    count = coins.shape[1]
    b = coins.numel()
    tree = DraftTree([-1, 0, 0] * b, range(0, 3 * b + 1, 3))
    logits = rows.repeat_interleave(3 * count, 0)
    filled = desc.repeat_interleave(3 * count, 0)
    drafts = torch.stack([torch.zeros_like(first), first, second], 1)
    tokens = drafts.repeat_interleave(count, 0).flatten().int()
    given = coins.flatten().repeat_interleave(3)
    rules = {
        "target_only": lambda d, **o: verify_target_only(
            logits, d, tokens, tree, 3, 0, coins=given, **o
        ),
        "one-hot": lambda d, **o: verify_tree(
            logits, d, tokens, tree, DraftDistribution.one_hot(), 3, 0, coins=given, **o
        ),
        "drawn": lambda d, **o: verify_tree(logits, d, tokens, tree, drawn, 3, 0, coins=given, **o),
    }
    # Drafts drawn from nearly everything that there is: q is 1 or a bit less for the first.
    ids = torch.stack([first, second], 1).int()
    ids[first == second, 1] = -1
    logprobs = torch.tensor([[0.99, 0.01]]).log().repeat(len(rows), 1)
    logprobs[first == second] = torch.tensor([0.0, -torch.inf])
    place = torch.arange(len(rows)).int().repeat_interleave(3 * count)
    drawn = DraftDistribution.sparse(ids, logprobs, "iid", place)
    for name, rule in rules.items():
        want = rule(filled)
        got = rule(RowFilters(**filters), out=VerifyResult.empty(tree, logprobs=False))
        assert_same_decisions(got, want)
        accepted = want.num_accepted > 0
        assert accepted.any(), name
        if filters["temperature"] > 0.1 and name != "drawn":
            assert not accepted.all(), name


def test_what_is_not_wanted_is_none() -> None:
    tree = DraftTree.chains([2])
    fields = {f.name: getattr(VerifyResult.empty(tree, logprobs=False), f.name)
              for f in dataclasses.fields(VerifyResult)}  # fmt: skip
    assert [name for name, tensor in fields.items() if tensor is None] == ["logprobs"]
