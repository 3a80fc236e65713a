"""score_steps on the CPU reads each weight once, and of hidden states only the rows it scores."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KINDS = {"two_logit": 0, "value": 1, "raw": 2, "token_pair": 3, "softmax": 4}  # as in step_score.h
TOKENS = 300


@pytest.fixture(scope="module")
def bytes_read(tmp_path_factory):
    """A function of a case to the bytes read of hidden states, first and second weights."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to compile the counter with")
    program = tmp_path_factory.mktemp("count") / "count_bytes"
    source = Path(__file__).with_name("count_bytes.cpp")
    command = [compiler, "-std=c++20", "-O1", "-I", ROOT / "csrc", source, "-o", program]
    subprocess.run(list(map(str, command)), check=True)

    def run(kind: str, outputs: int, width: int, steps: int, value: str = "1.5") -> list[int]:
        arguments = [program, KINDS[kind], outputs, width, TOKENS, steps, value]
        done = subprocess.run(list(map(str, arguments)), check=True, capture_output=True, text=True)
        return [int(word) for word in done.stdout.split()]

    return run


@pytest.mark.parametrize("steps", [1, 5, 70, 200])
@pytest.mark.parametrize(
    ("kind", "outputs", "width"),
    [
        ("two_logit", 200, 1100),
        ("value", 1, 1100),
        ("raw", 1, 512),
        ("token_pair", 2, 1000),
        ("softmax", 3, 700),
        ("softmax", 4500, 70),
    ],
)
def test_weights_once_and_only_the_rows_scored(bytes_read, kind, outputs, width, steps) -> None:
    second = 2 * outputs if kind == "two_logit" else 0
    want = [2 * steps * width, 2 * outputs * width, 2 * second]
    assert bytes_read(kind, outputs, width, steps) == want


def test_the_counter_sees_a_second_read(bytes_read) -> None:
    """Rows whose squares overflow float32 are read again for their norm: it must show."""
    assert bytes_read("value", 1, 512, 4, "1e30")[0] == 2 * (2 * 4 * 512)
