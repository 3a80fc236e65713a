"""What our verification rules are timed beside: public kernels, and the formulation in torch."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from ttc_kernels import (
    DraftDistribution,
    DraftTree,
    RowFilters,
    VerifyResult,
    verify_chain,
    verify_greedy,
)

from .devices import Clock, best_seconds
from .draft_batches import choose_drafts
from .peers.base import Skip
from .peers.drafts import Drafts, torch_top_p
from .peers.verify import PEERS, TREE_PEERS
from .timing import in_turn

if TYPE_CHECKING:
    from .verify import Case

FILTERS = {"T = 1": (1.0, 1.0), "T = 0.7, top-p 0.95": (0.7, 0.95)}


def add_peers(
    runs: dict[str, Callable], names: list[str], logits, tokens, tree, case: Case, told: set[str]
) -> None:
    """Adds public kernels, and beside those for chains our rules on the same chains.

    Args:
        runs: what is timed, by name. names: of the peers to add.
        told: why peers are missing, which is said once.
    """
    nodes = tree.num_nodes // tree.num_requests
    chains = choose_drafts(logits, list(range(-1, nodes - 1)), torch.Generator().manual_seed(nodes))
    for name, (temperature, top_p) in {"greedy": (0.0, 1.0), **FILTERS}.items():
        of_trees = f"verify_target_only, {name}" if temperature else "verify_greedy"
        of_chains = f"verify_chain, {name}"
        on_trees = Drafts(logits, tokens, tree, temperature, top_p)
        on_chains = Drafts(logits, *chains, temperature, top_p)
        for peer in names:
            is_tree = peer in TREE_PEERS
            ours, drafts = (of_trees, on_trees) if is_tree else (of_chains, on_chains)
            try:
                verifier = PEERS[peer](drafts)
                verifier.run()
            except Exception as error:
                kind = "" if isinstance(error, Skip) else f"fails with {type(error).__name__}: "
                reason = f"{peer} left out: {kind}{error}".splitlines()[0]
                if reason not in told:
                    print(reason, flush=True)
                told.add(reason)
                continue
            full = f"{peer}, {name}"
            runs[full], case.beside[full] = verifier.run, ours
            case.accepted[full] = verifier.accepted().float().mean().item()
            if ours not in runs:
                runs[ours], out = _on_chains(drafts)
                case.learn(ours, runs[ours], out)


def _on_chains(drafts: Drafts) -> tuple[Callable, VerifyResult]:
    out = VerifyResult.empty(drafts.tree, logprobs=False)  # the peers have none either
    workspace = drafts.empty(drafts.tree.num_nodes, 9)
    options = {"out": out, "workspace": workspace}
    where = (drafts.tokens, drafts.tree)
    if drafts.temperature == 0:
        return lambda: verify_greedy(drafts.logits, *where, **options), out
    filters = RowFilters(drafts.temperature, top_p=drafts.top_p)
    chosen = DraftDistribution.one_hot()
    return lambda: verify_chain(drafts.logits, filters, *where, chosen, 0, 0, **options), out


def torch_verify(logits, tokens, parent, temperature: float, top_p: float, coins) -> list[int]:
    """The common formulation: softmax, sort and renormalise all rows, then walk on the host."""
    p = torch.softmax(logits.float() / temperature, -1)
    if top_p < 1:
        p = torch_top_p(p, top_p)
    nodes = len(parent)
    emitted = []
    for root in range(0, len(tokens), nodes):
        node = 0
        while True:
            row = p[root + node].clone()
            for child in (v for v in range(nodes) if parent[v] == node):
                token = tokens[root + child]
                if coins[root + child] * row.sum() < row[token]:
                    node = child
                    break
                row[token] = 0
            else:
                emitted.append(int(torch.multinomial(row, 1)))
                break
    return emitted


def torch_runs(logits, tokens, tree: DraftTree) -> dict[str, Callable]:
    """The common formulation in torch, by name."""
    parent = tree.parent[: tree.cu_nodes[1]].tolist()
    coins = torch.rand(len(tokens), device=logits.device)
    return {
        f"torch, {name}": lambda t=t, p=p: torch_verify(logits, tokens, parent, t, p, coins)
        for name, (t, p) in FILTERS.items()
    }


def time_torch(runs: dict[str, Callable], case: Case, args: Namespace, clock: Clock) -> None:
    """Times what may take long: as many rounds as there is time for, one at least."""
    on_gpu = args.device == "cuda"
    for name, run in runs.items():
        seconds = best_seconds(run, torch.device(args.device), 1)  # this one warms up
        fitting = int(args.torch_seconds / len(runs) / seconds)
        case.rounds[name] = max(1, min(args.rounds, fitting))
        mode = "eager" if on_gpu else clock.modes[0]
        timed = in_turn({name: run}, case.rounds[name], warmup=0, clock=clock, mode=mode)
        (case.eager if on_gpu else case.timings).update(timed)
