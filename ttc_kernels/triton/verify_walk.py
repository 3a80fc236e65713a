"""The rules of `verify` on a GPU: a program walks a request's tree, as csrc/verify/walk.h does.

    verify_top_down.py    target_only, rejection      residual.py    what rejected drafts leave
    verify_block.py       block                       draft_rows.py  what drafts were drawn from
    verify_traversal.py   traversal                   draft_nodes.py the tree, a lane to a node
    verify_typical.py     typical                     row_dist.py    the target's rows

Every rule says where the walk ends; the last token is then drawn from what is left there. All that
passes over the vocabulary sums integers or looks for a largest number, so results do not depend on
the order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from .draft_nodes import Trees, at, load_nodes
from .draft_rows import DraftRows
from .fp32_math import NO_FUSION
from .race import BLOCK
from .random_numbers import RESIDUAL, TARGET, Stream
from .residual import Request, race_left, usable
from .row_descriptor import row_descriptor
from .row_dist import Rows, log_probability, logits_of, row_dist
from .verify_block import block
from .verify_top_down import top_down
from .verify_traversal import traversal
from .verify_typical import typical


class Outputs(NamedTuple):
    """The tensors of `VerifyResult`."""

    num_accepted: Any
    tokens: Any
    path: Any
    logprobs: Any
    status: Any


@triton.jit
def _last_token(q, node, c, changed, BLOCK: tl.constexpr):
    """The token that ends a pass, -1 where the row has no distribution."""
    token = tl.full([], -1, tl.int32)
    if usable(q, node):
        domain = tl.where(changed, RESIDUAL, TARGET)
        stream = Stream(q.seed, q.position + at(q.nodes.depth, node), domain, 0)
        # Where rounding has taken all there was, in a place that has hardly any probability, the
        # whole row races.
        attempt = tl.full([], 0, tl.int32)
        while (attempt < 2) & (token < 0):
            token = race_left(q, node, stream, c, changed, BLOCK)
            c, changed = c * 0.0, changed & False
            attempt += 1
    return token


@triton.jit
def _write(q, place, node, token, out):
    """The token that the row of a node gave."""
    tl.store(out.tokens + place, token)
    tl.store(out.path + place, node)
    if out.logprobs is not None:
        logprob = tl.full([], 0.0, tl.float32)
        if token >= 0:
            r = q.nodes.begin + node
            logprob = log_probability(row_dist(q.rows, r), logits_of(q.rows, r, token), token)
        tl.store(out.logprobs + place, logprob)


@triton.jit
def _pad(place, first, width, out):
    """Nothing, in the columns from `first` on."""
    for start in tl.range(0, width, 256):
        column = start + tl.arange(0, 256)
        there = (column >= first) & (column < width)
        tl.store(out.tokens + place + column, -1, mask=there)
        tl.store(out.path + place + column, -1, mask=there)
        if out.logprobs is not None:
            tl.store(out.logprobs + place + column, 0.0, mask=there)


@triton.jit
def _walk(
    rows, draft, trees, seeds, positions, coins, epsilon, delta, out, width,
    RULE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    request = tl.program_id(0).to(tl.int64)
    nodes, is_tree = load_nodes(trees, request, rows.vocab_size, width)
    place = request * width
    if is_tree & (nodes.count > 0):
        seed, position = tl.load(seeds + request), tl.load(positions + request)
        q = Request(rows, draft, nodes, coins, seed, position)
        if RULE == "block":
            node, c, changed = block(q, BLOCK)
        elif RULE == "traversal":
            node, c, changed = traversal(q, BLOCK)
        elif RULE == "typical":
            node = typical(q, epsilon, delta, BLOCK)
            c, changed = 0.0, node < 0
        else:
            node, c, changed = top_down(q, RULE, BLOCK)
        token = _last_token(q, node, c, changed, BLOCK)
        accepted = at(nodes.depth, node)
        tl.store(out.num_accepted + request, accepted)
        tl.store(out.status + request, (token < 0).to(tl.int32))
        _pad(place, accepted + 1, width, out)
        column = accepted
        while column >= 0:
            _write(q, place + column, node, token, out)
            token = at(nodes.token, node)
            node = at(nodes.parent, node)
            column -= 1
    else:
        tl.store(out.num_accepted + request, tl.where(is_tree, -1, 0))
        tl.store(out.status + request, tl.where(is_tree, 0, 2))
        _pad(place, 0, width, out)


def verify(
    rule: str,
    logits: torch.Tensor,
    desc: torch.Tensor,
    filters: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor] | None,
    bitmask: torch.Tensor | None,
    tokens: torch.Tensor,
    parent: torch.Tensor | None,
    cu_nodes: torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
    coins: torch.Tensor | None,
    draft: DraftRows,
    proposals: torch.Tensor | None,
    epsilon: float,
    delta: float,
    out: tuple[torch.Tensor | None, ...],
) -> None:
    """The op `verify` for all rules but greedy and sampled; the arguments are not checked."""
    if filters is not None:
        desc.copy_(row_descriptor(logits, *filters, bitmask))
    outputs = Outputs(*out)
    requests, width = outputs.tokens.shape
    if requests:
        _walk[(requests,)](
            Rows.of(logits, desc, bitmask), draft,
            Trees(tokens, parent, cu_nodes, len(tokens), proposals), seeds, positions, coins,
            epsilon, delta, outputs, width,
            RULE=rule, BLOCK=BLOCK, num_warps=8, maxnreg=128, **NO_FUSION,
        )  # fmt: skip
