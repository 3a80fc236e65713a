"""The project's CUDA kernels under the sanitizers and the race check.

Their own tests run again, in a python that the sanitizers can watch, or with the race build: a part
of the cases, since every access costs some ten times as much.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.emulator.build import ROOT, preload

ATTENTION = "tests/tree_attention/test_backends.py"
KERNELS = {
    "tree_attention": (
        [ATTENTION, "tests/tree_attention/test_emulated.py"],
        "(sm80 or sm90) and ("
        "(test_every_dtype_and_head_dim and dtype2 and (64 or 96)) or test_page_sizes"
        " or (test_query_lengths and dtype2 and not 300) or (test_draft_trees and dtype2)"
        " or test_empty_rows or test_chain_of_one_token_nodes"
        " or (test_float8_caches and dtype1 and (64 or 96))"
        " or test_blocks_in_any_order_and_number)",
        20,
    ),
    "kv_cache": (["tests/kv_cache/test_kv_cache_cuda.py"], "", 20),
    "verify": (
        ["tests/verify/test_verify_cuda.py"],
        "test_descriptors_of_the_cpu and (63 or 1504) and dtype1 or test_cuts or test_children"
        " or test_log_prob or test_batch_order or test_no_requests or test_tokens and dtype2",
        14,
    ),
    "merge_states": (["tests/merge_states/test_merge_states_cuda.py"], "", 10),
    "step_score": (["tests/step_score/test_step_score_cuda.py"], "not 16500", 40),
}


@pytest.mark.parametrize("variant", ["race", "sanitize"])
@pytest.mark.parametrize("op", sorted(KERNELS))
def test_kernels_are_clean(op: str, variant: str) -> None:
    files, chosen, at_least = KERNELS[op]
    checks = preload() if variant == "sanitize" else {"TTC_EMULATOR": variant}
    # No plugins or options of the surrounding run; -rA names what ran.
    command = [sys.executable, "-m", "pytest", "-x", "-rA", "-p", "no:cacheprovider", *files]
    if chosen:
        command += ["-k", chosen]
    result = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **checks}, capture_output=True, text=True
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-6000:]
    assert result.stdout.count("\nPASSED ") >= at_least
