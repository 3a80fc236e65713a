"""Batches of draft trees and chains, with logits like a language model's."""

from __future__ import annotations

import torch

from ttc_kernels import DraftTree, row_descriptor, sample_tokens

_NODES = 16  # of a request's draft tree; fewer rows than that are one chain
_TREE = [-1, 0, 0, 0, 1, 1, 2, 3, 4, 4, 5, 6, 8, 8, 12, 14]


def batch(vocab_size: int, rows: int, dtype: torch.dtype, device: torch.device):
    """Logits, tokens and trees: rows shaped like a language model's, most drafts well chosen.

    Logits are normal with standard deviation 2.5; a handful of tokens stand out, as they do where a
    text goes on. Of two drafts, one is the token that the row at temperature 1 gives.
    """
    generator = torch.Generator().manual_seed(vocab_size + rows)
    logits = torch.empty(rows, vocab_size, dtype=dtype, device=device)
    for r in range(rows):
        row = 2.5 * torch.randn(vocab_size, generator=generator)
        likely = torch.randint(vocab_size, (8,), generator=generator)
        row[likely] += torch.tensor([16.0, 14, 13, 12, 11, 10, 9, 8])
        logits[r] = row.to(dtype)
    nodes = min(rows, _NODES)
    parent = _TREE if nodes == _NODES else list(range(-1, nodes - 1))
    return logits, *choose_drafts(logits, parent, generator)


def choose_drafts(logits, parent: list[int], generator: torch.Generator):
    """Tokens and trees of this shape: a node's first child is the token that its row gives."""
    (rows, vocab_size), device, nodes = logits.shape, logits.device, len(parent)
    requests = rows // nodes
    tree = DraftTree(parent * requests, [b * nodes for b in range(requests + 1)], device=device)
    depth = DraftTree(parent, [0, nodes]).links()[2].long().repeat(requests).to(device)
    desc = row_descriptor(logits, 1.0)
    drawn = sample_tokens(logits, desc, 0, depth)
    base = torch.arange(requests, device=device).repeat_interleave(nodes) * nodes
    above = drawn[(base + torch.tensor(parent * requests, device=device).clamp(min=0))]
    tokens = torch.randint(vocab_size, (rows,), generator=generator).to(device).int()
    first, _, _ = tree.links()
    is_first = torch.zeros(rows, dtype=torch.bool, device=device)
    is_first[(base + first)[first >= 0].long()] = True
    return torch.where(is_first, above, tokens), tree
