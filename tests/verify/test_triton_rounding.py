"""The Triton kernels as compiled for GPUs: every fp32 operation rounds as it does on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

# In a process of its own: in this one the kernels may belong to the interpreter.
_COMPILE = """
import json, re, struct, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from ttc_kernels.triton.row_descriptor import _describe
from ttc_kernels.triton.sample_tokens import _race

TYPES = {
    "logits": "*fp32", "stride": "i32", "vocab_size": "i32", "masks": "*i32",
    "temperatures": "*fp32",
    "top_ks": "*i32", "top_ps": "*fp32", "min_ps": "*fp32", "out": "*fp32",
    "descriptors": "*fp32", "seeds": "*i64", "positions": "*i64",
    "best_scores": "*fp32", "best_tokens": "*i32",
}
CASES = {
    _describe: ({"BLOCK": 4096, "MASKED": True}, 16),
    _race: ({"CHUNK": 8192, "BLOCK": 1024, "MASKED": True}, 4),
}

found, counts = {}, {}
for kernel, (constants, warps) in CASES.items():
    signature = {name: TYPES.get(name, "constexpr") for name in kernel.arg_names}
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    for fusion in (False, True):
        options = {"num_warps": warps, "enable_fp_fusion": fusion}
        target = GPUTarget("cuda", int(sys.argv[1]), 32)
        compiled = triton.compile(ASTSource(kernel, signature, values), target, options)
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
            counts.setdefault(f"{kernel.__name__} {fusion}", []).append(written)
        # Fused, flushed to zero, or approximated.
        inexact = re.findall(r"fma[.]\\S*f32|[.]ftz\\S*[.]f32|[.](?:approx|full)\\S*[.]f32", ptx)
        found[f"{kernel.__name__} {fusion}"] = inexact
print(json.dumps([found, counts]))
"""


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_nothing_is_fused_flushed_or_approximated(capability: int) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", _COMPILE, str(capability)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, counts = json.loads(done.stdout)
    assert len(set(counts["_describe False"])) == 1 and counts["_describe False"][0] > 0
    assert set(counts["_race False"]) == {0}
    assert found["_describe False"] == found["_race False"] == []
    # The control: as Triton compiles by default, it does fuse.
    assert found["_describe True"] and found["_race True"]
