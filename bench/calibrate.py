"""Measure the constants of the planner's cost model on this machine.

    python -m bench.calibrate                  # print what fits here, beside what is stored
    python -m bench.calibrate --write          # ... and store it in ttc_kernels/plan_costs.json
    python -m bench.calibrate --isa avx512 avx2 portable --write
    python -m bench.calibrate --device cuda --write

On a CPU one thread is timed, so that a busy machine spoils the figures less; the bandwidth is
measured with all of them, and the rate of matrix products is that of one, times their number.

Plans of simple shapes are timed: groups of rows over pages of their own, so that every item of a
plan costs the same. The constants are the non-negative least squares fit of the relative errors.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass

import numpy as np
import torch

from ttc_kernels import TreeAttentionPlan, plan_tree_attention, tree_attention
from ttc_kernels._plan_costs import COSTS_FILE, cost_model, device_kind

from . import machine
from .devices import Call, Clock, CpuClock, make_clock
from .roofline import Roofline

PAGE_SIZE, HEAD_DIM, Q_HEADS, KV_HEADS = 16, 128, 32, 8
TERMS = ("item", "row", "token", "token_again", "row_token", "partial")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# An instruction set that differs for one dtype only is measured with that one.
ISA_DTYPES = {"avx512_bf16": ["bfloat16"]}


@dataclass(frozen=True)
class Shape:
    """`groups` groups of `rows` rows that share `keys` keys; deterministic plans have partials."""

    groups: int
    rows: int
    keys: int
    deterministic: bool = False

    def plan(self, dtype: torch.dtype, device: torch.device) -> TreeAttentionPlan:
        """One query for each row."""
        pages = self.keys // PAGE_SIZE
        tables = np.arange(self.groups * pages, dtype=np.int32).reshape(self.groups, pages)
        return plan_tree_attention(
            tables.repeat(self.rows, axis=0),
            np.full(self.groups * self.rows, self.keys, np.int32),
            page_size=PAGE_SIZE,
            num_q_heads=Q_HEADS,
            num_kv_heads=KV_HEADS,
            head_dim=HEAD_DIM,
            dtype=dtype,
            device=device,
            deterministic=self.deterministic,
        )


def shapes(on_gpu: bool) -> list[Shape]:
    """One worker's items from tiny to long, from one row to several tiles, with partials or not."""
    size = 1 << (17 if on_gpu else 10)  # keys of all groups, at least

    def shape(rows: int, keys: int, deterministic: bool = False) -> Shape:
        return Shape(max(1, size // keys), rows, keys, deterministic)

    out = [shape(rows, 128) for rows in (1, 2, 4, 8, 16, 32, 64, 96)]
    out += [shape(rows, keys) for keys in (16, 32, 64, 256, 1024, 4096) for rows in (1, 4, 16)]
    # A short second item for each row: the partials of both weigh most here.
    out += [shape(rows, keys, True) for keys in (272, 512) for rows in (1, 4, 16, 32)]
    return out


class ThreadClock(CpuClock):
    """The time that this thread ran: on a busy machine the wall clock counts the others too."""

    def seconds(self, prepared: Call, mode: str) -> float:
        """One timed call on one thread, after the caches were filled with other data."""
        self._other.sum()
        start = time.thread_time()
        prepared()
        return time.thread_time() - start


@dataclass
class Work:
    """What the items of a plan do, summed, per worker: what the constants are multiplied with."""

    items: float
    rows: float
    tokens: float
    tokens_again: float
    padded: float
    partials: float

    @classmethod
    def of(cls, plan: TreeAttentionPlan, costs: dict) -> Work:
        """Counted in the plan's buffer."""
        header = plan.buffer[:32].tolist()
        count, at = header[4], header[16]
        items = plan.buffer[at : at + 8 * count].cpu().numpy().reshape(count, 8).astype(np.int64)
        keys = items[:, 3] - items[:, 2]
        quantum, rows = costs["row_quantum"], items[:, 1] * (Q_HEADS // KV_HEADS)
        padded_rows = items[:, 6] if quantum == 0 else -(-rows // quantum) * quantum
        padded_keys = -(-keys // costs["key_quantum"]) * costs["key_quantum"]
        _, first = np.unique(items[:, 4] * 2**32 + items[:, 2], return_index=True)
        again = np.ones(count, bool)
        again[first] = False
        share = KV_HEADS / plan._options["num_workers"]
        partials = plan.stats["partials"] * (Q_HEADS // KV_HEADS)
        return cls(
            count * share,
            rows.sum() * share,
            keys[~again].sum() * share,
            keys[again].sum() * share,
            (padded_rows * padded_keys).sum() * share,
            partials * share,
        )

    def row(self) -> list[float]:
        """Coefficients of TERMS."""
        return [
            self.items,
            self.rows,
            self.tokens,
            self.tokens_again,
            self.padded,
            self.partials,
        ]


# A partial of 130 floats is written and read again, an item is fetched and set up: noise must not
# make them free.
_LEAST = {"item": 50.0, "partial": 20.0}


def fit(work: list[Work], seconds: np.ndarray, launch: float, start: np.ndarray) -> np.ndarray:
    """The constants in nanoseconds: least squares of relative errors, none below `_LEAST`."""
    rows = np.array([w.row() for w in work])
    least = np.array([_LEAST.get(term, 0.0) for term in TERMS])
    total = seconds * 1e9 - launch
    target = total - rows @ least
    seen = np.flatnonzero(rows.any(axis=0))
    x = np.where(rows.any(axis=0), 0, start)  # a term that nothing here depends on stays
    while True:
        part = np.linalg.lstsq(rows[:, seen] / total[:, None], target / total, None)[0]
        if (part >= 0).all():
            break
        seen = seen[part >= 0]
    x[seen] = part
    return np.where(rows.any(axis=0), x + least, x)


def measure(plans: list[TreeAttentionPlan], clock: Clock, rounds: int) -> np.ndarray:
    """Best seconds of each plan, caches cold, rounds interleaved."""
    dtype, device = plans[0].dtype, plans[0].device
    pages = max(p.max_page for p in plans) + 1
    shape = (2, pages, PAGE_SIZE, KV_HEADS, HEAD_DIM)
    k_cache, v_cache = torch.randn(shape, device=device).to(dtype)
    calls = []
    for plan in plans:
        q = torch.randn(plan.num_queries, Q_HEADS, HEAD_DIM, device=device).to(dtype)
        out, lse = torch.empty_like(q), torch.empty(q.shape[:2], device=device)

        def call(q=q, plan=plan, out=out, lse=lse):
            tree_attention(q, k_cache, v_cache, plan, out=out, lse=lse)

        call()
        calls.append(clock.prepare(call, clock.modes[0]))
    best = np.full(len(calls), np.inf)
    for _ in range(rounds):
        for i, prepared in enumerate(calls):
            best[i] = min(best[i], clock.seconds(prepared, clock.modes[0]))
    return best


def calibrate(
    name: str, device: torch.device, clock: Clock, rounds: int
) -> tuple[str, dict, float, Roofline]:
    """(kind, constants, launch, roofline) of one dtype, printed with the errors of the fit."""
    dtype = DTYPES[name]
    kind = device_kind(device, dtype)
    costs = cost_model(kind, dtype, dtype.itemsize, HEAD_DIM)
    list_of = [Shape(1, 1, 16), *shapes(device.type == "cuda")]
    plans = [s.plan(dtype, device) for s in list_of]
    seconds = measure(plans, clock, rounds)
    launch = float(seconds[0] * 1e9)
    work = [Work.of(p, costs) for p in plans]
    keep = seconds * 1e9 > 2 * launch  # the others are launches, and little else
    keep[0] = False
    kept = [w for w, k in zip(work, keep, strict=True) if k]
    x = fit(kept, seconds[keep], launch, np.array([costs[t] for t in TERMS]))
    modelled = np.array([w.row() @ x + launch for w in work]) / 1e9
    error = modelled / seconds - 1
    print(f"\n{kind} {name}: median error {np.median(np.abs(error[1:])):.0%}")
    for shape, t, e in zip(list_of, seconds, error, strict=True):
        print(f"  {shape!s:72} {t * 1e6:9.1f} us, modelled {e:+.0%}")
    for term, value in zip(TERMS, x, strict=True):
        print(f"  {term:12} {value:8.3g} ns, stored {costs[term]:8.3g}")
    torch.set_num_threads(os.cpu_count() or 1)
    # All but one of the CPU kernels multiply in fp32; torch is slow at products in fp16.
    in_fp32 = device.type == "cpu" and kind not in ISA_DTYPES
    product = torch.float32 if in_fp32 else dtype
    roofline = Roofline.measure(product, device, seconds=1.0)
    torch.set_num_threads(1)
    flops = _thread_flops(product) if device.type == "cpu" else roofline.flops_per_s
    constants = {t: float(f"{v:.3g}") for t, v in zip(TERMS, x, strict=True)}
    constants["flops_per_ns"] = float(f"{flops / 1e9:.3g}")
    return kind, constants, launch, roofline


def _thread_flops(dtype: torch.dtype) -> float:
    """Rate of a matrix product on all cores, from the time that one thread ran."""
    side, best = 1024, float("inf")
    a, b = (torch.randn(side, side).to(dtype) for _ in range(2))
    for _ in range(10):
        start = time.thread_time()
        torch.mm(a, b)
        best = min(best, time.thread_time() - start)
    return 2 * side**3 / best * (os.cpu_count() or 1)


def write(table: dict) -> None:
    """Store the table, one line for each dtype."""
    devices = []
    for kind, device in table.items():
        lines = [
            f"    {json.dumps(k)}: {json.dumps(v)}," for k, v in device.items() if k != "dtypes"
        ]
        dtypes = [
            f"      {json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(device["dtypes"].items())
        ]
        body = "\n".join([*lines, '    "dtypes": {', ",\n".join(dtypes), "    }"])
        devices.append(f"  {json.dumps(kind)}: {{\n{body}\n  }}")
    COSTS_FILE.write_text("{\n" + ",\n".join(devices) + "\n}\n")


def main() -> None:
    """Measure what was asked for, print it, store it with --write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--isa", nargs="+", default=[], help="CPU: lesser instruction sets as well")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    device = torch.device(args.device)
    facts = machine.describe(device)
    torch.set_num_threads(1)
    clock = ThreadClock() if device.type == "cpu" else make_clock(device)
    table = json.loads(COSTS_FILE.read_text())
    done = set()
    for isa in [None, *args.isa]:
        if isa is not None:
            os.environ["TTC_CPU_ISA"] = isa
        for name in args.dtype:
            kind = device_kind(device, DTYPES[name])
            if (kind, name) in done or name not in ISA_DTYPES.get(kind, DTYPES):
                continue
            done.add((kind, name))
            kind, constants, launch, roofline = calibrate(name, device, clock, args.rounds)
            entry = table[kind]
            where = facts.get("gpu") or facts["cpu"]
            entry["source"] = f"measured by bench/calibrate.py on {where}, {facts['date'][:10]}"
            entry["launch"] = float(f"{launch:.3g}")
            entry["bytes_per_ns"] = float(f"{roofline.bytes_per_s / 1e9:.3g}")
            entry["dtypes"][name] = constants
    if args.write:
        write(table)
        print(f"\nwritten: {COSTS_FILE}")


if __name__ == "__main__":
    main()
