"""The resources of the compiled kernels are those in the ledger, and nothing spills."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ledger import cuda

ROOT = Path(__file__).resolve().parents[2]
EVERY = 7  # of the entries, spread over dtypes, head dims and architectures, is compiled again


def test_no_triton_kernel_spills() -> None:
    kernels = json.loads(Path(__file__).with_name("triton.json").read_text())["kernels"]
    assert len(kernels) > 100
    assert {k for k, v in kernels.items() if v["spill_bytes"]} == set()


def test_compiled_triton_kernels_match_the_ledger(tmp_path: Path) -> None:
    """In a process of its own: here, triton may be the interpreter."""
    pytest.importorskip("triton", reason="triton is not installed")
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    path = os.pathsep.join([str(ROOT), env.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "tests.ledger.ledger", "--only", "triton", "--check", str(EVERY)],
        env=env | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": path},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


@pytest.fixture(scope="module")
def compiled() -> dict[str, dict[str, int]]:
    """The resources of all CUDA kernels; compiling them all takes minutes, unless it was done."""
    if missing := cuda.missing_tools():
        pytest.skip(f"CUDA kernels are not compiled: {missing}")
    cuda.build()
    return cuda.kernels()


def test_compiled_cuda_kernels_match_the_ledger(compiled) -> None:
    ledger = json.loads(cuda.LEDGER.read_text())
    if ledger["nvcc"] != cuda.compiler():
        print(f"not compared: the ledger is of nvcc {ledger['nvcc']}, here is {cuda.compiler()}")
    assert cuda.faults(compiled) == []


def test_every_cuda_source_is_in_the_ledger() -> None:
    """Also where there is no nvcc, and nothing in the ledger is worse than planned."""
    kernels = json.loads(cuda.LEDGER.read_text())["kernels"]
    folders = {file.parent.name for file in cuda.ROOT.glob("csrc/*/*.cu")}
    assert {name.split(":")[0] for name in kernels} == folders
    assert cuda.faults(kernels) == []
    for pattern, _ in cuda.DESIGNED:
        assert any(re.search(pattern, name) for name in kernels), pattern


def test_faults_are_found(compiled, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Local memory, too few blocks, more registers, a kernel that is gone."""
    name = next(name for name in compiled if "tree_attention_sm90" in name)
    usage = compiled[name]
    monkeypatch.setattr(cuda, "LEDGER", tmp_path / "cuda.json")
    cuda.write_ledger(compiled)
    assert cuda.faults(compiled) == []
    for change, message in (
        ({"local": 2}, "uses local memory"),
        ({"stack_bytes": 8}, "uses local memory"),
        ({"blocks": 0}, "fewer blocks to an SM than planned"),
        ({"hgmma": 0}, "designed to have hgmma"),
        ({"registers": usage["registers"] + 1}, "changed"),
    ):
        found = cuda.faults({**compiled, name: {**usage, **change}})
        assert any(message in fault and name in fault for fault in found)
    assert "-> None" in cuda.faults({k: v for k, v in compiled.items() if k != name})[0]
