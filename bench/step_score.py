"""Step scores: heads against plain torch over all tokens, and a search against re-scoring.

    python -m bench.step_score                      # both parts, as tables
    python -m bench.step_score --part heads --head value raw --json FILE
    python -m bench.step_score --part heads --device cuda

Heads: `score_steps` reads the rows at step ends; the plain head runs norm and head over every
token of those steps, as a model's forward does. Before each call the caches are filled with other
data. The floor is the larger of reading weights and rows once and of the products, in float32 on
the CPU and in the weights' dtype on a GPU; and the time of a call of `score_steps` without rows,
whose code is not in the caches either; and, where the work is longer than that, the time it takes
to wake the CPU's threads: each has a column of its own. Weights count at the rate of one large
read, rows at that of reading rows of their size as far apart, which no prefetcher foresees: both
are timed in turn with the head, for a machine's bandwidth wanders. The rate of products is measured
once.

Rows measured before stay in the JSON file unless they are measured again. Search: see
`bench.step_score_search`.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path

import torch

from ttc_kernels import StepHead, score_steps

from . import machine
from .devices import make_clock
from .roofline import Roofline
from .timing import Timing, in_turn

HIDDEN = (1536, 2048, 3584, 5120, 8192)
STEPS = (1, 16, 64, 256, 1024)
HEADS = ("two_logit", "value", "raw", "token_pair", "softmax")
SLICE = 4096  # outputs of the softmax head: a slice of a vocabulary
TOKENS_PER_STEP = 60
PLAIN_FLOPS = 3e10  # the plain head runs on fewer tokens than there are, if it would take more
ROUNDS_S = 1.0  # rounds of a case end after that long, but not before the third


def make_head(kind: str, hidden: int, dtype: torch.dtype) -> StepHead:
    """A random head in a model's dtype."""
    rows = lambda n: (torch.randn(n, hidden) / math.sqrt(hidden)).to(dtype)  # noqa: E731
    if kind == "two_logit":
        return StepHead.two_logit(rows(hidden), torch.zeros(hidden), rows(2) * 3, torch.zeros(2))
    if kind in ("value", "raw"):
        return getattr(StepHead, kind)(rows(1), 0.0)
    if kind == "softmax":
        return StepHead.softmax(rows(SLICE))
    return StepHead.token_pair(*rows(2))


def plain_head(head: StepHead, norm: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """What a model does with all its hidden states: final norm, head, and their probabilities."""
    dtype = head.weights[0].dtype
    weights = [weight.to(dtype) for weight in head.weights]

    def run(hidden: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.rms_norm(hidden, norm.shape, norm.to(dtype), 1e-6)
        if head.kind == "two_logit":
            inner = torch.nn.functional.linear(x, weights[0], weights[1]).relu()
            logits = torch.nn.functional.linear(inner, weights[2], weights[3])
            return logits.float().softmax(-1)[..., 1]
        logits = torch.nn.functional.linear(x, weights[0], *weights[1:2]).float()
        if head.kind == "value":
            return logits.sigmoid()[..., 0]
        if head.kind == "raw":
            return logits[..., 0]
        return logits.softmax(-1)[..., 1 if head.kind == "softmax" else 0]

    return run


@torch.inference_mode()
def measure_head(
    kind: str,
    hidden: int,
    steps: int,
    dtype: torch.dtype,
    flops_per_s: float,
    reads: torch.Tensor,
    wake_s: float,
    rounds: int,
    device: torch.device | str = "cpu",
) -> dict:
    """One row of the table.

    flops_per_s: of products. reads: float32, much larger than a cache, to be read for comparison.
    wake_s: to wake the threads, see `wake_seconds`.
    """
    torch.manual_seed(0)
    timed = functools.partial(_timed, device=device)
    head = make_head(kind, hidden, dtype).to(device)
    norm = torch.rand(hidden).to(device) + 0.5
    num_weights = sum(weight.numel() for weight in head.weights)
    tokens = steps * TOKENS_PER_STEP
    plain_tokens = max(
        steps, min(tokens, int(PLAIN_FLOPS / (2 * num_weights)), (1 << 26) // hidden)
    )
    states = torch.randn(plain_tokens, hidden, device=device).to(dtype)
    rows = torch.linspace(0, plain_tokens - 1, steps).int().to(device)
    plain, no_rows = plain_head(head, norm), rows[:0]
    apart = rows_apart(reads, hidden * dtype.itemsize, max(1, plain_tokens // steps))
    contenders = {
        "score_steps": lambda: score_steps(states, rows, head, norm=(norm, 1e-6)),
        "call": lambda: score_steps(states, no_rows, head, norm=(norm, 1e-6)),
        "read": reads.sum,
        "rows apart": apart.sum,
    }
    once = timed({"once": contenders["score_steps"]}, 1)["once"].median
    times = timed(contenders, max(3, min(rounds, int(ROUNDS_S / (once + 0.02)))))
    bytes_per_s = reads.nbytes / times["read"].median
    rows_per_s = apart.numel() * 4 / times["rows apart"].median
    plain_s = timed({"plain": lambda: plain(states)}, 3)["plain"].median * tokens / plain_tokens
    weight_bytes = sum(w.nbytes for w in (*head.weights, norm))
    row_bytes = steps * (hidden * states.itemsize + rows.itemsize + 4)
    bytes_s = weight_bytes / bytes_per_s + row_bytes / rows_per_s
    flops_s = 2 * steps * num_weights / flops_per_s
    work_s = max(bytes_s, flops_s)
    wakes_s = wake_s if work_s > wake_s else 0.0  # below that one thread is as fast
    floor_s = work_s + times["call"].median + wakes_s
    ours = times["score_steps"]
    return {
        "head": kind,
        "hidden": hidden,
        "steps": steps,
        "tokens": tokens,
        "weight_bytes": weight_bytes,
        "row_bytes": row_bytes,
        "bytes_per_s": bytes_per_s,
        "rows_per_s": rows_per_s,
        "bytes_s": bytes_s,
        "flops_s": flops_s,
        "call_s": times["call"].median,
        "wake_s": wakes_s,
        "score_steps_s": ours.median,
        "score_steps_spread_s": [ours.low, ours.high],
        "of_floor": ours.median / floor_s,
        "plain_s": plain_s,
        "plain_measured_tokens": plain_tokens,
        "faster": plain_s / ours.median,
    }


def _timed(
    contenders: dict[str, Callable[[], object]], rounds: int, device: torch.device | str = "cpu"
) -> dict[str, Timing]:
    clock = make_clock(torch.device(device))
    return in_turn(contenders, rounds, warmup=2, clock=clock, mode=clock.modes[0])


def rows_apart(data: torch.Tensor, row_bytes: int, every: int) -> torch.Tensor:
    """One row in `every`, each of that many bytes."""
    columns = row_bytes // data.itemsize
    return data[: data.numel() // (columns * every) * columns * every].view(-1, columns)[::every]


def wake_seconds() -> float:
    """What a parallel operation on 64 KB takes longer on the CPU than on one byte."""
    many, one = torch.zeros(1 << 16, dtype=torch.int8), torch.zeros(1, dtype=torch.int8)
    times = _timed({"many": lambda: many.add_(1), "one": lambda: one.add_(1)}, 25)
    return max(0.0, times["many"].median - times["one"].median)


def merged(path: Path, heads: list[dict]) -> list[dict]:
    """Rows just measured, after those of other cases that the file has."""
    key = lambda row: (HEADS.index(row["head"]), row["hidden"], row["steps"])  # noqa: E731
    old = json.loads(path.read_text())["heads"] if path.is_file() else []
    rows = {key(row): row for row in old} | {key(row): row for row in heads}
    return [rows[k] for k in sorted(rows)]


def main() -> None:
    """Measure and print."""
    args = parser().parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    on_cpu = device.type == "cpu"
    if not on_cpu and args.part != "heads":
        raise SystemExit("--device cuda: the search is measured on the CPU, add --part heads")
    report: dict = {"machine": machine.describe(device)}
    if args.part != "search":
        flops_per_s = Roofline.measure(torch.float32 if on_cpu else dtype, device).flops_per_s
        wake = wake_seconds() if on_cpu else 0.0
        report |= {"dtype": args.dtype, "flops_per_s": flops_per_s, "wake_s": wake}
        reads = torch.ones(1 << 26, device=device)
        rows = []
        names = "".join(f"{n:>12s}" for n in ("bytes", "flops", "call", "wake", "ours"))
        print(f"head        hidden  steps{names}  x floor  plain head   faster")
        for kind in args.head:
            for hidden in args.hidden:
                for steps in args.steps:
                    limits = (flops_per_s, reads, wake)
                    row = measure_head(kind, hidden, steps, dtype, *limits, args.rounds, device)
                    rows.append(row)
                    times = "".join(
                        f"{1e3 * row[name]:9.3f} ms"
                        for name in ("bytes_s", "flops_s", "call_s", "wake_s", "score_steps_s")
                    )
                    print(
                        f"{kind:10s}  {hidden:6d}  {steps:5d}{times}  {row['of_floor']:7.2f}"
                        f"{1e3 * row['plain_s']:9.1f} ms  {row['faster']:7.1f}",
                        flush=True,
                    )
        report["heads"] = merged(args.json, rows) if args.json else rows
    if args.part != "heads":
        from . import step_score_search

        report["search"] = step_score_search.compare(args.width, args.depth)
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = argparse.ArgumentParser(prog="python -m bench.step_score", description=__doc__)
    result.formatter_class = argparse.RawDescriptionHelpFormatter
    add = result.add_argument
    add("--part", choices=("all", "heads", "search"), default="all")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    add("--head", choices=HEADS, nargs="+", default=HEADS)
    add("--hidden", type=int, nargs="+", default=HIDDEN)
    add("--steps", type=int, nargs="+", default=STEPS)
    add("--rounds", type=int, default=15)
    add("--threads", type=int, default=None)
    add("--width", type=int, default=64, help="of the search")
    add("--depth", type=int, default=12, help="of the search, in steps")
    add("--json", type=Path, default=None)
    return result


if __name__ == "__main__":
    main()
