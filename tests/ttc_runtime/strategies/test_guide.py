"""The guide's example of a strategy from scratch runs as printed."""

from __future__ import annotations

import random
import re
from pathlib import Path

from ttc_runtime import cli
from ttc_runtime.strategies import STRATEGIES, make_strategy, parse_strategy
from ttc_runtime.strategies.named import parse_settings

GUIDE = (Path(__file__).parents[3] / "docs" / "strategies.md").read_text()


SCRATCH, CALIBRATION = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


def run(code):
    space: dict = {"__name__": "__main__"}
    exec(compile(code, "docs/strategies.md", "exec", dont_inherit=True), space)
    return space


def test_the_example_runs(capsys):
    space = run(SCRATCH)
    answer, generated, recomputed = capsys.readouterr().out.split()
    assert int(answer) == (417 + 5) * 3 % 1000 and int(recomputed) == 0
    assert 0 < int(generated) <= 2000
    result = space["result"]
    assert result.strategy == "stochastic_beam" and len(result.branches) == 8
    counts = space["Drawn"](2)([0.9, 0.1, 0.8, float("nan")], 5, random.Random(0))
    assert sorted(counts) == [0, 0, 2, 3]


def test_calibration_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    space = run(CALIBRATION)
    table = space["table"]
    assert len(table.trials) == 6 and set(table.allocate()) <= {"few", "many"}
    spent = [t.tokens[label] for t, label in zip(table.trials, table.held_out(2, 200), strict=True)]
    accuracy, tokens = table.cross_validate(2, tokens=200)
    assert f"({accuracy}, {tokens})" in capsys.readouterr().out and tokens == sum(spent) / 6
    assert space["result"].info["route"] == table.choose(space["result"].info["difficulty"], 200)


def test_commands_parse():
    """Their options are the commands', and what is set is a setting of the strategy."""
    import shlex

    from typer.main import get_command

    commands = get_command(cli.app).commands
    found = re.findall(r"^ttc (\w+) ((?:.*\\\n)*.*)$", GUIDE, re.MULTILINE)
    assert [name for name, _ in found] == ["solve", "solve", "calibrate", "solve"]
    for name, arguments in found:
        words = shlex.split(arguments.replace("\\\n", " "))
        context = commands[name].make_context(name, words)
        if name == "solve" and context.params["strategy"] != "compute_optimal":
            settings = parse_settings(context.params["setting"])
            make_strategy(context.params["strategy"], context.params["n"], **settings)
        elif name == "calibrate":
            assert len([parse_strategy(w) for w in context.params["strategies"].split(",")]) == 3


def test_the_table_names_every_strategy():
    rows = dict(re.findall(r"^\| `(\w+)` \| `(\w+)` \|", GUIDE, re.MULTILINE))
    assert rows == {name: kind.__name__ for name, kind in STRATEGIES.items()}
