"""Descriptors of vocabulary shards make those of the whole rows."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ttc_kernels import (
    DESCRIPTOR_COLUMNS,
    DraftDistribution,
    DraftTree,
    merge_descriptors,
    row_descriptor,
    sample_children,
    sample_tokens,
    verify_chain,
    verify_greedy,
    verify_sampled,
    verify_target_only,
)
from ttc_kernels.testing import assert_bitwise_equal

SUMS = [DESCRIPTOR_COLUMNS.index(name) for name in ("log_z", "log_z_all", "z")]
EXACT = [i for i in range(len(DESCRIPTOR_COLUMNS)) if i not in SUMS]


def split(logits: torch.Tensor, offsets: list[int]) -> list[torch.Tensor]:
    return [logits[:, a:b] for a, b in pairwise(offsets)]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=6),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.integers(0, 2**31),
    st.booleans(),
)
def test_the_whole_row_of_its_shards(sizes, dtype, seed, coarse):
    """Coarse logits tie, within shards and across them."""
    offsets = [0, *torch.tensor(sizes).cumsum(0).tolist()]
    generator = torch.Generator().manual_seed(seed)
    logits = 6 * torch.randn(5, offsets[-1], generator=generator) + 0.25
    logits = (logits.round() + 0.25 if coarse else logits).to(dtype)
    temperature = torch.tensor([0.0, 0.3, 1.0, 1.0, 4.0])
    logits[3, : offsets[-1] - 1] = -torch.inf
    empty = torch.stack([torch.isneginf(part).all(1) for part in split(logits, offsets)])
    shards = [row_descriptor(part, temperature) for part in split(logits, offsets)]
    whole, merged = row_descriptor(logits, temperature), merge_descriptors(shards, offsets, empty)
    assert_bitwise_equal(merged[:, EXACT], whole[:, EXACT])
    torch.testing.assert_close(merged[:, SUMS], whole[:, SUMS], rtol=2e-6, atol=2e-6)
    seeds, positions = torch.arange(5), torch.arange(5) + 100
    drawn = [sample_tokens(logits, desc, seeds, positions) for desc in (whole, merged)]
    assert_bitwise_equal(*drawn)


def test_rows_without_a_distribution():
    rows = torch.randn(4, 40)
    rows[0, 30], rows[1, 3], rows[2] = torch.nan, torch.inf, -torch.inf
    offsets, empty = [0, 16, 40], torch.zeros(2, 4, dtype=torch.bool)
    empty[:, 2] = True
    shards = [row_descriptor(part, 0.7) for part in split(rows, offsets)]
    merged, whole = merge_descriptors(shards, offsets, empty), row_descriptor(rows, 0.7)
    assert merged[:, 4].tolist()[:3] == [-1, -1, -1]
    torch.testing.assert_close(merged[:3], whole[:3], rtol=0, atol=0, equal_nan=True)
    assert (sample_tokens(rows, merged, 0, 0)[:3] == -1).all()


def drafts(vocab: int, generator: torch.Generator) -> tuple[DraftTree, torch.Tensor]:
    tree = DraftTree(torch.tensor([-1, 0, 0, 1, 1, 2] * 40).int(), (torch.arange(41) * 6).int())
    return tree, torch.randint(vocab, (240,), generator=generator, dtype=torch.int32)


def test_drafts_are_verified_by_merged_descriptors():
    """What was accepted is the same bit for bit, log-probabilities up to the sum's rounding."""
    generator = torch.Generator().manual_seed(5)
    offsets = [0, 1, 2, 5]
    logits = 2 * torch.randn(240, 5, generator=generator)
    tree, tokens = drafts(5, generator)
    seeds, positions = torch.arange(40), torch.full((40,), 9)
    one_hot = DraftDistribution.one_hot()
    shards = [row_descriptor(part, 0.8) for part in split(logits, offsets)]
    found = []
    for desc in (row_descriptor(logits, 0.8), merge_descriptors(shards, offsets)):
        found.append(
            [
                verify_sampled(logits, desc, tokens, tree, seeds, positions),
                verify_target_only(logits, desc, tokens, tree, seeds, positions),
                verify_chain(logits, desc, tokens, tree.cu_nodes, one_hot, seeds, positions),
            ]
        )
    assert int(found[0][0].num_accepted.sum()) > 10
    for whole, merged in zip(*found, strict=True):
        for name in ("num_accepted", "tokens", "path", "status"):
            assert_bitwise_equal(getattr(whole, name), getattr(merged, name))
        torch.testing.assert_close(whole.logprobs, merged.logprobs, rtol=0, atol=3e-6)


@pytest.mark.parametrize("filters", [{}, {"top_p": 0.8}, {"min_p": 0.1}])
def test_candidates_of_top_k_are_enough(filters):
    """The k likeliest tokens of each shard, in rows that are -inf elsewhere: everything but
    log_z_all is what the whole rows give, bit for bit."""
    generator = torch.Generator().manual_seed(6)
    offsets, k, vocab = [0, 100, 180, 333], 20, 333
    logits = (8 * torch.randn(240, vocab, generator=generator)).round() / 4  # with many ties
    gathered = torch.full_like(logits, -torch.inf)
    for start, part in zip(offsets, split(logits, offsets), strict=False):
        ids, _, _ = sample_children(part, row_descriptor(part, 1.0), k)
        gathered.scatter_(1, ids.long() + start, part.gather(1, ids.long()))
    assert (gathered > -torch.inf).sum(1).eq(3 * k).all()
    tree, tokens = drafts(vocab, generator)
    tokens[1::2] = logits[1::2].argmax(1).int()
    seeds, positions = torch.arange(40), torch.full((40,), 9)
    kept = [row_descriptor(rows, 0.8, top_k=k, **filters) for rows in (logits, gathered)]
    columns = [i for i, name in enumerate(DESCRIPTOR_COLUMNS) if name != "log_z_all"]
    assert_bitwise_equal(kept[0][:, columns], kept[1][:, columns])
    for rule in (verify_sampled, verify_target_only):
        whole, merged = (
            rule(rows, desc, tokens, tree, seeds, positions)
            for rows, desc in zip((logits, gathered), kept, strict=True)
        )
        for name in ("num_accepted", "tokens", "path", "logprobs", "status"):
            assert_bitwise_equal(getattr(whole, name), getattr(merged, name))
    whole, merged = (verify_greedy(rows, tokens, tree) for rows in (logits, gathered))
    assert_bitwise_equal(whole.tokens, merged.tokens)


def test_wrong_input_is_refused():
    row = torch.randn(2, 8)
    descs = [row_descriptor(part, 1.0) for part in split(row, [0, 4, 8])]
    for arguments, message in (
        (([], [0]), "descs must hold one tensor for each shard"),
        ((descs, [0, 4]), r"offsets must be 3 rising token ids .* got \[0, 4\]"),
        ((descs, [0, 5, 5]), "offsets must be 3 rising"),
        ((descs, [1, 4, 8]), "offsets must be 3 rising"),
        (([descs[0], descs[1][:1]], [0, 4, 8]), r"descs\[1\] must be \[2, 9\], got \[1, 9\]"),
        ((descs, [0, 4, 8], torch.zeros(2, 3).bool()), r"empty must be \[2, 2\]"),
        (([descs[0], row_descriptor(row[:, 4:], 0.5)], [0, 4, 8]), "the same temperature"),
        (([descs[0], row_descriptor(row[:, 4:], 1.0, top_k=2)], [0, 4, 8]), "without top_k"),
    ):
        with pytest.raises(ValueError, match="merge_descriptors: .*" + message):
            merge_descriptors(*arguments)
    with pytest.raises(TypeError, match=r"descs\[0\] must be"):
        merge_descriptors([descs[0].double(), descs[1]], [0, 4, 8])
