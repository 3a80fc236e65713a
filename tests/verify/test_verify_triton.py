"""Verification in Triton, as it runs on a GPU: the very results of the CPU."""

from __future__ import annotations

import dataclasses
import itertools
from contextlib import contextmanager, nullcontext

import pytest
import torch
from random_drafts import RULES, Batch, random_batch, run

from ttc_kernels import (
    DraftDistribution,
    DraftTree,
    RowFilters,
    VerifyResult,
    row_descriptor,
    verify_tree,
)

CHAINS = ("token", "block")


@contextmanager
def verified_in_triton():
    """Inside, the op verifies in Triton, as it does on a GPU without the CUDA kernels."""
    from ttc_kernels import _verify_gpu

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.ops.ttc_kernels, "verify", _verify_gpu.verify)
        yield


def moved(batch: Batch, device: torch.device) -> Batch:
    tensors = {
        f.name: getattr(batch, f.name).to(device)
        for f in dataclasses.fields(Batch)
        if isinstance(getattr(batch, f.name), torch.Tensor)
    }
    tree = batch.tree
    tree = DraftTree(tree.parent.to(device), tree.cu_nodes.to(device), width=tree.width)
    return dataclasses.replace(batch, tree=tree, **tensors)


def in_triton(rule: str, batch: Batch, device, logprobs: bool = True, **options) -> VerifyResult:
    batch = moved(batch, device)
    out = VerifyResult.empty(batch.tree, logprobs=logprobs)
    given = [getattr(out, f.name) for f in dataclasses.fields(VerifyResult)]
    for tensor in given:
        if tensor is not None:
            tensor.fill_(7)
    with verified_in_triton():
        run(rule, batch, out=out, **options)
    return VerifyResult(*(None if tensor is None else tensor.cpu() for tensor in given))


def assert_same(got: VerifyResult, want: VerifyResult) -> None:
    for field in dataclasses.fields(VerifyResult):
        a, b = getattr(got, field.name), getattr(want, field.name)
        assert (a is None and b is None) or torch.equal(a, b), field.name


def make_likely(batch: Batch, rule: str) -> None:
    """Turns most drafts into tokens that the target gives somewhere."""
    likely = run(rule, batch).tokens.flatten().repeat(9)
    batch.tokens[1::2] = likely[: len(batch.tokens[1::2])]


@pytest.mark.parametrize("rule", RULES)
def test_equals_the_cpu(triton_device, rule: str) -> None:
    for seed, (requests, vocab_size, dtype) in enumerate(
        ((6, 6, torch.float32), (4, 70, torch.float16), (1, 1030, torch.float32))
    ):
        options = {"sparse": seed == 0, "chain": rule in CHAINS, "requests": requests}
        batch = random_batch(seed, vocab_size=vocab_size, dtype=dtype, **options)
        make_likely(batch, rule)
        coins = seed == 1
        want = run(rule, batch, coins=coins)
        assert_same(in_triton(rule, batch, triton_device, coins=coins), want)
    tokens_alone = in_triton(rule, batch, triton_device, logprobs=False)
    assert_same(tokens_alone, dataclasses.replace(want, logprobs=None))


@pytest.mark.parametrize("rule", ["sampled", "traversal"])
def test_describes_rows_itself(triton_device, rule: str) -> None:
    batch = random_batch(2, requests=1)
    assert_same(in_triton(rule, batch, triton_device, lazy=True), run(rule, batch))


@pytest.mark.parametrize("rule", RULES[3:7])
@pytest.mark.parametrize("kind", ["one_hot", "iid", "without_replacement"])
def test_every_kind_of_proposal(triton_device, rule: str, kind: str) -> None:
    for sparse in (False, True):
        chain = rule in CHAINS
        batch = random_batch(9, kind=kind, chain=chain, sparse=sparse, requests=4)
        assert_same(in_triton(rule, batch, triton_device), run(rule, batch))


@pytest.mark.parametrize("rule", ["rejection", "traversal"])
@pytest.mark.parametrize(("seed", "last_parent"), [(0, 0), (4, 2)])
def test_many_likely_siblings(triton_device, rule: str, seed: int, last_parent: int) -> None:
    """The likeliest tokens of drafts that are nearly sure: what is rejected takes most of them."""
    batch = random_batch(seed, nodes=9, vocab_size=12)
    parent = batch.tree.parent.clamp(max=last_parent)
    batch.tree = DraftTree(parent, batch.tree.cu_nodes)
    batch.draft_logits *= 2
    for begin, end in itertools.pairwise(batch.tree.cu_nodes.tolist()):
        for v in range(begin + 1, end):
            earlier = (parent[begin:v] == parent[v]).sum()
            order = batch.draft_logits[begin + parent[v]].argsort(descending=True)
            batch.tokens[v] = order[earlier]
    for coins in (True, False):
        want = run(rule, batch, coins=coins)
        assert_same(in_triton(rule, batch, triton_device, coins=coins), want)


@pytest.mark.parametrize("rule", ["rejection", "traversal"])
def test_chosen_siblings_leave_their_token_out_once(triton_device, rule: str) -> None:
    """test_duplicate_siblings_leave_their_token_out_once, which has the numbers."""
    p, q = torch.tensor([0.4, 0.2, 0.2, 0.2]).log(), torch.tensor([0.1, 0.5, 0.3, 0.1]).log()
    batch = dataclasses.replace(
        random_batch(0, requests=1),
        tree=DraftTree([-1, 0, 0, 0, 0], [0, 5]),
        tokens=torch.tensor([0, 0, 0, 1, 2], dtype=torch.int32),
        logits=p.expand(5, 4).contiguous(),
        draft_logits=q.expand(5, 4).contiguous(),
        proposals=torch.tensor([0, 0, 0, 1, 1], dtype=torch.int8),
        filters=RowFilters(1.0),
    )
    for coin, accepted in ((0.7, 0), (0.41, 1)):
        batch.coins = torch.tensor([0, 0.99, 0.99, 0.99, coin])
        got = in_triton(rule, batch, triton_device, coins=True)
        assert got.num_accepted.item() == accepted
        assert_same(got, run(rule, batch, coins=True))


@pytest.mark.parametrize("rule", RULES[2:])
def test_temperature_zero(triton_device, rule: str) -> None:
    chain = rule in CHAINS
    batch = random_batch(1, chain=chain, kind="one_hot", temperature=0.0, requests=4)
    make_likely(batch, rule)
    batch.tokens[1::2] = batch.logits.argmax(1).int()[:-1:2]
    assert_same(in_triton(rule, batch, triton_device), run(rule, batch))


@pytest.mark.parametrize("rule", RULES[2:])
@pytest.mark.parametrize("coin", [0.0, 1 - 2.0**-24])
def test_extreme_coins_padding_and_duplicates(triton_device, rule: str, coin: float) -> None:
    batch = random_batch(6, vocab_size=4, chain=rule in CHAINS, nodes=10)
    batch.coins.fill_(coin)
    batch.tokens[2::5] = -1
    batch.tokens[3::5] = 4  # past the vocabulary
    batch.tokens[4::5] = batch.tokens[1:-3:5]
    assert_same(in_triton(rule, batch, triton_device, coins=True), run(rule, batch, coins=True))


@pytest.mark.parametrize("rule", RULES[2:])
def test_rows_without_a_distribution(triton_device, rule: str) -> None:
    """Of the target and of the draft; and drafts that had no probability."""
    batch = random_batch(3, chain=rule in CHAINS)
    batch.logits[::4] = torch.nan
    batch.logits[1::4, ::2] = -torch.inf
    batch.logits[2] = -torch.inf
    batch.draft_logits[::3] = torch.inf
    batch.draft_logits[1::3, ::2] = -torch.inf
    want = run(rule, batch)
    assert (want.status == 1).any() and (want.status == 0).any()
    assert_same(in_triton(rule, batch, triton_device), want)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in CHAINS])
def test_no_trees(triton_device, rule: str) -> None:
    batch = random_batch(3, requests=4, nodes=5)
    want = run(rule, batch)
    i = int(batch.tree.cu_nodes.diff().argmax())
    batch = moved(batch, triton_device)
    batch.tree.parent[batch.tree.cu_nodes[i] + 1] = 3  # behind it
    out = VerifyResult.empty(batch.tree)
    with verified_in_triton():
        got = run(rule, batch, out=out)
    assert got.status[i] == 2 and (got.tokens[i] == -1).all()
    for j in range(4):
        if j != i:
            assert torch.equal(got.tokens[j].cpu(), want.tokens[j])


@pytest.mark.parametrize("rule", ["rejection", "traversal"])
def test_rows_of_the_draft_and_a_bitmask(triton_device, rule: str) -> None:
    batch = random_batch(8, vocab_size=40, requests=4)
    n = len(batch.logits)
    make_likely(batch, "sampled")
    words = torch.randint(-(2**31), 2**31 - 1, (n, 2), dtype=torch.int64).int()
    rows = (torch.arange(n) % 3 - 1).int()  # -1: drawn from nothing
    batch = moved(batch, triton_device)
    draft_desc = row_descriptor(batch.draft_logits[:2], 1.0)
    rows, words = rows.to(triton_device), words.to(triton_device)
    draft = DraftDistribution.dense(batch.draft_logits[:2], draft_desc, batch.proposals, rows)
    results = []
    for where in (nullcontext(), verified_in_triton()):
        with where:
            results.append(
                verify_tree(
                    batch.logits, batch.filters, batch.tokens, batch.tree, draft, batch.seeds,
                    batch.positions, rule=rule, bitmask=words,
                )
            )  # fmt: skip
    assert_same(results[1], results[0])


@pytest.mark.parametrize("kind", ["one_hot", "iid", "without_replacement"])
def test_one_draft_is_the_token_rule(triton_device, kind: str) -> None:
    batch = random_batch(4, chain=True, kind=kind, nodes=2, requests=3)
    token = in_triton("token", batch, triton_device)
    assert_same(in_triton("block", batch, triton_device), token)
    assert torch.equal(in_triton("traversal", batch, triton_device).path, token.path)


def test_what_cannot_be_verified_is_refused(triton_device) -> None:
    batch = moved(random_batch(4), triton_device)
    for change, error, message in (
        ({"coins": batch.coins[1:]}, ValueError, "coins must be a contiguous"),
        ({"coins": batch.coins.double()}, TypeError, "coins must be float32"),
        ({"draft_logits": batch.draft_logits[1:]}, ValueError, "a row for each of the"),
        ({"draft_logits": batch.draft_logits[:, 1:]}, ValueError, "draft logits must be"),
        ({"proposals": batch.proposals[1:]}, ValueError, "proposals must be a contiguous"),
    ):
        with verified_in_triton(), pytest.raises(error, match="verify_tree: .*" + message):
            run("rejection", dataclasses.replace(batch, **change), coins=True)


@pytest.mark.gpu
def test_the_op_runs_on_a_gpu_inside_a_graph(device) -> None:
    from ttc_kernels import DraftTree, verify_sampled

    batch = random_batch(5, vocab_size=1000)
    tree = DraftTree(
        batch.tree.parent.to(device), batch.tree.cu_nodes.to(device), width=batch.tree.width
    )
    desc = row_descriptor(batch.logits, 0.8)
    tensors = (batch.logits, desc, batch.tokens, batch.seeds, batch.positions)
    logits, desc, tokens, seeds, positions = (x.to(device) for x in tensors)
    arguments = (logits, desc, tokens, tree, seeds, positions)
    want = verify_sampled(*arguments)
    out = VerifyResult.empty(tree)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        verify_sampled(*arguments, out=out)
    graph.replay()
    assert_same(out, want)
