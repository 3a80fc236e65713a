"""The guide's example of a strategy from scratch runs as printed."""

from __future__ import annotations

import random
import re
from pathlib import Path

from ttc_runtime.strategies import STRATEGIES

GUIDE = (Path(__file__).parents[3] / "docs" / "strategies.md").read_text()


def test_the_example_runs(capsys):
    [code] = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    space: dict = {"__name__": "__main__"}
    exec(compile(code, "docs/strategies.md", "exec", dont_inherit=True), space)
    answer, generated, recomputed = capsys.readouterr().out.split()
    assert int(answer) == (417 + 5) * 3 % 1000 and int(recomputed) == 0
    assert 0 < int(generated) <= 2000
    result = space["result"]
    assert result.strategy == "stochastic_beam" and len(result.branches) == 8
    counts = space["Drawn"](2)([0.9, 0.1, 0.8, float("nan")], 5, random.Random(0))
    assert sorted(counts) == [0, 0, 2, 3]


def test_the_table_names_every_strategy():
    rows = dict(re.findall(r"^\| `(\w+)` \| `(\w+)` \|", GUIDE, re.MULTILINE))
    assert rows == {name: kind.__name__ for name, kind in STRATEGIES.items()}
