"""The resources of the compiled Triton kernels are those in the ledger, and nothing spills."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EVERY = 5  # of the entries, spread over dtypes, head dims and architectures, is compiled again


def test_no_entry_spills() -> None:
    kernels = json.loads(Path(__file__).with_name("ledger.json").read_text())["kernels"]
    assert len(kernels) > 100
    assert {k for k, v in kernels.items() if v["spill_bytes"]} == set()


def test_compiled_kernels_match_the_ledger(tmp_path: Path) -> None:
    """In a process of its own: here, triton may be the interpreter."""
    pytest.importorskip("triton", reason="triton is not installed")
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    path = os.pathsep.join([str(ROOT), env.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "tests.ledger.ledger", "--check", str(EVERY)],
        env=env | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": path},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
