"""The CUDA kernels of verification: on a GPU, or in the emulator without one.

They are compared with the kernels of the CPU, bit for bit where the CPU has bits of its own.
"""

from __future__ import annotations

import dataclasses
import itertools

import emulated
import pytest
import test_verify_distribution as distribution
import torch
from emulated import cuda_ops
from random_drafts import RULES, Batch, random_batch, run
from test_verify_drafts import rearranged
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

from ttc_kernels import (
    RowFilters,
    VerifyResult,
    row_descriptor,
    sample_children,
    sample_tokens,
    token_logprobs,
)

CHAINS = ("token", "block")
FILTERS = [
    {},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 10**9},
    {"top_p": 0.7},
    {"top_p": 1e-9},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"top_k": 20, "top_p": 0.9, "min_p": 0.01},
]


@pytest.fixture(scope="module")
def kernels() -> emulated.Emulated | emulated.OnGpu:
    return emulated.make()


def assert_same(got: VerifyResult, want: VerifyResult) -> None:
    for field in dataclasses.fields(VerifyResult):
        a, b = getattr(got, field.name), getattr(want, field.name)
        assert (a is None and b is None) or torch.equal(a, b), field.name


def assert_same_descriptors(kernels, logits: torch.Tensor, cases: list[dict], bitmask=None) -> None:
    """Every row of logits under every case of parameters."""
    defaults = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    columns = {
        name: torch.tensor([case.get(name, value) for case in cases]).repeat_interleave(len(logits))
        for name, value in defaults.items()
    }
    every = logits.repeat(len(cases), 1)
    mask = None if bitmask is None else bitmask.repeat(len(cases), 1)
    want = row_descriptor(every, **columns, bitmask=mask)
    with cuda_ops(kernels):
        got = row_descriptor(every, **columns, bitmask=mask)
    # As numbers: pivots of 0 and -0 are one pivot.
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", emulated.DTYPES)
@pytest.mark.parametrize("vocab_size", [1, 63, 1504])
def test_descriptors_of_the_cpu(kernels, dtype: torch.dtype, vocab_size: int) -> None:
    torch.manual_seed(vocab_size)
    logits = (torch.randn(1, vocab_size) * 4).to(dtype)  # 16 bits bring ties
    temperatures = (0.0, 0.4, 1e-30, 50.0) if vocab_size < 1000 else (0.7,)
    assert_same_descriptors(
        kernels, logits, [{"temperature": t, **f} for t in temperatures for f in FILTERS]
    )


def test_cuts_among_more_tokens_than_are_ranked_at_once(kernels) -> None:
    """All equal, all different in one bin, and a few values with many ties each."""
    torch.manual_seed(0)
    logits = torch.stack(
        [
            torch.zeros(3000),
            torch.rand(3000) * 0.01,
            torch.randint(0, 3, (3000,)) * 0.001,
        ]
    )
    logits[2, ::7] = -torch.inf
    cases = [{"top_k": k, "top_p": p} for k, p in [(2000, 1.0), (0, 0.5), (2500, 0.77), (2999, 1)]]
    assert_same_descriptors(kernels, logits, cases)


def test_ties_infinities_and_rows_without_a_distribution(kernels) -> None:
    inf, nan = torch.inf, torch.nan
    logits = torch.full((8, 200), -inf)
    logits[0] = 0.0
    logits[0, ::2] = -0.0
    logits[1, 5:90] = 2.5
    logits[1, 150:] = 3.0
    logits[2, 17] = -3e38
    logits[3] = -1.0
    logits[3, 199] = nan
    logits[4, 3] = inf
    logits[6] = torch.randn(200)  # row 5 has nothing above -inf
    logits[7, 3:70] = torch.randn(67) * 1e38
    filters = [(0, 1.0, 0.0), (60, 1.0, 0.0), (67, 1.0, 0.0), (0, 0.6, 0.0), (120, 0.9, 0.3)]
    cases = [
        {"top_k": k, "top_p": p, "min_p": m, "temperature": t}
        for (k, p, m), t in itertools.product(filters, (0.0, 0.5))
    ]
    assert_same_descriptors(kernels, logits, cases)
    bitmask = torch.randint(-(2**31), 2**31, (8, 7)).int()
    assert_same_descriptors(kernels, logits, cases, bitmask)


@pytest.mark.parametrize("dtype", emulated.DTYPES)
def test_tokens_of_the_cpu(kernels, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    for vocab_size, scale in ((1, 1.0), (6, 1.0), (70, 3.0), (1030, 0.1), (1040, 8.0)):
        # Strided, so that rows begin anywhere.
        logits = (torch.randn(24, vocab_size + 3) * scale).to(dtype)[:, :vocab_size]
        desc = row_descriptor(logits, 0.8, top_p=0.97)
        desc[::4] = row_descriptor(logits, 1.5)[::4]
        desc[1::8] = row_descriptor(logits, 0.0)[1::8]
        seeds = torch.randint(-(2**62), 2**62, (24,))
        positions = torch.randint(0, 2**50, (24,))
        want = sample_tokens(logits, desc, seeds, positions)
        with cuda_ops(kernels):
            assert torch.equal(sample_tokens(logits, desc, seeds, positions), want)


@pytest.mark.parametrize("mode", emulated.MODES)
def test_children_of_the_cpu(kernels, mode: str) -> None:
    torch.manual_seed(2)
    # Fewer tokens than children, more than there is room for at once, and many ties.
    sizes = [(3, 5, 1.0), (70, 4, 2.0), (1040, 256, 1.0), (600, 30, 0.0)]
    for number, (vocab_size, k, scale) in enumerate(sizes):
        k = min(k, 6) if mode == "iid" else k
        logits = (torch.randn(5, vocab_size) * scale).to(emulated.DTYPES[number % 3])
        desc = row_descriptor(logits, 0.7)
        desc[1] = row_descriptor(logits, 1.3, top_k=2)[1]
        desc[2] = row_descriptor(logits, 0.0)[2]
        logits[3, 1] = torch.nan
        desc[3] = row_descriptor(logits, 1.0)[3]
        keys = {"seeds": torch.arange(5) * 99 - 2, "positions": 3, "streams": torch.arange(5)}
        for noise in ("draft", "target") if mode == "without_replacement" else ("draft",):
            want = sample_children(logits, desc, k, mode, noise=noise, **keys)
            with cuda_ops(kernels):
                got = sample_children(logits, desc, k, mode, noise=noise, **keys)
            for x, y in zip(got, want, strict=True):
                assert torch.equal(x, y)


def test_log_probabilities_of_the_cpu(kernels) -> None:
    torch.manual_seed(3)
    for dtype in emulated.DTYPES:
        logits = (torch.randn(6, 300) * 3).to(dtype)
        logits[4, 7] = torch.nan
        bitmask = torch.randint(-(2**31), 2**31, (6, 10)).int()
        desc = row_descriptor(logits, 0.8, top_p=0.9, bitmask=bitmask)
        rows = torch.tensor([0, 1, 1, 2, -1, 4, 5, 3, 0]).int()
        tokens = torch.tensor([5, 0, 299, -1, 7, 7, -1, 11, 6]).int()
        tokens[0] = int(desc[0, 4])
        for raw in (True, False):
            want = token_logprobs(logits, desc, rows, tokens, raw=raw, bitmask=bitmask)
            with cuda_ops(kernels):
                got = token_logprobs(logits, desc, rows, tokens, raw=raw, bitmask=bitmask)
            for x, y in zip(got, want, strict=True):
                assert torch.equal(x, y)


def likely(rule: str, batch: Batch, seed: int) -> Batch:
    """The batch with drafts that are accepted now and then."""
    shown = run("sampled", batch).tokens.flatten().repeat(9)
    some = torch.rand(len(batch.tokens), generator=torch.Generator().manual_seed(seed)) < 0.6
    batch.tokens = torch.where(some, shown[: len(batch.tokens)], batch.tokens)
    return batch


@pytest.mark.parametrize("rule", RULES)
def test_results_of_the_cpu(kernels, rule: str) -> None:
    cases = itertools.product(("mixed", "iid", "without_replacement"), emulated.DTYPES)
    for seed, (kind, dtype) in enumerate(cases):
        for vocab_size in (5, 70) if seed else (6, 1030):
            batch = random_batch(
                seed, requests=5, vocab_size=vocab_size, chain=rule in CHAINS, kind=kind,
                dtype=dtype, sparse=seed % 4 == 3,
            )  # fmt: skip
            batch = likely(rule, batch, seed)
            coins = seed % 2 == 1 and rule not in ("greedy", "sampled", "typical")
            want = run(rule, batch, coins=coins)
            with cuda_ops(kernels):
                assert_same(run(rule, batch, coins=coins), want)
                assert_same(run(rule, batch, coins=coins, lazy=True), want)
            out = VerifyResult.empty(batch.tree, logprobs=False)
            with cuda_ops(kernels):
                run(rule, batch, coins=coins, out=out)
            assert_same(out, dataclasses.replace(want, logprobs=None))


@pytest.mark.parametrize("rule", RULES)
def test_batch_order_padding_and_bad_rows(kernels, rule: str) -> None:
    batch = random_batch(3, requests=7, chain=rule in CHAINS, vocab_size=20)
    bad = int(batch.tree.cu_nodes.diff().argmax())
    batch.logits[batch.tree.cu_nodes[bad]] = torch.nan
    order = [4, -1, 2, 0, 6, 5, -1, 1, 3]
    want = run(rule, batch)
    assert want.status.tolist() == [int(i == bad) for i in range(7)]
    with cuda_ops(kernels):
        assert_same(run(rule, batch, lazy=True), want)
        moved = run(rule, rearranged(batch, order), lazy=True)
    for at, i in enumerate(order):
        for field in dataclasses.fields(VerifyResult):
            got = getattr(moved, field.name)[at]
            if i >= 0:
                assert torch.equal(got, getattr(want, field.name)[i])
    assert moved.num_accepted[1] == -1 and (moved.tokens[1] == -1).all()


@pytest.mark.parametrize("rule", ["sampled", "target_only", "rejection"])
def test_rows_that_the_walk_does_not_come_to_are_not_read(rule: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("only the emulator counts bytes")
    kernels = emulated.Emulated()
    batch = random_batch(2, requests=1, vocab_size=64, nodes=9, kind="one_hot")
    batch.tokens[:] = -1
    rows = batch.tree.num_nodes
    assert rows > 4
    for eager in (False, True):
        kernels.eager = eager
        with cuda_ops(kernels):
            run(rule, batch, lazy=True)
        # The largest logit, the masses, the bin of the cut, and the draw.
        reads = kernels.kernels.bytes_read(batch.logits) / (64 * 4)
        assert reads == 4 if not eager else 3 * rows < reads <= 4 * rows


def test_no_requests_and_broken_trees(kernels) -> None:
    batch = random_batch(3, requests=4, nodes=5)
    want = run("rejection", batch)
    i = int(batch.tree.cu_nodes.diff().argmax())
    batch.tree.parent[batch.tree.cu_nodes[i] + 1] = 3  # behind it
    with cuda_ops(kernels):
        got = run("rejection", batch)
    assert got.status[i] == 2 and (got.tokens[i] == -1).all()
    for j in range(4):
        if j != i:
            assert torch.equal(got.tokens[j], want.tokens[j])
    empty = dataclasses.replace(
        batch, filters=RowFilters(0.5), **{n: getattr(batch, n)[:0] for n in
        ("tokens", "logits", "draft_logits", "proposals", "coins", "seeds", "positions")},
        tree=type(batch.tree)([], [0]),
    )  # fmt: skip
    with cuda_ops(kernels):
        assert run("sampled", empty).num_accepted.shape == (0,)


LAWS = [
    ("sampled", "tree", "iid"),
    ("target_only", "fork", "without_replacement"),
    ("token", "chain", "iid"),
    ("block", "chain", "iid"),
    ("rejection", "tree", "without_replacement"),
    ("traversal", "tree", "without_replacement"),
]


@pytest.fixture
def few_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = 40_000 if torch.cuda.is_available() else 1_500
    monkeypatch.setattr(distribution, "TRIALS", trials)


@pytest.mark.parametrize(("rule", "shape", "kind"), LAWS)
def test_sequences_follow_the_targets_law(kernels, few_trials, rule, shape, kind) -> None:
    """The joint chi-square of the CPU's test, on fewer requests in the emulator."""
    with cuda_ops(kernels, ("verify",)):
        deviation, _ = distribution.trial(rule, shape, kind, distribution.DRAFT)
    assert abs(deviation) < distribution.LIMIT


@pytest.mark.parametrize(
    ("rule", "shape", "kind", "options"),
    [
        ("token", "chain", "one_hot", {"told": "iid"}),
        ("block", "chain", "one_hot", {"told": "iid"}),
        ("rejection", "fork", "without_replacement", {"change": distribution.resorted}),
        ("traversal", "fork", "one_hot", {"told": "iid"}),
    ],
)
def test_what_is_told_wrong_shows(kernels, few_trials, rule, shape, kind, options) -> None:
    with cuda_ops(kernels, ("verify",)):
        deviation, _ = distribution.trial(rule, shape, kind, distribution.DRAFT, **options)
    assert deviation > distribution.LIMIT


def test_offsets_beyond_32_bits() -> None:
    """A row that begins 2**33 bytes behind the first one, in memory that is never touched."""
    if torch.cuda.is_available():
        pytest.skip("the memory would have to be there")
    vocab_size, stride = 64, 2**31 + 8
    try:
        flat = torch.empty(2 * stride + vocab_size, dtype=torch.bfloat16)
    except RuntimeError as error:
        pytest.skip(f"no address space: {error}")
    logits = flat.as_strided((3, vocab_size), (stride, 1))
    logits[2] = torch.linspace(0, 1, vocab_size).bfloat16()
    logits[2, 17] = 9.0
    kernels = emulated.Emulated()
    kernels.eager = False
    desc, out = torch.empty(3, 9), [torch.empty(2, dtype=torch.int32) for _ in range(2)]
    wide = [torch.empty(2, 3, dtype=torch.int32) for _ in range(2)]
    # The first request says that it has 300 nodes, which is too many; the second is the last row.
    cu_nodes = torch.tensor([-298, 2, 3], dtype=torch.int32)
    tokens, seeds = torch.zeros(3, dtype=torch.int32), torch.zeros(2, dtype=torch.int64)
    columns = RowFilters(0.5, top_k=1).columns("verify", logits)
    kernels.verify(
        "verify_sampled", "sampled", logits, desc, *columns, None, tokens, None, cu_nodes, seeds,
        seeds, None, None, None, None, None, None, None, 0.0, 0.0, out[0], wide[0], wide[1],
        torch.empty(2, 3), out[1],
    )  # fmt: skip
    assert out[1].tolist() == [2, 0] and wide[0].tolist() == [[-1] * 3, [17, -1, -1]]


@pytest.mark.gpu
@pytest.mark.parametrize("rule", RULES)
def test_a_replayed_graph_reads_what_is_there_then(device, rule: str) -> None:
    batch = random_batch(5, chain=rule in CHAINS, vocab_size=1000)
    other = random_batch(5, chain=rule in CHAINS, vocab_size=1000)
    other.logits = batch.logits.roll(1, 0)
    want = run(rule, other, lazy=True)
    moved = {
        f.name: x.to(device) if isinstance(x := getattr(batch, f.name), torch.Tensor) else x
        for f in dataclasses.fields(batch)
    }
    tree = type(batch.tree)(
        batch.tree.parent.to(device), batch.tree.cu_nodes.to(device), width=batch.tree.width
    )
    there = dataclasses.replace(batch, **{**moved, "tree": tree})
    out, workspace = VerifyResult.empty(tree), torch.empty(tree.num_nodes, 9, device=device)
    run(rule, there, lazy=True, out=out, workspace=workspace)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run(rule, there, lazy=True, out=out, workspace=workspace)
    there.logits.copy_(other.logits)
    graph.replay()
    for field in dataclasses.fields(VerifyResult):
        assert torch.equal(getattr(out, field.name).cpu(), getattr(want, field.name)), field.name


@pytest.mark.gpu
def test_opcheck_on_a_gpu(device) -> None:
    logits = torch.randn(3, 50, device=device)
    places = torch.arange(3, device=device)
    filters = RowFilters(0.8, top_k=9).columns("row_descriptor", logits)
    ops = torch.ops.ttc_kernels
    opcheck(ops.row_descriptor.default, (logits, *filters))
    desc = ops.row_descriptor(logits, *filters)
    opcheck(ops.sample_tokens.default, (logits, desc, places, places))
    rows = places.int()
    opcheck(ops.sample_children.default, (logits, desc, 2, "iid", False, places, places, rows))
    opcheck(ops.token_logprobs.default, (logits, desc, rows, rows, True))


def test_fake_tensors_on_a_gpu_need_no_gpu() -> None:
    with FakeTensorMode():
        logits = torch.empty(6, 50, device="cuda")
        desc = row_descriptor(logits, 0.7, top_p=0.9)
        places = torch.empty(6, dtype=torch.int64, device="cuda")
        tokens = sample_tokens(logits, desc, places, places)
        children = sample_children(logits, desc, 4, "iid", seeds=places, positions=places)
        processed, raw = token_logprobs(logits, desc, tokens, tokens)
    assert desc.shape == (6, 9) and tokens.shape == processed.shape == raw.shape == (6,)
    assert all(x.shape == (6, 4) and x.device.type == "cuda" for x in children)
