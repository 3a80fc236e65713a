"""Verification takes a few floats a row: measured as the process's peak memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

_MEASURE = r"""
import re, sys
import torch
from ttc_kernels import DraftTree, RowFilters, VerifyResult, verify_sampled, verify_target_only

def peak():  # of this program; ru_maxrss would begin with that of the one that started it
    return int(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1]) * 1024

torch.set_num_threads(2)
rows, vocab_size, rule = 512, 151_936, sys.argv[1]
logits = torch.empty(rows, vocab_size, dtype=torch.bfloat16)
piece = (2 * torch.randn(vocab_size)).bfloat16()
for r in range(rows):
    logits[r] = piece.roll(r)
tree = DraftTree([-1, 0, 0, 1, 1, 2, 3, 3] * 64, list(range(0, rows + 1, 8)))
tokens = torch.zeros(rows, dtype=torch.int32)
small = DraftTree([-1, 0], [0, 2])
arguments = (RowFilters(0.7, top_p=0.9), tokens[:2], small, 0, 0)
verify_sampled(logits[:2], *arguments)  # threads and their buffers
torch.softmax(logits[:2].float(), -1)
before = peak()
if rule == "torch":
    torch.softmax(logits.float(), -1)
else:
    op = {"sampled": verify_sampled, "target_only": verify_target_only}[rule]
    op(logits, RowFilters(0.7, top_p=0.9), tokens, tree, 0, 0)
print(peak() - before)
"""


def extra_bytes(rule: str) -> int:
    command = [sys.executable, "-c", _MEASURE, rule]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize("rule", ["sampled", "target_only"])
def test_extra_memory_is_a_few_floats_a_row(rule: str) -> None:
    # 512 descriptors are 18 KiB. Probabilities of all rows would be 311 MB.
    assert extra_bytes(rule) < 4 << 20


def test_the_control_shows() -> None:
    assert extra_bytes("torch") > 300 << 20
