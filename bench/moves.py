"""write_kv, copy_pages, commit_kv and merge_states beside the bytes they move, Triton and torch.

    python -m bench.moves --device cuda --json bench/results/moves_cuda_bf16.json

The caches are those of a model with 32 layers. Every contender is checked bit for bit against the
definition on a small case before it is timed; merge_states against the definition in float64.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import ttc_kernels
from ttc_kernels import reference

from . import machine
from .devices import make_clock
from .roofline import Roofline
from .timing import Timing, in_turn

_FP8 = torch.float8_e4m3fn
_HEADS, _QUERY_HEADS, _DIM, _PAGE = 8, 32, 128, 16


@dataclass
class Case:
    """One call: how many bytes it must read and write, and what does it, by contender."""

    name: str
    num_bytes: int
    runs: dict[str, Callable[[], object]]
    floor_s: float = 0.0
    modes: dict[str, dict[str, Timing]] = field(default_factory=dict)


def main(argv: list[str] | None = None) -> int:
    """Run the command; see --help. Returns 1 if a contender was wrong."""
    args = parser().parse_args(argv)
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch sees no CUDA device")
    limit = Roofline.measure(torch.bfloat16, device, seconds=0.5)
    wrong = [name for name in _ops(device) if not _is_right(name, device)]
    clock = make_clock(device)
    cases = [*_writes(args.tokens, device), *_moves(args.layers, args.rows, device)]
    cases.append(_merge(args.rows, device))
    for case in cases:
        case.floor_s = case.num_bytes / limit.bytes_per_s
        runs = {name: run for name, run in case.runs.items() if name not in wrong}
        for mode in clock.modes:
            case.modes[mode] = in_turn(runs, args.rounds, clock=clock, mode=mode)
        if args.json:
            rows = [{k: v for k, v in vars(c).items() if k != "runs"} for c in cases if c.modes]
            document = {
                "machine": machine.describe(device),
                "roofline": asdict(limit),
                "layers": args.layers,
                "results": rows,
                "wrong": wrong,
            }
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(document, indent=1, default=asdict) + "\n")
    _print(cases, clock.modes[0])
    for name in wrong:
        print(f"{name} disagrees with the definition")
    return int(bool(wrong))


def _ops(device: torch.device) -> dict[str, object]:
    """Who moves: our ops, on a GPU our Triton kernels, and torch."""
    if device.type == "cpu":
        return {"ours": ttc_kernels, "torch": _Torch}
    from ttc_kernels.triton import kv_cache

    return {"ours": ttc_kernels, "triton": _InTriton(kv_cache), "torch": _Torch}


class _InTriton:
    """Our Triton kernels behind the interface of the ops."""

    def __init__(self, kernels) -> None:
        self.copy_pages, self.commit_kv = kernels.copy_pages, kernels.commit_kv
        self._write = kernels.write_kv

    def write_kv(self, *arguments, positions=None, cos_sin=None) -> None:
        scales = (1.0, 1.0)[len(arguments) - 5 :]
        self._write(*arguments, *scales, positions, cos_sin)


class _Torch:
    """Indexed copies, a call for each cache."""

    @staticmethod
    def write_kv(k, v, k_cache, v_cache, slots, k_scale=1.0, v_scale=1.0, *, positions=None,
                 cos_sin=None) -> None:  # fmt: skip
        if positions is not None:
            half = cos_sin.shape[1] // 2
            cos, sin = cos_sin[positions].unsqueeze(1).split(half, dim=-1)
            a, b = k.float().split(half, dim=-1)
            k = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(k.dtype)
        for x, cache, scale in ((k, k_cache, k_scale), (v, v_cache, v_scale)):
            if cache.dtype == _FP8:
                x = (x.float() / scale).clamp(-448, 448).to(_FP8).view(torch.uint8)
                cache = cache.view(torch.uint8)
            cache.flatten(0, 1).index_copy_(0, slots.long(), x)

    @staticmethod
    def copy_pages(k_caches, v_caches, copies) -> None:
        src, dst = copies[:, 0].long(), copies[:, 1].long()
        for cache in (*k_caches, *v_caches):
            cache[dst, : _PAGE - 1] = cache[src, : _PAGE - 1]

    @staticmethod
    def commit_kv(k_caches, v_caches, src_slots, dst_slots) -> None:
        src, dst = src_slots.long(), dst_slots.long()
        for cache in (*k_caches, *v_caches):
            tokens = cache.flatten(0, 1)
            tokens[dst] = tokens[src]


def _is_right(name: str, device: torch.device) -> bool:
    """Whether a contender writes what the definition does, moved and rotated."""
    op = _ops(device)[name]
    k, v = torch.randn(2, 5, _HEADS, _DIM).bfloat16()
    slots = torch.tensor([3, 17, 40, 5, 64], dtype=torch.int32)
    copies = torch.tensor([[0, 5, _PAGE - 1], [1, 6, _PAGE - 1]], dtype=torch.int32)
    src, dst = torch.tensor([[17, 40], [20, 22]], dtype=torch.int32)
    got, want = (
        torch.zeros(2, 7, _PAGE, _HEADS, _DIM, dtype=torch.bfloat16, device=where).unbind()
        for where in (device, "cpu")
    )

    def on(x: torch.Tensor) -> torch.Tensor:
        return x.to(device)

    op.write_kv(on(k), on(v), *got, on(slots))
    op.copy_pages([got[0]], [got[1]], on(copies))
    op.commit_kv([got[0]], [got[1]], on(src), on(dst))
    reference.write_kv(k, v, *want, slots)
    reference.copy_pages([want[0]], [want[1]], copies)
    reference.commit_kv([want[0]], [want[1]], src, dst)
    same = all(torch.equal(x.cpu(), y) for x, y in zip(got, want, strict=True))
    positions, cos_sin = torch.arange(5), _angles(5)
    op.write_kv(on(k), on(v), *got, on(slots), positions=on(positions), cos_sin=on(cos_sin))
    rotated = got[0].cpu().flatten(0, 1)[slots.long()].double()
    exact = reference.kv_cache.rotate(k, cos_sin, False)
    return same and bool(((rotated - exact).abs() <= 2**-8 * exact.abs() + 1e-6).all())


def _angles(positions: int) -> torch.Tensor:
    frequencies = 10000.0 ** -(torch.arange(0, _DIM, 2) / _DIM)
    angles = torch.arange(positions).float().outer(frequencies)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _writes(tokens: list[int], device: torch.device) -> list[Case]:
    """New tokens of one layer: as they are, rotated, rounded to float8, both."""
    cases = []
    for count in tokens:
        k, v = torch.randn(2, count, _HEADS, _DIM, device=device).bfloat16()
        slots = torch.randperm(2 * count, device=device)[:count].int()
        rope = {
            "positions": torch.arange(count, device=device),
            "cos_sin": _angles(count).to(device),
        }
        for dtype in (torch.bfloat16, _FP8):
            caches = torch.zeros(2, -(-2 * count // _PAGE), _PAGE, _HEADS, _DIM, device=device)
            caches = caches.to(dtype).unbind()
            for options in ({}, rope):
                name = f"write_kv {count} tokens"
                name += ", rotated" if options else ""
                name += ", float8" if dtype == _FP8 else ""
                moved = 2 * k.numel() * (2 + caches[0].element_size())
                moved += options["cos_sin"].nbytes if options else 0
                runs = {
                    who: lambda op=op, to=caches, o=options, k=k, v=v, slots=slots: op.write_kv(
                        k, v, *to, slots, **o
                    )
                    for who, op in _ops(device).items()
                }
                cases.append(Case(name, moved, runs))
    return cases


def _moves(layers: int, rows: int, device: torch.device) -> list[Case]:
    """Forked tails, and four accepted tokens of each row, in all layers."""
    shape = (2 * rows, _PAGE, _HEADS, _DIM)
    k_caches, v_caches = (
        [torch.zeros(shape, device=device, dtype=torch.bfloat16) for _ in range(layers)]
        for _ in range(2)
    )
    pages = torch.randperm(2 * rows).int().reshape(2, rows)
    counts = torch.full((rows, 1), _PAGE - 1, dtype=torch.int32)
    copies = torch.cat([pages.T, counts], dim=1).contiguous().to(device)
    # Of a draft of eleven nodes behind four tokens in each page.
    dst = (pages[0][:, None] * _PAGE + torch.arange(4, 8)).flatten().int().to(device)
    src = (pages[0][:, None] * _PAGE + torch.tensor([5, 8, 11, 14])).flatten().int().to(device)
    token_bytes = 2 * layers * _HEADS * _DIM * 2
    ops = _ops(device)
    return [
        Case(
            f"copy_pages {rows} tails of {_PAGE - 1}, {layers} layers",
            2 * rows * (_PAGE - 1) * token_bytes,
            {who: lambda op=op: op.copy_pages(k_caches, v_caches, copies)
             for who, op in ops.items()},
        ),
        Case(
            f"commit_kv {rows} x 4 tokens, {layers} layers",
            2 * len(src) * token_bytes,
            {who: lambda op=op: op.commit_kv(k_caches, v_caches, src, dst)
             for who, op in ops.items()},
        ),
    ]  # fmt: skip


def _merge(rows: int, device: torch.device) -> Case:
    outs = torch.randn(8, rows, _QUERY_HEADS, _DIM, device=device).bfloat16()
    lses = torch.randn(outs.shape[:3], device=device)

    def in_torch() -> torch.Tensor:
        weights = torch.softmax(lses, dim=0).unsqueeze(-1)
        return (weights * outs).sum(0).to(outs.dtype)

    num_bytes = (outs.nbytes + lses.nbytes) * 9 // 8
    runs = {"ours": lambda: ttc_kernels.merge_states(outs, lses), "torch": in_torch}
    return Case(f"merge_states of 8, {rows} rows", num_bytes, runs)


def _print(cases: list[Case], mode: str) -> None:
    table = Table(title=f"Moves of K and V ({mode})")
    for column in ("", "MB", "floor µs", "ours µs", "of floor", "triton", "torch"):
        table.add_column(column, justify="left" if not column else "right")
    for case in cases:
        timed = case.modes[mode]
        row = [case.name, f"{case.num_bytes / 1e6:.2f}", f"{case.floor_s * 1e6:.1f}"]
        ours = timed.get("ours")
        if ours is None:
            table.add_row(*row, "wrong")
            continue
        row += [f"{ours.median * 1e6:.1f}", f"{case.floor_s / ours.median:.2f}"]
        others = (timed.get(name) for name in ("triton", "torch"))
        table.add_row(*row, *(f"{t.median / ours.median:.2f}" if t else "" for t in others))
    Console(width=120).print(table)


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = argparse.ArgumentParser(prog="python -m bench.moves", description=__doc__)
    result.formatter_class = argparse.RawDescriptionHelpFormatter
    add = result.add_argument
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--tokens", type=int, nargs="+", default=[64, 4096], help="new tokens of one layer")
    add("--layers", type=int, default=32)
    add("--rows", type=int, default=64, help="branches that fork, commit, are merged")
    add("--rounds", type=int, default=15, help="timed calls of each contender")
    add("--json", type=Path, metavar="FILE", help="store the results")
    return result


if __name__ == "__main__":
    raise SystemExit(main())
