"""What the compilers make of every kernel, on every architecture, without a GPU.

    python -m tests.ledger.ledger            # compiles everything, writes triton.json and cuda.json
    python -m tests.ledger.ledger --only cuda
    python -m tests.ledger.ledger --only triton --check N  # compiles every N-th entry and compares

CUDA kernels: see cuda.py. Of Triton kernels the launch code itself runs, on small CPU tensors; only
the launch is replaced: its arguments are kept, and compiled for a GPU as Triton would specialise
them there.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

import ttc_kernels.triton.kv_cache as kv_cache
import ttc_kernels.triton.tree_attention as attention
from ttc_kernels.triton.draft_rows import DraftRows
from ttc_kernels.triton.row_descriptor import row_descriptor
from ttc_kernels.triton.sample_children import sample_children
from ttc_kernels.triton.sample_tokens import sample_tokens
from ttc_kernels.triton.score_steps import score_round, score_steps
from ttc_kernels.triton.step_paths import aggregate_steps, select_topk
from ttc_kernels.triton.token_logprobs import token_logprobs
from ttc_kernels.triton.verify_walk import verify

from . import cuda

LEDGER = Path(__file__).with_name("triton.json")
ARCHITECTURES = (80, 90, 100)
DTYPES = ("float32", "float16", "bfloat16")


def launches(run: Callable[[], Any]) -> list[tuple[JITFunction, tuple, dict]]:
    """Every kernel that `run` would launch, with its arguments."""
    seen: list[tuple[JITFunction, tuple, dict]] = []
    original = JITFunction.run

    def record(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        seen.append((self, args, kwargs))

    JITFunction.run = record  # type: ignore[method-assign]
    try:
        run()
    finally:
        JITFunction.run = original  # type: ignore[method-assign]
    return seen


def _attention(config: attention.Config) -> list[tuple[JITFunction, tuple, dict]]:
    q = torch.zeros(1, 2, config.head_dim, dtype=getattr(torch, config.q_dtype))
    cache = torch.zeros(1, 16, 1, config.head_dim, dtype=getattr(torch, config.kv_dtype))
    plan, floats = torch.zeros(32, dtype=torch.int32), torch.zeros(2 * (config.head_dim + 2))
    capability, attention._capability = attention._capability, lambda device: config.capability
    try:
        return launches(
            lambda: attention.tree_attention(
                q, cache, cache, plan, floats, 1.0, float(config.soft_cap), 1.0, None, None,
                torch.zeros_like(q), torch.zeros(1, 2),
            )
        )  # fmt: skip
    finally:
        attention._capability = capability


def entries() -> Iterator[tuple[str, int, int, Callable[[], list]]]:
    """(name, architecture, which of the launches, the launches) of everything to compile."""
    for c in attention.configs():
        name = f"tree_attention q={c.q_dtype} kv={c.kv_dtype} d={c.head_dim} cap={c.soft_cap:d}"
        yield name, c.capability, 0, partial(_attention, c)
        if c.kv_dtype == c.q_dtype and not c.soft_cap:
            name = f"merge out={c.q_dtype} d={c.head_dim}"
            yield name, c.capability, 1, partial(_attention, c)

    cache = torch.zeros(2, 16, 1, 64, dtype=torch.float16)
    slots, copies = torch.zeros(2, dtype=torch.int32), torch.zeros(1, 3, dtype=torch.int32)
    moves = {
        "copy_pages": lambda: kv_cache.copy_pages([cache], [cache], copies),
        "commit_kv": lambda: kv_cache.commit_kv([cache], [cache], slots, slots),
    }
    for head_dim in (64, 96, 128, 256):
        for q_dtype in DTYPES:
            for kv_dtype in (q_dtype, "float8_e4m3fn"):
                moves[f"write_kv k={q_dtype} kv={kv_dtype} d={head_dim}"] = partial(
                    _write, head_dim, q_dtype, kv_dtype
                )
                if head_dim == 128:
                    moves[f"write_kv rotated k={q_dtype} kv={kv_dtype} d=128"] = partial(
                        _write, head_dim, q_dtype, kv_dtype, rotated=True
                    )
    for name, run in {**moves, **small_ops()}.items():
        for which in range(len(launches(run))):
            for architecture in ARCHITECTURES:
                yield (
                    f"{name} #{which}" if which else name,
                    architecture,
                    which,
                    partial(launches, run),
                )


def small_ops() -> dict[str, Callable[[], Any]]:
    """Step scores and verification, for each dtype and a vocabulary of more than one block."""
    runs: dict[str, Callable[[], Any]] = {}
    n, vocab, width = 4, 32768, 128
    column, seeds = torch.zeros(n), torch.zeros(n, dtype=torch.int64)
    top_k, rows = torch.zeros(n, dtype=torch.int32), torch.zeros(3, dtype=torch.int32)
    links, groups = torch.zeros(3, dtype=torch.int32), torch.zeros(3, dtype=torch.int32)
    carry = torch.zeros(4, 32), torch.zeros(3, 32, dtype=torch.int64)
    runs["aggregate_steps"] = partial(aggregate_steps, column[:3], links, *carry)
    runs["select_topk"] = partial(select_topk, column, groups, 2)
    for dtype in DTYPES:
        x = torch.zeros(n, width, dtype=getattr(torch, dtype))
        logits = torch.zeros(n, vocab, dtype=x.dtype)
        weights = [x.new_zeros(width, width), x.new_zeros(width), x[:2], x.new_zeros(2)]
        runs[f"row_descriptor logits={dtype}"] = partial(
            row_descriptor, logits, column, top_k, column, column
        )
        runs[f"sample_tokens logits={dtype}"] = partial(
            sample_tokens, logits, torch.zeros(n, 8), seeds, seeds
        )
        for mode in ("topk", "iid", "without_replacement"):
            runs[f"sample_children {mode} logits={dtype}"] = partial(
                sample_children, logits, torch.zeros(n, 9), 4, mode, False, seeds, seeds, top_k
            )
        runs[f"token_logprobs logits={dtype}"] = partial(
            token_logprobs, logits, torch.zeros(n, 9), top_k, top_k, True
        )
        for rule in ("target_only", "typical"):
            runs[f"verify {rule} logits={dtype}"] = partial(_verify, rule, logits, "one_hot")
        for rule in ("rejection", "block", "traversal"):
            for kind in ("one_hot", "dense", "sparse"):
                runs[f"verify {rule} {kind} logits={dtype}"] = partial(_verify, rule, logits, kind)
        runs[f"score_steps two_logit hidden={dtype}"] = partial(
            score_steps, x, rows, "two_logit", weights, x[0], 1e-6
        )
        runs[f"score_steps value hidden={dtype}"] = partial(
            score_steps, x, rows, "value", [x[:1], x.new_zeros(1)], None, 0.0
        )
        runs[f"score_round two_logit hidden={dtype}"] = partial(
            score_round, x, rows, "two_logit", weights, x[0], 1e-6, links, *carry, groups, 2, 1
        )
        whole = [x, column, column]
        runs[f"score_round softmax hidden={dtype}"] = partial(
            score_round, x, rows, "softmax", whole, None, 0.0, links, *carry, groups, 2, 0
        )
    return runs


def _verify(rule: str, logits: torch.Tensor, kind: str) -> None:
    n, block = len(logits), rule == "block"
    desc, nodes = torch.zeros(n, 9), torch.zeros(n, dtype=torch.int32)
    ids, logprobs = torch.zeros(n, 8, dtype=torch.int32), torch.zeros(n, 8)
    dense, sparse = kind == "dense", kind == "sparse"
    draft = DraftRows.of(
        logits if dense else None, desc if dense else None,
        ids if sparse else None, logprobs if sparse else None, None,
    )  # fmt: skip
    seeds, out = torch.zeros(2, dtype=torch.int64), torch.zeros(2, 4, dtype=torch.int32)
    verify(
        rule, logits, desc, None, None, nodes, None if block else nodes, nodes[:3], seeds, seeds,
        None, draft, None if kind == "one_hot" else nodes.to(torch.int8), 0.1, 0.1,
        (out[:, 0], out, out, out.float(), out[:, 0]),
    )  # fmt: skip


def _write(head_dim: int, q_dtype: str, kv_dtype: str, rotated: bool = False) -> None:
    k = torch.zeros(2, 1, head_dim, dtype=getattr(torch, q_dtype))
    cache = torch.zeros(2, 16, 1, head_dim, dtype=getattr(torch, kv_dtype))
    rope = (torch.zeros(2, dtype=torch.int64), torch.zeros(4, head_dim)) if rotated else ()
    kv_cache.write_kv(k, k, cache, cache, torch.zeros(2, dtype=torch.int32), 1.0, 1.0, *rope)


def key(name: str, architecture: int) -> str:
    return f"{name} sm_{architecture}"


def compile_launch(launch: tuple[JITFunction, tuple, dict], architecture: int) -> Any:
    """A launch's kernel, compiled for an architecture as it would be on such a GPU."""
    kernel, args, kwargs = launch
    target = GPUTarget("cuda", architecture, 32)
    backend = make_backend(target)
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, options = binder(*args, debug=False, **kwargs)
    options, signature, constants, attributes = kernel._pack_args(
        backend, {"debug": False, **kwargs}, bound, specialization, options
    )
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=target, options=options.__dict__)


def measure(index: int) -> tuple[str, dict[str, int]]:
    """Compiles one entry: registers, bytes spilled, shared memory, tensor core instructions."""
    name, architecture, which, record = list(entries())[index]
    compiled = compile_launch(record()[which], architecture)
    usage = _resources(compiled.asm["cubin"])
    ptx = compiled.asm["ptx"]
    usage["shared"] = compiled.metadata.shared
    usage["threads"] = 32 * compiled.metadata.num_warps
    usage["mma"] = len(re.findall(r"mma\.sync|wgmma\.mma_async|tcgen05\.mma", ptx))
    return key(name, architecture), usage


def _resources(cubin: bytes) -> dict[str, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = {k: int(v) for k, v in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    # Nothing here calls a function or indexes a local array: what is on the stack was spilled.
    return {"registers": found["REG"], "spill_bytes": found["STACK"] + found["LOCAL"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", choices=["triton", "cuda"])
    parser.add_argument("--check", type=int, default=0, metavar="N")
    args = parser.parse_args()
    failed = 0
    if args.only != "cuda":
        failed |= check_triton(args.check)
    if args.only != "triton":
        failed |= check_cuda(write=not args.check)
    return failed


def check_triton(step: int) -> int:
    """Compiles every entry and writes the ledger, or every `step`-th and compares."""
    names = {key(name, architecture) for name, architecture, *_ in entries()}
    indices = range(0, len(names), step or 1)
    spawn = multiprocessing.get_context("spawn")  # a forked copy of torch's threads would hang
    with ProcessPoolExecutor(2, mp_context=spawn) as pool:
        measured = dict(pool.map(measure, indices))
    if not step:
        table = {"triton": triton.__version__, "kernels": dict(sorted(measured.items()))}
        LEDGER.write_text(json.dumps(table, indent=1) + "\n")
        print(f"wrote {len(measured)} entries to {LEDGER}")
    ledger = json.loads(LEDGER.read_text())
    spilled = {k: v for k, v in measured.items() if v["spill_bytes"]}
    same_compiler = ledger["triton"] == triton.__version__
    changed = {
        k: (ledger["kernels"].get(k), v)
        for k, v in measured.items()
        if same_compiler and ledger["kernels"].get(k) != v
    }
    missing = names ^ set(ledger["kernels"])
    for k in sorted(missing):
        print(f"in the ledger or among the kernels, not in both: {k}")
    for k, v in spilled.items():
        print(f"spills: {k}: {v}")
    for k, (before, now) in changed.items():
        print(f"changed: {k}: {before} -> {now}")
    if not same_compiler:
        print(f"not compared: the ledger is of triton {ledger['triton']}")
    print(f"compiled {len(measured)}, {len(spilled)} spill, {len(changed)} changed")
    return 1 if spilled or changed or missing else 0


def check_cuda(write: bool) -> int:
    """Compiles what has changed, and writes or compares the ledger."""
    if missing := cuda.missing_tools():
        print(f"CUDA kernels are not compiled: {missing}")
        return 0
    cuda.build()
    measured = cuda.kernels()
    if write:
        cuda.write_ledger(measured)
        print(f"wrote {len(measured)} entries to {cuda.LEDGER}")
    faults = cuda.faults(measured)
    print("\n".join(faults))
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
