"""`verify_greedy` and `verify_sampled` on a GPU: every row draws its token, then one walk.

The rows are described and raced by Triton kernels. The walk needs a few numbers a node; it is done
in torch for all requests at once, a level of the trees at a time, without waiting for the GPU.
"""

from __future__ import annotations

import torch

from .row_descriptor import row_descriptor
from .sample_tokens import sample_tokens

_LARGEST = 256


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
    out: tuple,
) -> None:
    """The op `verify` for the rules ``greedy`` and ``sampled``; the arguments are not checked.

    out: num_accepted, tokens, path, logprobs (None: not wanted), status.
    """
    num_accepted, out_tokens, out_path, out_logprobs, status = out
    n, requests, width = len(tokens), len(cu_nodes) - 1, out_tokens.shape[1]
    if not requests:
        return
    if filters is not None:
        desc.copy_(row_descriptor(logits, *filters, bitmask))
    begin, end = cu_nodes[:-1].long(), cu_nodes[1:].long()
    index = torch.arange(n, device=tokens.device)
    request = torch.searchsorted(end, index, right=True).clamp(max=requests - 1)
    local = index - begin[request]
    above = local - 1 if parent is None else parent.long()
    good = torch.where(local == 0, above == -1, (above >= 0) & (above < local))
    above = torch.where(good & (local > 0), begin[request] + above, -1)

    depth = torch.zeros_like(index)
    line = above
    for _ in range(width):
        depth += line >= 0
        line = torch.where(line >= 0, above[line.clamp(min=0)], -1)
    good &= (depth < width) & (local < _LARGEST)
    bad = torch.zeros(requests, dtype=torch.int32, device=tokens.device)
    bad.scatter_reduce_(0, request, (~good).int(), "amax")

    drawn = sample_tokens(logits, desc, seeds[request], positions[request] + depth, bitmask)
    chosen = logits.gather(1, drawn.long().clamp(min=0)[:, None])[:, 0].float()
    inverse = torch.where(desc[:, 0] == 0, 0.0, 1.0 / desc[:, 0])
    logprobs = (chosen - desc[:, 5]) * inverse - desc[:, 3]
    if rule == "greedy":
        logprobs = torch.zeros_like(logprobs)

    # The first child of each node that holds the token its row gave.
    agrees = (above >= 0) & (tokens == drawn[above.clamp(min=0)]) & (tokens >= 0)
    following = torch.full((n + 1,), n, dtype=torch.int64, device=tokens.device)
    place = torch.where(agrees, above, n)
    following.scatter_reduce_(0, place, torch.where(agrees, index, n), "amin")

    at, alive = begin, (end > begin) & (bad == 0)
    empty = end == begin
    num_accepted.copy_(torch.where(empty, -1, 0))
    status.copy_(torch.where(bad > 0, 2, 0))
    last = max(n - 1, 0)
    for step in range(width):
        here = at.clamp(max=last)
        token = drawn[here] if n else torch.full_like(at, -1).int()
        out_tokens[:, step] = torch.where(alive, token, -1)
        out_path[:, step] = torch.where(alive, here - begin, -1).int()
        there = alive & (token >= 0)
        if out_logprobs is not None:
            out_logprobs[:, step] = torch.where(there, logprobs[here], 0.0) if n else 0.0
        status.copy_(torch.where(alive & (token < 0), 1, status))
        num_accepted.copy_(torch.where(alive, step, num_accepted))
        at = following[here] if n else at
        alive = there & (at < n)
