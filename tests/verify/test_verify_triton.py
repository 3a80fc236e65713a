"""Greedy and sampled verification as it runs on a GPU: the very results of the CPU."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from random_drafts import random_batch, run

from ttc_kernels import RowFilters, VerifyResult, row_descriptor


def in_triton(rule: str, batch, device, *, parent=True, lazy=False) -> VerifyResult:
    from ttc_kernels.triton.verify_sampled import verify

    tree, n = batch.tree, batch.tree.num_nodes
    out = [getattr(VerifyResult.empty(tree), f.name).to(device).fill_(7)
           for f in dataclasses.fields(VerifyResult)]  # fmt: skip
    filters = RowFilters(0.0) if rule == "greedy" else batch.filters
    columns = tuple(x.to(device) for x in filters.columns("verify", batch.logits))
    desc = torch.empty(n, 9, device=device)
    if not lazy:
        desc = row_descriptor(batch.logits, *columns).to(device)
    arguments = (batch.tokens, tree.parent if parent else None, tree.cu_nodes, batch.seeds,
                 batch.positions)  # fmt: skip
    verify(rule, batch.logits.to(device), desc, columns if lazy else None, None,
           *(x if x is None else x.to(device) for x in arguments), tuple(out))  # fmt: skip
    return VerifyResult(*(x.cpu() for x in out))


def assert_same(got: VerifyResult, want: VerifyResult) -> None:
    for field in dataclasses.fields(VerifyResult):
        assert torch.equal(getattr(got, field.name), getattr(want, field.name)), field.name


@pytest.mark.parametrize("rule", ["greedy", "sampled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_equals_the_cpu(triton_device, rule: str, dtype: torch.dtype) -> None:
    for seed, vocab_size in enumerate((5, 6, 70, 1030)):
        batch = random_batch(seed, requests=9, vocab_size=vocab_size, dtype=dtype)
        likely = run(rule, batch).tokens.flatten().repeat(9)
        batch.tokens[1:] = likely[: len(batch.tokens) - 1]
        want = run(rule, batch)
        assert_same(in_triton(rule, batch, triton_device, lazy=seed % 2 == 1), want)


def test_chains_need_no_parents(triton_device) -> None:
    batch = random_batch(3, chain=True, vocab_size=4)
    got = in_triton("sampled", batch, triton_device, parent=False)
    assert_same(got, run("sampled", batch))


def test_rows_without_a_distribution_and_no_trees(triton_device) -> None:
    batch = random_batch(3, requests=4, nodes=5)
    batch.logits[batch.tree.cu_nodes[1]] = torch.nan
    assert_same(in_triton("sampled", batch, triton_device), run("sampled", batch))
    want = run("sampled", batch)
    i = int(batch.tree.cu_nodes.diff().argmax())
    batch.tree.parent[batch.tree.cu_nodes[i] + 1] = 3  # behind it
    got = in_triton("sampled", batch, triton_device)
    assert got.status[i] == 2 and (got.tokens[i] == -1).all()
    for j in range(4):
        if j != i:
            assert torch.equal(got.tokens[j], want.tokens[j])


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
