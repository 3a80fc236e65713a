"""The Triton kernels as compiled for GPUs: every fp32 operation rounds as it does on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# In a process of its own: in this one the kernels may belong to the interpreter.
_COMPILE = """
import json, re, struct, sys
from tests.ledger.ledger import compile_launch, launches, small_ops

found, counts = {}, {}
for name in ("row_descriptor", "sample_tokens", "verify rejection dense", "verify typical"):
    kernel, arguments, options = launches(small_ops()[f"{name} logits=float32"])[0]
    for fusion in (False, True):
        launch = kernel, arguments, {**options, "enable_fp_fusion": fusion}
        if fusion and name.startswith("verify"):
            continue
        compiled = compile_launch(launch, int(sys.argv[1]))
        ptx = compiled.asm["ptx"]
        # Constants that stand in registers, single or, on newer GPUs, in pairs.
        known = dict(re.findall(r"mov[.]b32\\s+(%r\\d+), (0f[0-9A-F]+);", ptx))
        for pair, one, other in re.findall(r"mov[.]b64\\s+(%rd\\d+), {(%r\\d+), (%r\\d+)};", ptx):
            if one == other and one in known:
                known[pair] = known[one]
        ptx = re.sub(r"%rd?\\d+(?=;)", lambda match: known.get(match[0], match[0]), ptx)
        # The multiply-adds that exp2_fp32 is written with, as many of each coefficient.
        for coefficient in (0.0096715130, 0.055507336, 0.24022242, 0.69314700, 1.0):
            bits = struct.pack(">f", coefficient).hex().upper()
            ptx, written = re.subn(rf"fma[.]rn[.]f32(?:x2)? .*, 0f{bits};", "", ptx)
            counts.setdefault(f"{name} {fusion}", []).append(written)
        # Fused, flushed to zero, or approximated.
        inexact = re.findall(r"fma[.]\\S*f32|[.]ftz\\S*[.]f32|[.](?:approx|full)\\S*[.]f32", ptx)
        found[f"{name} {fusion}"] = inexact
print(json.dumps([found, counts]))
"""


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_nothing_is_fused_flushed_or_approximated(capability: int) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", _COMPILE, str(capability)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, counts = json.loads(done.stdout)
    # The control: as Triton compiles by default, it does fuse.
    assert {name for name in found if found[name]} == {"row_descriptor True", "sample_tokens True"}
    assert len(found) == 6
    for name in ("row_descriptor", "verify rejection dense", "verify typical"):
        assert len(set(counts[f"{name} False"])) == 1 and counts[f"{name} False"][0] > 0
    assert set(counts["sample_tokens False"]) == {0}
