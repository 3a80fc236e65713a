"""Step scores: heads against plain torch over all tokens, and a search against re-scoring.

    python -m bench.step_score                      # both parts, a table and a JSON file
    python -m bench.step_score --part heads --threads 1
    python -m bench.step_score --part heads --device cuda

Heads: `score_steps` reads the rows at step ends; the plain head runs norm and head over every token
of those steps, as a model's forward does. The floor is the larger of reading weights and rows once
and of the products: in float32 on the CPU, in the weights' dtype on a GPU. Search: see
`bench.step_score_search`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import torch

from ttc_kernels import StepHead, score_steps

from . import machine
from .devices import make_clock
from .roofline import Roofline
from .timing import in_turn

HIDDEN = (1536, 2048, 3584, 5120, 8192)
STEPS = (1, 16, 64, 256, 1024)
TOKENS_PER_STEP = 60
PLAIN_FLOPS = 3e11  # the plain head runs on fewer tokens than there are, if it would take more


def make_head(kind: str, hidden: int, dtype: torch.dtype) -> StepHead:
    """A random head in a model's dtype."""
    rows = lambda n: (torch.randn(n, hidden) / math.sqrt(hidden)).to(dtype)  # noqa: E731
    if kind == "two_logit":
        return StepHead.two_logit(rows(hidden), torch.zeros(hidden), rows(2) * 3, torch.zeros(2))
    if kind == "value":
        return StepHead.value(rows(1), 0.0)
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
        if head.kind == "value":
            return torch.nn.functional.linear(x, weights[0], weights[1]).float().sigmoid()[..., 0]
        return torch.nn.functional.linear(x, weights[0]).float().softmax(-1)[..., 0]

    return run


@torch.inference_mode()
def measure_head(
    kind: str,
    hidden: int,
    steps: int,
    dtype: torch.dtype,
    roofline: Roofline,
    rounds: int,
    device: torch.device | str = "cpu",
) -> dict:
    """One row of the table."""
    torch.manual_seed(0)
    clock = make_clock(torch.device(device))
    head = make_head(kind, hidden, dtype).to(device)
    norm = torch.rand(hidden).to(device) + 0.5
    num_weights = sum(weight.numel() for weight in head.weights)
    tokens = steps * TOKENS_PER_STEP
    plain_tokens = max(
        steps, min(tokens, int(PLAIN_FLOPS / (2 * num_weights)), (1 << 28) // hidden)
    )
    states = torch.randn(plain_tokens, hidden, device=device).to(dtype)
    rows = torch.linspace(0, plain_tokens - 1, steps).int().to(device)
    plain = plain_head(head, norm)
    times = in_turn(
        {
            "score_steps": lambda: score_steps(states, rows, head, norm=(norm, 1e-6)),
            "plain": lambda: plain(states),
        },
        rounds,
        clock=clock,
        mode=clock.modes[0],
    )
    num_bytes = sum(w.nbytes for w in head.weights) + steps * (hidden * states.itemsize + 4 + 4)
    floor = max(num_bytes / roofline.bytes_per_s, 2 * steps * num_weights / roofline.flops_per_s)
    plain_s = times["plain"].median * tokens / plain_tokens
    return {
        "head": kind,
        "hidden": hidden,
        "steps": steps,
        "tokens": tokens,
        "bytes": num_bytes,
        "floor_s": floor,
        "score_steps_s": times["score_steps"].median,
        "score_steps_low_s": times["score_steps"].low,
        "of_floor": times["score_steps"].low / floor,
        "plain_s": plain_s,
        "plain_measured_tokens": plain_tokens,
        "faster": plain_s / times["score_steps"].median,
    }


def main() -> None:
    """Measure and print."""
    args = parser().parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    if device.type == "cuda" and args.part != "heads":
        raise SystemExit("--device cuda: the search is measured on the CPU, add --part heads")
    report: dict = {"machine": machine.describe(device)}
    if args.part != "search":
        roofline = Roofline.measure(torch.float32 if device.type == "cpu" else dtype, device)
        report |= {"dtype": args.dtype, "roofline": vars(roofline)}
        report["heads"] = []
        print("head         hidden  steps   score_steps      floor  x floor   plain head   faster")
        for kind in ("two_logit", "value", "token_pair"):
            for hidden in args.hidden:
                for steps in args.steps:
                    row = measure_head(kind, hidden, steps, dtype, roofline, args.rounds, device)
                    report["heads"].append(row)
                    print(
                        f"{kind:11s}  {hidden:6d}  {steps:5d}  {1e3 * row['score_steps_s']:9.3f} ms"
                        f"  {1e3 * row['floor_s']:6.3f} ms  {row['of_floor']:7.2f}  "
                        f"{1e3 * row['plain_s']:8.2f} ms  {row['faster']:7.1f}",
                        flush=True,
                    )
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
    add("--hidden", type=int, nargs="+", default=HIDDEN)
    add("--steps", type=int, nargs="+", default=STEPS)
    add("--rounds", type=int, default=5)
    add("--threads", type=int, default=None)
    add("--width", type=int, default=64, help="of the search")
    add("--depth", type=int, default=12, help="of the search, in steps")
    add("--json", type=Path, default=None)
    return result


if __name__ == "__main__":
    main()
