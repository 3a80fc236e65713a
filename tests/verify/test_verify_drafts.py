"""The verification kernels: decisions of the reference, bits that depend on nothing else, edges."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from random_drafts import RULES, Batch, expected, random_batch, run
from torch.library import opcheck

from ttc_kernels import (
    DraftDistribution,
    DraftTree,
    RowFilters,
    VerifyResult,
    row_descriptor,
    sample_tokens,
    token_logprobs,
    verify_chain,
    verify_greedy,
    verify_sampled,
    verify_target_only,
    verify_tree,
    verify_typical,
)
from ttc_kernels.testing import assert_bitwise_equal

CHAINS = ("token", "block")


def assert_same_result(a: VerifyResult, b: VerifyResult) -> None:
    for field in dataclasses.fields(VerifyResult):
        assert_bitwise_equal(getattr(a, field.name), getattr(b, field.name))


def assert_is(result: VerifyResult, want: list, batch: Batch) -> None:
    ends = batch.tree.cu_nodes.tolist()
    for i, outcome in enumerate(want):
        path = [x for x in result.path[i].tolist() if x >= 0]
        tokens = [x for x in result.tokens[i].tolist() if x >= 0]
        if outcome is None:
            assert result.num_accepted[i] == -1 and not path and not tokens
            continue
        assert path == outcome[0], (i, outcome)
        drafted = [batch.tokens[ends[i] + v].item() for v in outcome[0][1:]]
        assert tokens == [*drafted, outcome[1]]
        assert result.num_accepted[i] == len(path) - 1 and result.status[i] == 0


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["one_hot", "iid", "without_replacement", "mixed"])
def test_decides_as_the_reference(rule: str, kind: str) -> None:
    for seed in range(12):
        chain, sparse = rule in CHAINS, seed % 3 == 2
        batch = random_batch(seed, kind=kind, chain=chain, sparse=sparse)
        assert_is(run(rule, batch), expected(rule, batch), batch)
        if rule not in ("greedy", "sampled", "typical"):
            got = run(rule, batch, coins=True)
            assert_is(got, expected(rule, batch, coins=True), batch)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_larger_vocabularies_and_half_precision(rule: str, dtype: torch.dtype) -> None:
    for seed, vocab_size in enumerate((65, 1000)):
        batch = random_batch(seed, chain=rule in CHAINS, vocab_size=vocab_size, dtype=dtype)
        batch.logits += torch.arange(vocab_size) % 7  # so that drafts are accepted now and then
        batch.tokens[1::2] = batch.logits.argmax(1).int().roll(1)[1::2]
        assert_is(run(rule, batch), expected(rule, batch), batch)


@pytest.mark.parametrize("rule", RULES)
def test_lazy_descriptors_change_nothing(rule: str) -> None:
    for seed in range(6):
        batch = random_batch(seed, chain=rule in CHAINS)
        assert_same_result(run(rule, batch, lazy=True), run(rule, batch))
    workspace = torch.full((batch.tree.num_nodes, 9), torch.nan)
    assert_same_result(run(rule, batch, lazy=True, workspace=workspace), run(rule, batch))


def rearranged(batch: Batch, order: list[int]) -> Batch:
    """The requests in another order; -1 is an empty one."""
    ends, parents, picks, cu_nodes = batch.tree.cu_nodes.tolist(), [], [], [0]
    for i in order:
        nodes = range(ends[i], ends[i + 1]) if i >= 0 else range(0)
        picks += nodes
        parents += batch.tree.parent[list(nodes)].tolist()
        cu_nodes.append(len(picks))
    rows, requests = torch.tensor(picks, dtype=torch.int64), torch.tensor(order).clamp(min=0)
    return dataclasses.replace(
        batch,
        tree=DraftTree(parents, cu_nodes, width=batch.tree.width),
        **{name: getattr(batch, name)[rows] for name in
           ("tokens", "logits", "draft_logits", "proposals", "coins")},
        seeds=batch.seeds[requests],
        positions=batch.positions[requests],
    )  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_a_request_is_independent_of_the_batch(rule: str) -> None:
    batch = random_batch(3, requests=7, chain=rule in CHAINS, vocab_size=70)
    together = run(rule, batch)
    order = [4, -1, 2, 0, 6, 5, -1, 1, 3]
    moved = run(rule, rearranged(batch, order))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert_same_result(run(rule, batch), together)
    finally:
        torch.set_num_threads(threads)
    for at, i in enumerate(order):
        for field in dataclasses.fields(VerifyResult):
            if i >= 0:
                assert_bitwise_equal(
                    getattr(moved, field.name)[at], getattr(together, field.name)[i]
                )
    assert moved.num_accepted[1] == -1 and (moved.tokens[1] == -1).all()


@pytest.mark.parametrize("rule", ["sampled", "target_only", "rejection", "traversal"])
def test_padding_nodes_change_nothing(rule: str) -> None:
    batch = random_batch(5, requests=1, nodes=6)
    tree = DraftTree([*batch.tree.parent.tolist(), 0, 0], [0, batch.tree.num_nodes + 2],
                     width=batch.tree.width)  # fmt: skip
    padded = dataclasses.replace(
        batch,
        tree=tree,
        tokens=torch.cat([batch.tokens, torch.tensor([-1, 6]).int()]),
        **{
            name: torch.cat([getattr(batch, name), getattr(batch, name)[:2]])
            for name in ("logits", "draft_logits", "proposals", "coins")
        },
    )
    for _ in range(20):
        assert_same_result(run(rule, padded), run(rule, batch))
        padded.seeds = batch.seeds = batch.seeds + 1


@pytest.mark.parametrize("kind", ["one_hot", "iid", "without_replacement"])
def test_a_tree_of_width_one_is_a_chain(kind: str) -> None:
    for seed in range(10):
        batch = random_batch(seed, chain=True, kind=kind)
        assert_same_result(run("rejection", batch), run("token", batch))
        one = random_batch(seed, chain=True, kind=kind, nodes=2)
        assert_same_result(run("block", one), run("token", one))
        traversal, block = run("traversal", one), run("block", one)
        assert_bitwise_equal(traversal.tokens, block.tokens)


@pytest.mark.parametrize("rule", RULES[1:-1])
def test_temperature_zero_is_greedy(rule: str) -> None:
    for seed in range(10):
        batch = random_batch(seed, chain=rule in CHAINS, temperature=0.0, kind="one_hot")
        batch.tokens[1:] = torch.where(
            torch.rand(len(batch.tokens) - 1) < 0.7,
            batch.logits.argmax(1).int()[batch.tree.parent[1:].clamp(min=0).long()],
            batch.tokens[1:],
        )
        seen = set()  # of siblings with one token, greedy goes on with the first
        base = torch.repeat_interleave(batch.tree.cu_nodes[:-1], batch.tree.cu_nodes.diff())
        places = zip((base + batch.tree.parent).tolist(), batch.tokens.tolist(), strict=True)
        for v, place in enumerate(places):
            batch.tokens[v] = -1 if place in seen else batch.tokens[v]
            seen.add(place)
        result = run(rule, batch)
        want = verify_greedy(batch.logits, batch.tokens, batch.tree)
        assert_bitwise_equal(result.tokens, want.tokens)
        assert_bitwise_equal(result.num_accepted, want.num_accepted)
        assert (result.logprobs == 0).all()
        small = dataclasses.replace(batch, filters=RowFilters(1e-6))
        assert_bitwise_equal(run(rule, small).tokens, want.tokens)


def test_sampled_gives_the_tokens_of_the_sampler() -> None:
    torch.manual_seed(0)
    depth, vocab_size = 5, 30
    logits = torch.randn(depth, vocab_size)  # of one text: a row for each position
    desc = row_descriptor(logits, 0.9, top_k=12)
    for seed in range(30):
        drawn = sample_tokens(logits, desc, seed, torch.arange(depth) + 7)
        for wrong_at in range(depth):
            drafts = drawn.clone()
            drafts[wrong_at] = (drafts[wrong_at] + 1) % vocab_size
            tokens = torch.cat([torch.tensor([3]), drafts[:-1]]).int()
            result = verify_sampled(logits, desc, tokens, DraftTree.chains([depth - 1]), seed, 7)
            number = min(wrong_at, depth - 1)
            assert result.num_accepted.item() == number
            assert result.tokens[0, : number + 1].tolist() == drawn[: number + 1].tolist()


def test_log_probabilities_of_the_emitted_tokens() -> None:
    batch = random_batch(4, vocab_size=50)
    for rule in ("sampled", "rejection"):
        result = run(rule, batch)
        desc = row_descriptor(batch.logits, 0.8, top_p=0.97)
        base = batch.tree.cu_nodes[:-1, None]
        there = result.tokens >= 0
        rows = torch.where(there, result.path + base, -1).flatten().int()
        processed, raw = token_logprobs(batch.logits, desc, rows, result.tokens.flatten())
        assert_bitwise_equal(processed.view_as(result.logprobs), result.logprobs)
        plain = batch.logits.double().log_softmax(1)
        kept = rows >= 0
        want = plain[rows[kept].long(), result.tokens.flatten()[kept].long()]
        torch.testing.assert_close(raw[kept].double(), want, rtol=1e-6, atol=2e-6)
        scaled = (batch.logits.double() / 0.8).log_softmax(1)
        assert (processed[kept] >= scaled[rows[kept].long(), result.tokens.flatten()[kept].long()]
                - 1e-5).all()  # fmt: skip
        assert (raw[~kept] == 0).all()
    none = torch.tensor([0]).int()
    assert token_logprobs(batch.logits, desc, none, none - 1)[1].tolist() == [0]
    with pytest.raises(ValueError, match=r"token_logprobs: tokens\[0\] must be .* 50\), got 50"):
        token_logprobs(batch.logits, desc, none, none + 50)


# -- edges ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("rule", RULES)
def test_a_row_without_a_distribution_stops_its_own_request(rule: str, bad: float) -> None:
    batch = random_batch(3, requests=4, chain=rule in CHAINS, nodes=5)
    want = run(rule, batch)
    counts = batch.tree.cu_nodes.diff()
    i = int(counts.argmax())
    root = batch.tree.cu_nodes[i]
    batch.logits[root] = bad
    result = run(rule, batch)
    assert result.status.tolist() == [int(j == i) for j in range(4)]
    assert result.num_accepted[i] == 0 and (result.tokens[i] == -1).all()
    for j in range(4):
        if j != i:
            assert_bitwise_equal(result.tokens[j], want.tokens[j])


def test_a_bad_row_below_the_root_keeps_what_came_before() -> None:
    logits = torch.zeros(3, 4)
    logits[:, 2] = 50.0
    logits[1, 0] = torch.nan
    tokens = torch.tensor([0, 2, 2]).int()
    tree, draft = DraftTree.chains([2]), DraftDistribution.one_hot()
    for rule in ("token", "block"):
        result = verify_chain(logits, RowFilters(1.0), tokens, tree, draft, 0, 0, rule=rule)
        assert result.tokens.tolist() == [[2, -1, -1]] and result.status.tolist() == [1]
    for rule in ("rejection", "traversal"):
        result = verify_tree(logits, RowFilters(1.0), tokens, tree, draft, 0, 0, rule=rule)
        assert result.tokens.tolist() == [[2, -1, -1]] and result.status.tolist() == [1]


def test_extreme_coins() -> None:
    logits = torch.tensor([[0.0, -torch.inf, 0.0], [0.0, 0.0, 0.0]])
    desc, tree = row_descriptor(logits, 1.0), DraftTree.chains([1])
    last = 1 - 2.0**-24

    def accepted(draft_token, draft, coin, rule="token"):
        tokens, coins = torch.tensor([0, draft_token]).int(), torch.tensor([coin, coin])
        if rule == "target_only":
            result = verify_target_only(logits, desc, tokens, tree, 0, 0, coins=coins)
        else:
            result = verify_chain(logits, desc, tokens, tree, draft, 0, 0, rule=rule, coins=coins)
        assert result.status.item() == 0 and result.tokens[0, 0] != 1
        return result.num_accepted.item()

    q_logits = torch.full((2, 3), -torch.inf)
    q_logits[:, 0] = 0.0
    same = DraftDistribution.dense(logits, desc)
    onehot, peaked = (
        DraftDistribution.one_hot(),
        DraftDistribution.dense(q_logits, row_descriptor(q_logits, 1.0)),
    )
    for rule in ("token", "block"):
        assert accepted(1, onehot, 0.0, rule) == 0  # p = 0 is refused even by the coin 0
        assert accepted(0, same, last, rule) == 1  # p = q is accepted even by the largest
        assert accepted(1, same, 0.0, rule) == 0  # p = q = 0
        assert accepted(2, peaked, last, rule) == 1  # q = 0 and p > 0
        assert accepted(0, onehot, last, rule) == 0
    assert accepted(1, onehot, 0.0, "target_only") == 0
    assert accepted(0, onehot, 0.0, "target_only") == 1
    assert accepted(0, onehot, last, "target_only") == 0


def test_one_hot_target_and_draft_at_every_coin() -> None:
    logits = torch.full((2, 5), -torch.inf)
    logits[:, 3] = 1.0
    desc, tokens = row_descriptor(logits, 0.3), torch.tensor([0, 3]).int()
    for coin in (0.0, 0.5, 1 - 2.0**-24):
        coins = torch.full((2,), coin)
        for draft in (DraftDistribution.one_hot(), DraftDistribution.dense(logits, desc)):
            for rule in ("token", "block"):
                result = verify_chain(
                    logits, desc, tokens, DraftTree.chains([1]), draft, 0, 0, rule=rule, coins=coins
                )
                assert result.tokens.tolist() == [[3, 3]]


def test_duplicate_siblings_count_once() -> None:
    logits = torch.log(torch.tensor([[0.3, 0.7], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5]]))
    tree, tokens = DraftTree([-1, 0, 0, 0], [0, 4]), torch.tensor([0, 0, 0, 0]).int()
    coins = torch.full((4,), 0.31)
    for rule in ("rejection", "traversal"):
        result = verify_tree(
            logits, RowFilters(1.0), tokens, tree, DraftDistribution.one_hot(), 0, 0,
            rule=rule, coins=coins,
        )  # fmt: skip
        assert result.tokens[0, 0] == 1
    result = verify_target_only(logits, RowFilters(1.0), tokens, tree, 0, 0, coins=coins)
    assert result.tokens[0, 0] == 1


def test_duplicate_siblings_leave_their_token_out_once() -> None:
    """Of p = (.4, .2, .2, .2) the first draft leaves .6; once token 1 is rejected, (.02, .14)."""
    p, q = torch.tensor([0.4, 0.2, 0.2, 0.2]).log(), torch.tensor([0.1, 0.5, 0.3, 0.1]).log()
    tree, tokens = DraftTree([-1, 0, 0, 0, 0], [0, 5]), torch.tensor([0, 0, 0, 1, 2]).int()
    logits, draft_logits = p.expand(5, 4).contiguous(), q.expand(5, 4).contiguous()
    proposals = torch.tensor([0, 0, 0, 1, 1], dtype=torch.int8)
    desc = row_descriptor(draft_logits, 1.0)
    draft = DraftDistribution.dense(draft_logits, desc, proposals)
    for rule in ("rejection", "traversal"):
        for coin, accepted in ((0.7, 0), (0.41, 1)):  # the last draft has .02 / (.3 * .16)
            coins = torch.tensor([0, 0.99, 0.99, 0.99, coin])
            result = verify_tree(
                logits, RowFilters(1.0), tokens, tree, draft, 0, 0, rule=rule, coins=coins
            )
            assert result.num_accepted.item() == accepted


def test_a_bitmask_holds_at_every_node() -> None:
    torch.manual_seed(1)
    batch = random_batch(2, vocab_size=70)
    allowed = torch.rand(batch.logits.shape) < 0.3
    allowed[:, 5] = True
    words = torch.zeros(len(allowed), 3, dtype=torch.int64)
    for i in range(70):
        words[:, i // 32] |= allowed[:, i].long() << (i % 32)
    mask = torch.where(words >= 2**31, words - 2**32, words).int()
    masked = dataclasses.replace(
        batch, logits=torch.where(allowed, batch.logits, -torch.inf), filters=RowFilters(0.8)
    )
    batch.filters = RowFilters(0.8)
    desc = row_descriptor(batch.logits, 0.8, bitmask=mask)
    assert_bitwise_equal(desc, row_descriptor(masked.logits, 0.8))
    keys = (batch.seeds, batch.positions)
    for rule in ("rejection", "traversal"):
        got = verify_tree(
            batch.logits, desc, batch.tokens, batch.tree, batch.draft(), *keys,
            rule=rule, bitmask=mask,
        )  # fmt: skip
        assert_same_result(got, run(rule, masked))
    got = verify_sampled(
        batch.logits, RowFilters(0.8), batch.tokens, batch.tree, *keys, bitmask=mask
    )
    assert_same_result(got, run("sampled", masked))


def test_offsets_beyond_32_bits() -> None:
    """Rows times vocabulary past 2**32, without the memory: the rows overlap."""
    vocab_size, rows = 1 << 20, 4100
    flat = torch.zeros(vocab_size + rows, dtype=torch.bfloat16)
    logits = flat.as_strided((rows, vocab_size), (1, 1))
    assert rows * vocab_size > 2**32
    flat[-3] = 9.0  # the last token of the last request's root row
    tree = DraftTree.chains([0] * (rows - 2) + [1])
    tokens = torch.zeros(rows, dtype=torch.int32)
    last = torch.arange(rows - 1) == rows - 2
    result = verify_greedy(logits, tokens, tree, workspace=torch.empty(rows, 9))
    assert result.tokens[last, 0].item() == vocab_size - 1
    assert result.num_accepted[last].item() == 0


# -- wrong input ----------------------------------------------------------------------------------


def arguments(**change):
    logits = torch.zeros(3, 4)
    given = {
        "logits": logits,
        "desc": row_descriptor(logits, 1.0),
        "tokens": torch.zeros(3, dtype=torch.int32),
        "tree": DraftTree.chains([2]),
        "draft": DraftDistribution.one_hot(),
        "seeds": 0,
        "positions": 0,
    }
    return given | change


def sparse(ids: list[int], probability: float = 0.5) -> DraftDistribution:
    """The same few tokens after every node."""
    each = torch.tensor([ids] * 3, dtype=torch.int32)
    return DraftDistribution.sparse(each, torch.full(each.shape, probability).log())


BAD = [
    ({"logits": torch.zeros(2, 4)}, ValueError, "a row for each of the 3 nodes"),
    ({"logits": torch.zeros(3, 4).double()}, TypeError, "logits must be"),
    ({"tokens": torch.zeros(3)}, TypeError, "tokens must be int32"),
    ({"tokens": torch.zeros(2, dtype=torch.int32)}, ValueError, r"tokens must be .* \[3\]"),
    ({"tree": [-1, 0, 1]}, TypeError, "tree must be a DraftTree, got list"),
    ({"seeds": torch.zeros(2, dtype=torch.int64)}, ValueError, r"seeds must be one .* \[1\]"),
    ({"positions": -1}, ValueError, r"positions\[0\] must be in"),
    ({"seeds": 2**64}, ValueError, "seeds must be torch.int64, got 18446744073709551616"),
    ({"seeds": None}, TypeError, "seeds must be torch.int64, got None"),
    ({"desc": RowFilters("warm")}, TypeError, "temperature must be torch.float32, got 'warm'"),
    ({"coins": torch.tensor([0.0, 1.0, 0.0])}, ValueError, r"coins\[1\] must be .* got 1"),
    ({"coins": torch.tensor([0.0, torch.nan, 0.0])}, ValueError, r"coins\[1\]"),
    ({"desc": torch.zeros(3, 8)}, ValueError, r"desc must be .* \[3, 9\]"),
    ({"desc": RowFilters(-1.0)}, ValueError, r"temperature\[0\] must be 0"),
    ({"draft": DraftDistribution("iid")}, ValueError, "need the distribution"),
    ({"draft": DraftDistribution("best")}, ValueError, "draft.proposal must be one of"),
    ({"draft": DraftDistribution([1, 1, 1])}, ValueError, "draft.proposal must be one of"),
    ({"draft": DraftDistribution(torch.tensor([0, 1, 258]))}, TypeError, "proposal must be int8"),
    ({"draft": "one_hot"}, TypeError, "draft must be a DraftDistribution, got str"),
    ({"draft": None}, TypeError, "draft must be a DraftDistribution, got NoneType"),
    ({"desc": RowFilters(1.0), "workspace": torch.zeros(2, 9)}, ValueError, "workspace must be"),
    (
        {"draft": DraftDistribution.dense(torch.zeros(2, 4), torch.zeros(2, 9))},
        ValueError,
        "a row for each of the 3 nodes, got 2",
    ),
    (
        {"draft": DraftDistribution.dense(torch.zeros(3, 5), torch.zeros(3, 9))},
        ValueError,
        r"draft logits must be \[R, 4\]",
    ),
    (
        {"draft": DraftDistribution.dense(torch.zeros(3, 4), torch.zeros(3, 9),
                                          rows=torch.tensor([0, 3, 0]).int())},
        ValueError,
        r"draft rows\[1\] must be -1 \(none\) or in \[0, 3\), got 3",
    ),
    ({"draft": sparse([1, 1])}, ValueError, r"ids\[0\] must be distinct, but 1 is there twice"),
    ({"draft": sparse([1, 4])}, ValueError, r"draft ids\[0\]\[1\] must be .* in \[0, 4\), got 4"),
    ({"draft": sparse([1, 2], 0.4)}, ValueError, r"logprobs\[0\] must be .* sum to 0\.8"),
    ({"draft": sparse([1, 2], torch.nan)}, ValueError, r"logprobs\[0\] must be .* sum to nan"),
    ({"bitmask": torch.zeros(3, 2, dtype=torch.int32)}, ValueError, r"bitmask must be .* \[3, 1\]"),
    ({"rule": "best"}, ValueError, "rule must be"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_refuses(change: dict, error: type, message: str) -> None:
    out = VerifyResult.empty(DraftTree.chains([2]))
    out.tokens.fill_(7)
    with pytest.raises(error, match="verify_tree: .*" + message):
        verify_tree(**arguments(out=out, **change))
    assert (out.tokens == 7).all(), "something was written before the checks"


def test_rows_that_nothing_was_drawn_from_may_hold_anything() -> None:
    tokens = torch.tensor([0, 1, -1], dtype=torch.int32)  # padding behind the one draft
    draft = sparse([1, 2])
    draft.logprobs[1:] = torch.nan
    result = verify_tree(**arguments(tokens=tokens, draft=draft))
    assert result.status.tolist() == [0]


def test_refuses_what_only_some_rules_take() -> None:
    given = arguments()
    del given["draft"]
    with pytest.raises(ValueError, match="verify_typical: lossy must be True"):
        verify_typical(**given)
    with pytest.raises(ValueError, match="epsilon and delta"):
        verify_typical(**given, lossy=True, epsilon=-1)
    narrow = VerifyResult.empty(DraftTree.chains([1]))
    with pytest.raises(ValueError, match="verify_sampled: the outputs must have more than 2"):
        verify_sampled(**given, out=narrow)
    with pytest.raises(ValueError, match="verify_chain: rule must be"):
        chain = {**arguments(), "cu_nodes": torch.tensor([0, 3]).int()}
        del chain["tree"]
        verify_chain(**chain, rule="best")
    with pytest.raises(ValueError, match=r"verify_chain: cu_nodes must be .B . 1., got .0."):
        verify_chain(**chain | {"cu_nodes": torch.tensor([]).int()})
    # Wide enough for a chain, which it would be taken for.
    tree = DraftTree([-1, 0, 0], [0, 3], width=3)
    with pytest.raises(ValueError, match=r"verify_chain: the drafts of every .* chain, got a tree"):
        verify_chain(**chain | {"cu_nodes": tree})


def test_opcheck() -> None:
    batch = random_batch(1, requests=2)
    tree, out = batch.tree, VerifyResult.empty(batch.tree)
    desc = row_descriptor(batch.logits, 1.0)
    for logprobs in (out.logprobs, None):
        opcheck(
            torch.ops.ttc_kernels.verify.default,
            ("verify_sampled", "sampled", batch.logits, desc, None, None, None, None, None,
             batch.tokens, tree.parent, tree.cu_nodes, batch.seeds, batch.positions, None, None,
             None, None, None, None, None, 0.0, 0.0, out.num_accepted, out.tokens, out.path,
             logprobs, out.status),
        )  # fmt: skip
