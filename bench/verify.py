"""Verification of drafts from logits, beside one read of the rows and the torch formulation.

python -m bench.verify --device cpu --json bench/results/verify_cpu.json
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from ttc_kernels import (
    DraftDistribution,
    DraftTree,
    RowFilters,
    VerifyResult,
    row_descriptor,
    sample_tokens,
    verify_greedy,
    verify_sampled,
    verify_target_only,
    verify_tree,
)

from . import machine
from .devices import make_clock
from .timing import Timing, in_turn

_NODES = 16  # of a request's draft tree; fewer rows than that are one chain
_PEERS = ("sgl_kernel", "flashinfer", "vllm")
READ = "read of the needed rows"
_FILTERS = {"T = 1": (1.0, 1.0), "T = 0.7, top-p 0.95": (0.7, 0.95)}


@dataclass
class Case:
    """One batch of draft trees.

    Attributes:
        vocab_size, rows: of the logits; a row is a draft node.
        read: rows that the read passes over, those that `verify_sampled` needs at T = 1.
        needed: rows that each of our rules needs, by contender: those on its accepted paths, with
            the last one. What it is measured by is as much of the read.
        timings: by contender.
    """

    vocab_size: int
    rows: int
    dtype: str
    read: int = 0
    needed: dict[str, int] = field(default_factory=dict)
    timings: dict[str, Timing] = field(default_factory=dict)

    def ratio(self, name: str) -> float:
        """A contender's time in reads of the rows that it needs."""
        share = self.needed.get(name, self.read) / self.read
        return self.timings[name].median / (share * self.timings[READ].median)


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
    requests = rows // nodes
    shape = [-1, 0, 0, 0, 1, 1, 2, 3, 4, 4, 5, 6, 8, 8, 12, 14] if nodes == _NODES else None
    parent = shape or list(range(-1, nodes - 1))
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
    return logits, torch.where(is_first, above, tokens), tree


def torch_verify(logits, tokens, parent, temperature: float, top_p: float, coins) -> list[int]:
    """The common formulation: softmax, sort and renormalise all rows, then walk on the host."""
    p = torch.softmax(logits.float() / temperature, -1)
    if top_p < 1:
        ordered, index = p.sort(-1, descending=True)
        keep = ordered.cumsum(-1) - ordered < top_p
        p = torch.zeros_like(p).scatter_(-1, index, ordered * keep)
        p /= p.sum(-1, keepdim=True)
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


def contenders(logits, tokens, tree: DraftTree, case: Case) -> dict[str, Callable]:
    """What is timed, by name; the case learns how many rows each needs."""
    result = verify_sampled(logits, RowFilters(1.0), tokens, tree, 0, 0)
    needed = (result.path + tree.cu_nodes[:-1, None])[result.path >= 0].long()
    case.read = len(needed)
    rows = logits[needed].contiguous()
    bits = rows.flatten().view(torch.float32)  # whatever the numbers: adding them reads them once
    desc = row_descriptor(logits, 1.0)
    out, workspace = VerifyResult.empty(tree), torch.empty_like(desc)
    options = {"out": out, "workspace": workspace}
    runs: dict[str, Callable] = {
        READ: bits.sum,
        "verify_greedy": lambda: verify_greedy(logits, tokens, tree, **options),
    }
    for name, (temperature, top_p) in _FILTERS.items():
        filters = RowFilters(temperature, top_p=top_p)

        def run(op, filters=filters, **more):
            return op(logits, filters, tokens, tree, **more, seeds=0, positions=0, **options)

        runs[f"verify_sampled, {name}"] = lambda run=run: run(verify_sampled)
        runs[f"verify_target_only, {name}"] = lambda run=run: run(verify_target_only)
    draft = DraftDistribution.dense(logits, desc)
    runs["verify_tree, drawn drafts, T = 1"] = lambda: verify_tree(
        logits, RowFilters(1.0), tokens, tree, draft, 0, 0, **options
    )
    for name, rule in runs.items():
        if name != READ:
            rule()
            case.needed[name] = int((out.path >= 0).sum())
    if logits.device.type == "cpu":
        parent = tree.parent[: tree.cu_nodes[1]].tolist()
        coins = torch.rand(len(tokens))
        for name, (temperature, top_p) in _FILTERS.items():
            runs[f"torch, {name}"] = lambda t=temperature, p=top_p: torch_verify(
                logits, tokens, parent, t, p, coins
            )
    return runs


def main(argv: list[str] | None = None) -> int:
    """Run the command; see --help."""
    args = parser().parse_args(argv)
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch sees no CUDA device")
    for peer in _PEERS:
        if importlib.util.find_spec(peer) is None:
            print(f"{peer}: not installed, not compared")
        else:
            print(f"{peer}: installed, but this benchmark has no adapter for it yet")
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[args.dtype]
    clock, cases = make_clock(device), []
    for vocab_size in args.vocab:
        for rows in args.rows:
            logits, tokens, tree = batch(vocab_size, rows, dtype, device)
            case = Case(vocab_size, rows, args.dtype)
            runs = contenders(logits, tokens, tree, case)
            if rows > args.torch_rows:
                runs = {name: run for name, run in runs.items() if not name.startswith("torch")}
            case.timings = in_turn(runs, args.rounds, clock=clock, mode=clock.modes[0])
            cases.append(case)
            _print(case)
            if args.json:
                document = {
                    "machine": machine.describe(device),
                    "threads": torch.get_num_threads(),
                    "results": [asdict(case) for case in cases],
                }
                args.json.parent.mkdir(parents=True, exist_ok=True)
                args.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def _print(case: Case) -> None:
    print(f"\n{case.rows} rows of {case.vocab_size} {case.dtype}")
    for name, timing in case.timings.items():
        needed = case.needed.get(name, case.read)
        print(
            f"  {name:38} {1e3 * timing.median:10.3f} ms  {needed:4} rows needed: "
            f"{case.ratio(name):8.2f} x their read"
        )


def parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    result = argparse.ArgumentParser(prog="python -m bench.verify", description=__doc__)
    result.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    result.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    result.add_argument("--vocab", type=int, nargs="+", default=[32_000, 151_936, 262_144])
    result.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64, 512])
    result.add_argument("--rounds", type=int, default=5)
    result.add_argument(
        "--torch-rows", type=int, default=64, help="most rows that the torch formulation is run on"
    )
    result.add_argument("--json", type=Path, help="write the results to this file")
    return result


if __name__ == "__main__":
    raise SystemExit(main())
