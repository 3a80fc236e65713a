"""The parts of a call on a GPU machine, in the order of their worth."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

_PEERS = ("triton", "sdpa", "torch paged", "two-level", "cascade")
_DEVICE = (
    "import sys, torch; print(torch.__version__, torch.version.cuda); "
    "sys.exit(0 if torch.cuda.is_available() else 'torch sees no CUDA device')"
)
# Without the CUDA kernels all else would measure Triton.
_LIBRARY = "import sys; from ttc_kernels import _load; sys.exit(_load.cuda_error)"
_VERIFIERS = ("sgl_kernel", "flashinfer", "vllm")
_ANY_VERIFIER = (
    "import importlib.util, sys; "
    f"sys.exit(not any(map(importlib.util.find_spec, {_VERIFIERS})) "
    f"and 'none of {', '.join(_VERIFIERS)} is installed')"
)
_FLASHINFER_PEERS = ("fi cascade", "fi batch", "fi masked", "flash-attn")


@dataclass(frozen=True)
class Part:
    """One command and how long it may take.

    Attributes:
        name: for the record.
        limit_s: seconds after which it is ended.
        command: what to run.
        needs: programs that must be on the machine, else the part is skipped.
        condition: a command that must succeed, else the part is skipped with its last line.
        module: a module with a `parser()` and the arguments it must understand.
        check: a command that checks the part where there is no GPU.
        env: further environment variables.
        background: run beside the parts that follow.
        waits_for: name of a background part that must end before.
    """

    name: str
    limit_s: int
    command: list[str]
    needs: tuple[str, ...] = ()
    condition: list[str] | None = None
    module: tuple[str, list[str]] | None = None
    check: list[str] | None = None
    env: dict[str, str] = field(default_factory=dict)
    background: bool = False
    waits_for: str = ""


def make_parts(out: Path, work: Path, root: Path) -> tuple[list[Part], list[Part]]:
    """The parts that install, and those that test and measure what is installed.

    Args:
        out: folder for results that are kept as they are.
        work: folder for the other results, the installed package and caches.
        root: the repository.
    """
    python = sys.executable
    return _installing(python, work, root), [
        Part("environment", 30, [python, "-m", "ttc_kernels.collect_env"]),
        Part("library", 30, [python, "-c", _LIBRARY]),
        _flashinfer_build(python, work),
        _tests(python, out),
        _bench("trees", 150, "tree_attention", "--trees", "all", "--rounds", "15", "--peers",
               *_PEERS, "--json", f"{out}/tree_attention_cuda_bf16.json"),
        _bench("moves", 40, "moves", "--json", f"{out}/moves_cuda_bf16.json"),
        _bench("verify", 60, "verify", "--peers", "--torch-seconds", "1",
               "--json", f"{out}/verify_cuda.json"),
        _bench("scores", 40, "step_score", "--part", "heads", "--hidden", "1536", "3584", "8192",
               "--json", f"{out}/step_score_cuda_bf16.json"),
        *(_sanitizer(tool, python) for tool in ("memcheck", "racecheck", "synccheck", "initcheck")),
        _bench("engine", 45, "engine_smoke", "--json", f"{work}/engine.json"),
        _bench("replay", 50, "replay", "--search", "document", "wide", "--max-steps", "600",
               "--samples", "5", "--json", f"{work}/replay.json"),
        _bench("deterministic", 30, "tree_attention", "--trees", "quick", "--rounds", "15",
               "--peers", "deterministic", "--json", f"{work}/deterministic.json"),
        _bench("suites", 60, "tree_attention", "--suite", "beam", "single_kv_head", "draft",
               "extend", "no_sharing", "few_shot", "unit_tests", "adversarial", "--trees", "quick",
               "--peers", "sdpa", "cascade", "--json", f"{work}/suites.json"),
        _bench("flashinfer", 90, "tree_attention", "--trees", "all", "--peers",
               *_FLASHINFER_PEERS, "--json", f"{work}/flashinfer.json",
               waits_for="flashinfer build", env=_flashinfer_env(work),
               condition=[python, "-c", "import flashinfer"]),
        _bench("verify peers", 150, "verify", "--torch-rows", "0",
               "--json", f"{work}/verify_peers.json", waits_for="flashinfer build",
               env=_flashinfer_env(work), condition=[python, "-c", _ANY_VERIFIER]),
        _bench("flex", 60, "tree_attention", "--trees", "quick", "--rounds", "5", "--peers",
               "flex", "--json", f"{work}/flex.json"),
    ]  # fmt: skip


def _installing(python: str, work: Path, root: Path) -> list[Part]:
    pip = [python, "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
    pip += ["--disable-pip-version-check", "--target", f"{work}/site"]
    build = [python, "-m", "pip", "wheel", ".", "-q", "--no-build-isolation", "--no-deps"]
    build += ["--disable-pip-version-check", "-w", f"{work}/wheel"]
    wheel = os.environ.get("WHEEL", "")
    # A given wheel may be for another Python; then, or without one, it is built here.
    script = f"{shlex.join(build)} && {shlex.join(pip)} {work}/wheel/*.whl"
    if wheel:
        script = f"{shlex.join([*pip, str(Path(wheel).resolve())])} || ({script})"
    extras = Path(os.environ.get("WHEELS", root / "wheels"))
    # Carried packages, such as FlashInfer and what it needs.
    add = f"{shlex.join(pip)} {shlex.join([str(extras)])}/*.whl"
    has_some = f"ls {shlex.join([str(extras)])}/*.whl"
    return [
        Part("device", 60, [python, "-c", _DEVICE]),
        Part("driver", 20, ["nvidia-smi"], needs=("nvidia-smi",)),
        Part("install", 240, ["bash", "-c", script], check=["bash", "-n", "-c", script]),
        Part("extras", 60, ["bash", "-c", add], condition=["bash", "-c", has_some],
             check=["bash", "-n", "-c", add]),
    ]  # fmt: skip


def _tests(python: str, out: Path) -> Part:
    pytest = [python, "-m", "pytest", "-m", "gpu", "-o", "pythonpath=", "-p", "no:cacheprovider"]
    command = [*pytest, "tests", "--maxfail=50", f"--junitxml={out}/gpu_tests.xml"]
    # Where there is no GPU the tests are collected, from the sources.
    check = [python, "-m", "pytest", "-m", "gpu", "--collect-only", "-q", "tests"]
    return Part("tests", 150, command, check=check)


def _bench(name: str, limit_s: int, module: str, *arguments: str, **options: object) -> Part:
    full = ["--device", "cuda"]
    if module in ("tree_attention", "replay"):
        full += ["--dtype", "bf16"]
    full += arguments
    command = [sys.executable, "-m", f"bench.{module}", *full]
    return Part(name, limit_s, command, module=(f"bench.{module}", full), **options)  # type: ignore[arg-type]


def _sanitizer(tool: str, python: str) -> Part:
    arguments = ["--device", "cuda"]
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
    command += [python, "-m", "bench.small", *arguments]
    # Without torch's pool every tensor is an allocation whose bounds are checked.
    env = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    needs = ("compute-sanitizer",)
    return Part(tool, 60, command, needs, module=("bench.small", arguments), env=env)


def _flashinfer_env(work: Path) -> dict[str, str]:
    cache = os.environ.get("FLASHINFER_WORKSPACE_BASE", f"{work}/flashinfer")
    return {"FLASHINFER_WORKSPACE_BASE": cache}


def _flashinfer_build(python: str, work: Path) -> Part:
    """One tiny tree compiles the kernels that the benchmark will load."""
    return _bench(
        "flashinfer build", 420, "tree_attention", "--trees", "1,2x32,32", "--rounds", "1",
        "--peers", *_FLASHINFER_PEERS, background=True,
        # Half the cores: the benchmarks beside it launch from Python.
        env={**_flashinfer_env(work), "MAX_JOBS": str(max(1, (os.cpu_count() or 2) // 2))},
        needs=("nvcc", "ninja"), condition=[python, "-c", "import flashinfer"],
    )  # fmt: skip
