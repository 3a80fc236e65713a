"""Verification of drafts from logits, beside a read of the rows, torch and public kernels.

python -m bench.verify --device cpu --json bench/results/verify_cpu_bf16.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch

from ttc_kernels import (
    DraftDistribution,
    DraftTree,
    RowFilters,
    VerifyResult,
    row_descriptor,
    verify_greedy,
    verify_sampled,
    verify_target_only,
    verify_tree,
)

from . import machine
from .devices import make_clock
from .draft_batches import batch
from .peers.verify import PEERS
from .timing import Timing, in_turn
from .verify_beside import FILTERS, add_peers, time_torch, torch_runs

READ = "read of {} rows"
CALL = "call without rows"
LOGPROBS = ", with log-probabilities"


@dataclass
class Case:
    """One batch of draft trees.

    Attributes:
        vocab_size, rows: of the logits; a row is a draft node.
        needed: rows that each of our rules needs, by contender: those on its accepted paths, with
            the last one.
        of_read: their times over those of a read of as many.
        beside: the rule of ours that a peer is compared with.
        accepted: drafts accepted in a request, on average.
        timings: by contender; on a GPU of captured graphs.
        eager: the same on a GPU, launched from Python, and the torch formulation.
        rounds: how often the torch formulation was timed.
    """

    vocab_size: int
    rows: int
    dtype: str
    needed: dict[str, int] = field(default_factory=dict)
    of_read: dict[str, float] = field(default_factory=dict)
    beside: dict[str, str] = field(default_factory=dict)
    accepted: dict[str, float] = field(default_factory=dict)
    timings: dict[str, Timing] = field(default_factory=dict)
    eager: dict[str, Timing] = field(default_factory=dict)
    rounds: dict[str, int] = field(default_factory=dict)

    def learn(self, name: str, rule: Callable, out: VerifyResult) -> None:
        """Run one of our rules to see which rows it needs and what it accepts."""
        rule()
        self.needed[name] = int((out.path >= 0).sum())
        self.accepted[name] = out.num_accepted.float().mean().item()


def contenders(logits, tokens, tree: DraftTree, case: Case) -> dict[str, Callable]:
    """What is timed, by name; the case learns how many rows each needs."""
    desc = row_descriptor(logits, 1.0)
    workspace = torch.empty_like(desc)
    nothing = DraftTree([], [0], device=logits.device)
    no_logits, no_tokens, one = logits[:0], tokens[:0], RowFilters(1.0)
    keys = torch.zeros(tree.num_requests, dtype=torch.int64, device=logits.device)
    no_options = {
        "out": VerifyResult.empty(nothing, logprobs=False),
        "workspace": workspace[:0],
    }
    runs: dict[str, Callable] = {
        CALL: lambda: verify_sampled(
            no_logits, one, no_tokens, nothing, keys[:0], keys[:0], **no_options
        )
    }
    draft = DraftDistribution.dense(logits, desc)
    for suffix, with_logprobs in (("", False), (LOGPROBS, True)):
        out = VerifyResult.empty(tree, logprobs=with_logprobs)
        options = {"out": out, "workspace": workspace}
        rules = {"verify_greedy": partial(verify_greedy, logits, tokens, tree, **options)}
        for name, (temperature, top_p) in FILTERS.items():
            args = (logits, RowFilters(temperature, top_p=top_p), tokens, tree)
            drawn = {"seeds": keys, "positions": keys, **options}
            rules[f"verify_sampled, {name}"] = partial(verify_sampled, *args, **drawn)
            rules[f"verify_target_only, {name}"] = partial(verify_target_only, *args, **drawn)
            if top_p == 1:
                rules[f"verify_tree, drawn drafts, {name}"] = partial(
                    verify_tree, *args, draft, **drawn
                )
        for name, rule in rules.items():
            runs[name + suffix] = rule
            case.learn(name + suffix, rule, out)
    return runs


def reads(logits, case: Case) -> dict[str, Callable]:
    """Reads of as many rows as each of our rules needs, by name."""
    runs: dict[str, Callable] = {}
    for n in sorted(set(case.needed.values())):
        numbers = logits[:n].flatten()
        # Adding up whatever they are as float32 reads them once; but for the last of an odd number.
        runs[READ.format(n)] = numbers[: len(numbers) // 2 * 2].view(torch.float32).sum
    return runs


def main(argv: list[str] | None = None) -> int:
    """Run the command; see --help."""
    args = parser().parse_args(argv)
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch sees no CUDA device")
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[args.dtype]
    clock, cases, told = make_clock(device), [], set()
    for vocab_size in args.vocab:
        for rows in args.rows:
            logits, tokens, tree = batch(vocab_size, rows, dtype, device)
            case = Case(vocab_size, rows, args.dtype)
            runs = contenders(logits, tokens, tree, case)
            add_peers(runs, args.peers, logits, tokens, tree, case, told)
            runs |= reads(logits, case)
            timings = case.timings = in_turn(runs, args.rounds, clock=clock, mode=clock.modes[0])
            for name, n in case.needed.items():
                if name in timings:
                    case.of_read[name] = timings[name].over(timings[READ.format(n)])
            if device.type == "cuda":
                case.eager = in_turn(runs, args.rounds, clock=clock, mode="eager")
            if rows <= args.torch_rows:
                time_torch(torch_runs(logits, tokens, tree), case, args, clock)
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
    for mode, timings in (("", case.timings), (", eager", case.eager)):
        for name, timing in timings.items():
            line = f"  {name + mode:44} {1e3 * timing.median:10.3f} ms"
            if not mode and name in case.needed:
                line += (
                    f"  {case.needed[name]:4} rows needed: {case.of_read[name]:8.2f} x their read"
                )
            if name in case.accepted:
                line += f"  {case.accepted[name]:5.2f} accepted"
            if name in case.beside and case.beside[name] in timings:
                ratio = timing.median / timings[case.beside[name]].median
                line += f"  {ratio:.2f} x {case.beside[name]}"
            if name in case.rounds:
                line += f"  {case.rounds[name]} rounds"
            print(line)


def parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    result = argparse.ArgumentParser(prog="python -m bench.verify", description=__doc__)
    result.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    result.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    result.add_argument("--vocab", type=int, nargs="+", default=[32_000, 151_936, 262_144])
    result.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64, 512])
    result.add_argument("--rounds", type=int, default=5)
    result.add_argument(
        "--torch-rows", type=int, default=512, help="most rows that the torch formulation is run on"
    )
    result.add_argument(
        "--torch-seconds",
        type=float,
        default=20.0,
        help="what it may take in a case, with fewer rounds where need be, but one at least",
    )
    result.add_argument("--peers", nargs="*", default=[*PEERS], choices=[*PEERS], help="see README")
    result.add_argument("--json", type=Path, help="write the results to this file")
    return result


if __name__ == "__main__":
    raise SystemExit(main())
