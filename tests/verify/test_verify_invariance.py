"""Verification in any company and any buffers, and with whatever may come in as a draft."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
import torch
from random_drafts import RULES, Batch, random_batch, run
from test_verify_drafts import CHAINS, assert_same_result, rearranged
from test_verify_triton import assert_same, in_triton

from ttc_kernels import (
    DraftDistribution,
    DraftTree,
    RowFilters,
    VerifyResult,
    row_descriptor,
    verify_chain,
    verify_sampled,
    verify_target_only,
    verify_tree,
)


def in_use(batch: Batch) -> VerifyResult:
    """Buffers that hold something else, as those of a graph do from the replay before."""
    out = VerifyResult.empty(batch.tree)
    for field in dataclasses.fields(out):
        getattr(out, field.name).fill_(77)
    return out


@pytest.mark.parametrize("rule", RULES)
def test_replaying_into_the_same_buffers(rule: str) -> None:
    """The same addresses with other drafts in them, lazily described or not: what a graph does."""
    batch = random_batch(8, chain=rule in CHAINS, vocab_size=40)
    other = random_batch(8, chain=rule in CHAINS, vocab_size=40)
    other.logits.copy_(other.logits.flip(1))
    other.tokens.copy_((other.tokens + 1) % 40)
    want = run(rule, batch), run(rule, other)
    out, workspace = in_use(batch), torch.full((batch.tree.num_nodes, 9), torch.nan)
    for i in (0, 1, 0):
        given = (batch, other)[i]
        assert run(rule, given, out=out) is out
        assert_same_result(out, want[i])
        run(rule, given, lazy=True, out=out, workspace=workspace)
        assert_same_result(out, want[i])


@pytest.mark.parametrize("rule", ["greedy", "sampled", "rejection", "traversal"])
def test_any_company_on_a_gpu(triton_device, rule: str) -> None:
    """As `test_a_request_is_independent_of_the_batch`: other orders, and requests without nodes."""
    batch = random_batch(3, requests=7, vocab_size=70)
    together = run(rule, batch)
    order = [4, -1, 2, 0, 6, 5, -1, 1, 3]
    moved = in_triton(rule, rearranged(batch, order), triton_device)
    for at, i in enumerate(order):
        if i >= 0:
            for field in dataclasses.fields(VerifyResult):
                assert torch.equal(getattr(moved, field.name)[at], getattr(together, field.name)[i])
    assert moved.num_accepted[1] == -1 and (moved.tokens[1] == -1).all()


def test_padding_nodes_on_a_gpu(triton_device) -> None:
    batch = random_batch(5, requests=1, nodes=6)
    tree = DraftTree(
        [*batch.tree.parent.tolist(), 0, 0], [0, batch.tree.num_nodes + 2], width=batch.tree.width
    )
    tokens = torch.cat([batch.tokens, torch.tensor([-1, 6]).int()])
    logits = torch.cat([batch.logits, torch.full((2, 6), 50.0)])
    padded = dataclasses.replace(batch, tree=tree, tokens=tokens, logits=logits)
    for _ in range(2):
        assert_same(in_triton("sampled", padded, triton_device), run("sampled", batch))
        padded.seeds = batch.seeds = batch.seeds + 1


def test_rows_that_no_path_comes_to_are_not_read() -> None:
    """Rows that no path comes to may hold anything at all."""
    for rule in RULES[1:]:
        batch = random_batch(5, requests=3, chain=rule in CHAINS, kind="one_hot")
        last = [end - 1 for begin, end in pairwise(batch.tree.cu_nodes.tolist()) if end > begin]
        batch.tokens[[v for v in last if batch.tree.parent[v] >= 0]] = -1
        want = run(rule, batch, lazy=True)
        leaves = set(range(batch.tree.num_nodes)) - {
            begin + p
            for begin, end in pairwise(batch.tree.cu_nodes.tolist())
            for p in [0, *batch.tree.parent[begin:end].tolist()]
        }
        rows = [v for v in leaves if v in last]
        assert rows
        batch.logits[rows] = torch.nan
        assert_same_result(run(rule, batch, lazy=True), want)


# -- wrong input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("token", [-1, -(2**31), 6, 2**31 - 1])
def test_drafts_outside_the_vocabulary_are_refused(rule: str, token: int) -> None:
    """None of them is accepted, and nothing is read in their place."""
    for seed in range(4):
        batch = random_batch(seed, chain=rule in CHAINS, kind="one_hot")
        batch.tokens.fill_(token)
        result, ends = run(rule, batch), batch.tree.cu_nodes.diff()
        assert (result.num_accepted == torch.where(ends > 0, 0, -1)).all()
        assert (result.status == 0).all() and (result.tokens[ends > 0, 0] >= 0).all()


@pytest.mark.parametrize("coin", [0.0, 1 - 2.0**-24])
@pytest.mark.parametrize("rule", ["token", "block", "rejection", "traversal"])
@pytest.mark.parametrize("kind", ["iid", "without_replacement", "one_hot"])
def test_extreme_coins_and_drafts_without_probability(rule: str, coin: float, kind: str) -> None:
    """Token 1 has p = 0 and is never accepted or drawn; 0 with p >= q always is when drawn."""
    logits = torch.tensor([[1.0, -torch.inf, 0.0]] * 3)
    q_logits = torch.tensor([[0.5, 0.5, 1.0]] * 3)
    chain, siblings = DraftTree.chains([2]), DraftTree([-1, 0, 0], [0, 3])
    tree = siblings if rule in ("rejection", "traversal") else chain
    draft = DraftDistribution.dense(q_logits, row_descriptor(q_logits, 1.0), kind)
    for first, second in ((1, 0), (1, 1), (0, 1), (2, 1)):
        tokens = torch.tensor([2, first, second]).int()
        arguments = (logits, RowFilters(1.0), tokens, tree, draft, 0, 0)
        verify = verify_tree if rule in ("rejection", "traversal") else verify_chain
        result = verify(*arguments, rule=rule, coins=torch.full((3,), coin))
        emitted = result.tokens[result.tokens >= 0].tolist()
        assert result.status.item() == 0 and 1 not in emitted and emitted
        if first == 0 and kind != "one_hot":
            assert result.num_accepted.item() == 1  # p = 0.73 >= q: accepted even by 1 - 2**-24
        if (first, second) == (1, 1):
            assert result.num_accepted.item() == 0


@pytest.mark.parametrize("rule", [r for r in RULES if r not in CHAINS])
def test_parents_out_of_order_are_refused(rule: str) -> None:
    """On a GPU, where the op cannot look at them, the request has status 2 (test_verify_triton)."""
    for parent in (2, 1, 7, -2):
        batch = random_batch(3, requests=4, nodes=5)
        i = int(batch.tree.cu_nodes.diff().argmax())
        batch.tree.parent[batch.tree.cu_nodes[i] + 1] = parent
        out = in_use(batch)
        with pytest.raises(ValueError, match=f"must be an earlier node .*, got {parent}"):
            run(rule, batch, out=out)
        assert (out.tokens == 77).all() and (out.status == 77).all()


@pytest.mark.parametrize("rule", ["sampled", "target_only", "rejection", "traversal"])
def test_rows_beyond_32_bits(rule: str) -> None:
    """Rows times vocabulary past 2**32, without the memory: the rows overlap.

    The one likely token is at V - 3 of the last request's root, and at V - 6 of its last node.
    """
    vocab_size, rows = 1 << 20, 4100
    flat = torch.zeros(vocab_size + rows, dtype=torch.bfloat16)
    flat[-7] = 90.0
    logits = flat.as_strided((rows, vocab_size), (1, 1))
    assert rows * vocab_size > 2**32
    tree = DraftTree(([-1] + [0] * 255) * 16 + [-1, 0, 0, 0], [*range(0, rows, 256), rows])
    tokens = torch.full((rows,), -1, dtype=torch.int32)
    tokens[-1] = vocab_size - 3
    verify = {"sampled": verify_sampled, "target_only": verify_target_only}.get(rule)
    if verify is not None:
        result = verify(logits, RowFilters(0.1), tokens, tree, 0, 0)
    else:
        draft = DraftDistribution.one_hot()
        result = verify_tree(logits, RowFilters(0.1), tokens, tree, draft, 0, 0, rule=rule)
    assert result.tokens[-1].tolist() == [vocab_size - 3, vocab_size - 6]
    assert result.path[-1].tolist() == [0, 3]
