"""Examples of the front pages run, and what the guide for kernel authors names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GUIDE = (ROOT / "docs" / "kernels.md").read_text()


@pytest.mark.parametrize("page", ["README.md", "docs/design.md"])
def test_examples_run(page: str, capsys: pytest.CaptureFixture):
    examples = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    assert examples
    for code in examples:
        exec(compile(code, page, "exec", dont_inherit=True), {})
        printed = capsys.readouterr().out
        for told in re.findall(r"^print\(.*\)  # ([\d ]+of [\d ]+)$", code, re.M):
            assert told in printed


def test_files_of_the_guide_exist():
    named = re.findall(r"`((?:csrc|tests|bench|ttc_kernels|docs)/[\w./*-]+)`", GUIDE)
    assert len(named) > 15
    assert [name for name in named if not list(ROOT.glob(name.rstrip("/")))] == []


def test_the_guide_explains_the_ledger():
    from tests.ledger import cuda

    rows = [line for line in GUIDE.splitlines() if line.startswith("| `")]
    keys = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    untold = {"global_atomics", "barriers", "mbarriers"}  # which speak for themselves
    assert set(cuda.INSTRUCTIONS) - keys == untold


def test_commands_of_the_guide_parse():
    from bench import gpu, moves, tree_attention

    parsers = {"bench.tree_attention": tree_attention, "bench.moves": moves}
    found = re.findall(r"^(?:TTC_CUDA=0 )?python -m (bench\.\w+) ([^#\n]*)", GUIDE, re.M)
    assert len(found) >= 3
    for module, arguments in found:
        parsers[module].parser().parse_args(arguments.split())
    for arguments in re.findall(r"^bash bench/gpu.sh( [^#\n]*)", GUIDE, re.M):
        gpu.parser().parse_args(arguments.split())
