"""Verification of draft tokens against the target's logits.

All rules but `verify_typical` are lossless: the tokens they give follow the distribution that the
target's rows describe, whatever was drafted. They work from logits and row descriptors; no tensor
of probabilities is made.
"""

from __future__ import annotations

import torch

from ._check import require_dtype
from .draft_distribution import DraftDistribution
from .draft_tree import DraftTree
from .verify import DESCRIPTOR_COLUMNS, RowFilters, _check_logits, _per_row, _PerRow
from .verify_result import VerifyResult

__all__ = [
    "verify_chain",
    "verify_greedy",
    "verify_sampled",
    "verify_target_only",
    "verify_tree",
    "verify_typical",
]

_GREEDY = RowFilters(0.0)
_ONE_HOT = DraftDistribution.one_hot()


def verify_greedy(
    logits: torch.Tensor,
    tokens: torch.Tensor,
    tree: DraftTree,
    *,
    bitmask: torch.Tensor | None = None,
    out: VerifyResult | None = None,
    workspace: torch.Tensor | None = None,
) -> VerifyResult:
    """Accepts drafts for as long as they are the likeliest token, the lower index on a tie.

    Args:
        logits: ``[N, V]``, a row for every node of the tree.
        tokens: int32 ``[N]``, the nodes' tokens; -1, or any other outside the vocabulary, is never
            accepted.
        tree: the nodes. bitmask: as for `row_descriptor`.
        out: where the results go, else new tensors. workspace: float32 ``[N, 9]``.

    Raises:
        TypeError: for a wrong dtype. ValueError: for a wrong shape, device or value; tensors on a
            GPU are not looked at.

    >>> logits = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    >>> tree = DraftTree.chains([1])
    >>> verify_greedy(logits, torch.tensor([0, 1]).int(), tree).tokens.tolist()
    [[1, 0]]
    """
    return _verify(
        "verify_greedy", "greedy", logits, _GREEDY, tokens, tree, 0, 0,
        bitmask=bitmask, out=out, workspace=workspace,
    )  # fmt: skip


def verify_sampled(
    logits: torch.Tensor,
    desc: torch.Tensor | RowFilters,
    tokens: torch.Tensor,
    tree: DraftTree,
    seeds: _PerRow,
    positions: _PerRow,
    *,
    bitmask: torch.Tensor | None = None,
    out: VerifyResult | None = None,
    workspace: torch.Tensor | None = None,
) -> VerifyResult:
    """Draws the target's token at every node it comes to, and goes on where that was drafted.

    The tokens are those that `sample_tokens` draws with the same seeds and positions: the drafts
    decide how many come out of one pass, and nothing else. That is why this is the rule to prefer.

    Args:
        logits, tokens, tree, bitmask, out: as for `verify_greedy`.
        desc: float32 ``[N, 9]`` from `row_descriptor`, or `RowFilters`: then only the rows on the
            path are read.
        seeds: one number or int64 ``[B]``, each request's.
        positions: one number or int64 ``[B]``: the absolute position of the token that follows the
            request's node 0, in ``[0, 2**56)``.
        workspace: with `RowFilters`: float32 ``[N, 9]``, in which rows are described.

    Raises: as `verify_greedy`.

    >>> from ttc_kernels import row_descriptor, sample_tokens
    >>> logits = torch.zeros(3, 4)
    >>> desc = row_descriptor(logits, 1.0)
    >>> drawn = sample_tokens(logits, desc, seeds=3, positions=torch.arange(3))
    >>> tokens = torch.cat([torch.tensor([0]), drawn[:2]]).int()
    >>> result = verify_sampled(logits, desc, tokens, DraftTree.chains([2]), 3, 0)
    >>> result.tokens[0].tolist() == drawn.tolist()
    True
    """
    return _verify(
        "verify_sampled", "sampled", logits, desc, tokens, tree, seeds, positions,
        bitmask=bitmask, out=out, workspace=workspace,
    )  # fmt: skip


def verify_target_only(
    logits: torch.Tensor,
    desc: torch.Tensor | RowFilters,
    tokens: torch.Tensor,
    tree: DraftTree,
    seeds: _PerRow,
    positions: _PerRow,
    *,
    coins: torch.Tensor | None = None,
    bitmask: torch.Tensor | None = None,
    out: VerifyResult | None = None,
    workspace: torch.Tensor | None = None,
) -> VerifyResult:
    """Accepts a child with the target's own probability of it, by one coin at each node.

    SGLang's rule for trees (``tree_speculative_sampling_target_only``) without its thresholds. The
    siblings may have been chosen in any way that does not look at the coins.

    Args:
        logits, desc, tokens, tree, seeds, positions, bitmask, out, workspace: as for
            `verify_sampled`.
        coins: float32 ``[N]`` in ``[0, 1)``, for each node the coin that chooses among its
            children, in place of random numbers.

    Raises: as `verify_greedy`.

    >>> logits = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    >>> tokens, coins = torch.tensor([0, 1]).int(), torch.tensor([0.4, 0.0])
    >>> tree = DraftTree.chains([1])
    >>> verify_target_only(logits, RowFilters(1.0), tokens, tree, 0, 0, coins=coins).path.tolist()
    [[0, 1]]
    """
    return _verify(
        "verify_target_only", "target_only", logits, desc, tokens, tree, seeds, positions,
        coins=coins, bitmask=bitmask, out=out, workspace=workspace,
    )  # fmt: skip


def verify_chain(
    logits: torch.Tensor,
    desc: torch.Tensor | RowFilters,
    tokens: torch.Tensor,
    cu_nodes: torch.Tensor | DraftTree,
    draft: DraftDistribution,
    seeds: _PerRow,
    positions: _PerRow,
    *,
    rule: str = "token",
    coins: torch.Tensor | None = None,
    bitmask: torch.Tensor | None = None,
    out: VerifyResult | None = None,
    workspace: torch.Tensor | None = None,
) -> VerifyResult:
    """Accepts a prefix of each chain of drafts so that the tokens follow the target.

    ``token`` tests one draft after the other (Leviathan et al., 2211.17192); ``block`` tests whole
    prefixes and accepts at least as many (Sun et al., 2403.10444), which only pays for drafts that
    were drawn.

    Args:
        logits, desc, tokens, seeds, positions, bitmask, out, workspace: as for `verify_sampled`.
        cu_nodes: int32 ``[B + 1]``, the nodes of each request, node 0 its last committed token; or
            the tree of these chains.
        draft: what the drafts were drawn from. Drafts from a padded one (-1) on are left out.
        rule: ``token`` or ``block``.
        coins: float32 ``[N]`` in ``[0, 1)``, the coin that each draft is tested with.

    Raises: as `verify_greedy`.

    >>> logits = torch.zeros(2, 2)
    >>> tokens, coins = torch.tensor([0, 1]).int(), torch.tensor([0.0, 0.6])
    >>> result = verify_chain(logits, RowFilters(1.0), tokens, torch.tensor([0, 2]).int(),
    ...                       DraftDistribution.one_hot(), 0, 0, coins=coins)
    >>> result.tokens.tolist()
    [[0, -1]]
    """
    op = "verify_chain"
    if rule not in ("token", "block"):
        raise ValueError(f"{op}: rule must be 'token' or 'block', got {rule!r}")
    if isinstance(cu_nodes, DraftTree):
        tree = cu_nodes
        if tree._only_chains is False:
            raise ValueError(f"{op}: the drafts of every request must be a chain, got a tree")
    else:
        require_dtype(op, "cu_nodes", cu_nodes, (torch.int32,))
        if cu_nodes.dim() != 1 or not len(cu_nodes):
            raise ValueError(f"{op}: cu_nodes must be [B + 1], got {list(cu_nodes.shape)}")
        index = torch.arange(logits.shape[0], device=cu_nodes.device)
        place = torch.searchsorted(cu_nodes[1:].contiguous(), index, right=True)
        begin = cu_nodes[place.clamp(max=len(cu_nodes) - 1)]
        tree = DraftTree((index - begin - 1).int(), cu_nodes)
    return _verify(
        op, "rejection" if rule == "token" else "block", logits, desc, tokens, tree, seeds,
        positions, draft=draft, coins=coins, bitmask=bitmask, out=out, workspace=workspace,
        chain=True,
    )  # fmt: skip


def verify_tree(
    logits: torch.Tensor,
    desc: torch.Tensor | RowFilters,
    tokens: torch.Tensor,
    tree: DraftTree,
    draft: DraftDistribution,
    seeds: _PerRow,
    positions: _PerRow,
    *,
    rule: str = "rejection",
    coins: torch.Tensor | None = None,
    bitmask: torch.Tensor | None = None,
    out: VerifyResult | None = None,
    workspace: torch.Tensor | None = None,
) -> VerifyResult:
    """Accepts a path of a tree of drafts so that the tokens follow the target.

    ``rejection`` goes down from the root and tests siblings in turn against what the earlier ones
    left (recursive rejection: SpecInfer 2305.09781, Sequoia 2402.12374); ``traversal`` goes up from
    the leaves and equals block verification on a chain (Weng et al., 2505.12398). A node's residual
    is three numbers, ``max(p - c q, 0) / S`` and the share of ``q`` that is left.

    Args:
        logits, desc, tokens, tree, seeds, positions, bitmask, out, workspace: as for
            `verify_sampled`.
        draft: what the drafts were drawn from, siblings in the order in which they were drawn. The
            shape of the tree must not depend on tokens that were drawn, the root's aside.
        rule: ``rejection`` or ``traversal``.
        coins: float32 ``[N]`` in ``[0, 1)``, the coin that each draft is tested with.

    Raises: as `verify_greedy`.

    >>> logits, tree = torch.zeros(3, 2), DraftTree([-1, 0, 0], [0, 3])
    >>> tokens = torch.tensor([0, 0, 1]).int()
    >>> draft = DraftDistribution.one_hot()
    >>> verify_tree(logits, RowFilters(1.0), tokens, tree, draft, 0, 0).num_accepted.tolist()
    [1]
    """
    op = "verify_tree"
    if rule not in ("rejection", "traversal"):
        raise ValueError(f"{op}: rule must be 'rejection' or 'traversal', got {rule!r}")
    return _verify(
        op, rule, logits, desc, tokens, tree, seeds, positions,
        draft=draft, coins=coins, bitmask=bitmask, out=out, workspace=workspace,
    )  # fmt: skip


def verify_typical(
    logits: torch.Tensor,
    desc: torch.Tensor | RowFilters,
    tokens: torch.Tensor,
    tree: DraftTree,
    seeds: _PerRow,
    positions: _PerRow,
    *,
    epsilon: float = 0.09,
    delta: float = 0.3,
    lossy: bool = False,
    bitmask: torch.Tensor | None = None,
    out: VerifyResult | None = None,
    workspace: torch.Tensor | None = None,
) -> VerifyResult:
    """Accepts drafts that are not unlikely; the tokens do NOT follow the target's distribution.

    A draft passes if its probability is above ``min(epsilon, delta * exp(-entropy))``, typical
    acceptance of Medusa (Cai et al., 2401.10774); the longest path is taken, the likelier on a tie.

    Args:
        logits, desc, tokens, tree, seeds, positions, bitmask, out, workspace: as for
            `verify_sampled`.
        epsilon, delta: the two thresholds, >= 0.
        lossy: must be True, to show that the loss is meant.

    Raises: as `verify_greedy`; ValueError without ``lossy=True``.

    >>> logits, tokens = torch.tensor([[3.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 0]).int()
    >>> tree = DraftTree.chains([1])
    >>> result = verify_typical(logits, RowFilters(1.0), tokens, tree, 0, 0, lossy=True)
    >>> result.num_accepted.item()
    1
    """
    op = "verify_typical"
    if lossy is not True:
        raise ValueError(
            f"{op}: lossy must be True, its tokens do not follow the target; got {lossy}"
        )
    if not (epsilon >= 0 and delta >= 0):
        raise ValueError(f"{op}: epsilon and delta must be >= 0, got {epsilon} and {delta}")
    return _verify(
        op, "typical", logits, desc, tokens, tree, seeds, positions,
        bitmask=bitmask, out=out, workspace=workspace, epsilon=epsilon, delta=delta,
    )  # fmt: skip


def _verify(
    op: str,
    rule: str,
    logits: torch.Tensor,
    desc: torch.Tensor | RowFilters,
    tokens: torch.Tensor,
    tree: DraftTree,
    seeds: _PerRow,
    positions: _PerRow,
    *,
    draft: DraftDistribution | None = None,
    coins: torch.Tensor | None = None,
    bitmask: torch.Tensor | None = None,
    out: VerifyResult | None = None,
    workspace: torch.Tensor | None = None,
    chain: bool = False,
    epsilon: float = 0.0,
    delta: float = 0.0,
) -> VerifyResult:
    _check_logits(op, logits)
    require_dtype(op, "tokens", tokens, (torch.int32,))
    if not isinstance(tree, DraftTree):
        raise TypeError(f"{op}: tree must be a DraftTree, got {type(tree).__name__}")
    if tree.num_nodes != logits.shape[0]:
        raise ValueError(
            f"{op}: logits must have a row for each of the {tree.num_nodes} nodes, got "
            f"{list(logits.shape)}"
        )
    columns: tuple = (None,) * 4
    if rule in ("rejection", "block", "traversal") and not isinstance(draft, DraftDistribution):
        raise TypeError(f"{op}: draft must be a DraftDistribution, got {type(draft).__name__}")
    if isinstance(desc, RowFilters):
        columns = desc.columns(op, logits)
        shape = (tree.num_nodes, len(DESCRIPTOR_COLUMNS))
        if workspace is None:
            workspace = torch.empty(shape, dtype=torch.float32, device=logits.device)
        require_dtype(op, "workspace", workspace, (torch.float32,))
        if workspace.shape != shape:
            raise ValueError(f"{op}: workspace must be {list(shape)}, got {list(workspace.shape)}")
        desc = workspace
    require_dtype(op, "desc", desc, (torch.float32,))
    out = VerifyResult.empty(tree) if out is None else out
    draft = _ONE_HOT if draft is None else draft
    torch.ops.ttc_kernels.verify(
        op, rule, logits, desc, *columns, bitmask, tokens,
        None if chain else tree.parent, tree.cu_nodes,
        _per_row(op, "seeds", seeds, torch.int64, logits, tree.num_requests),
        _per_row(op, "positions", positions, torch.int64, logits, tree.num_requests),
        coins, draft.logits, draft.desc, draft.ids, draft.logprobs, draft.rows,
        draft._of_nodes(op, tree.num_nodes, logits.device), epsilon, delta,
        out.num_accepted, out.tokens, out.path, out.logprobs, out.status,
    )  # fmt: skip
    return out


@torch.library.register_fake("ttc_kernels::verify")
def _verify_fake(*_) -> None:
    return None
