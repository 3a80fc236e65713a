"""A replayed search keeps its promises, and its attention is that of its tree."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch

from bench import replay, tables
from bench.replay_run import Replay
from bench.roofline import Roofline
from bench.search import Search, forest_of
from bench.workloads import data

_SEARCH = Search("tiny", prompt=19, steps=4, live=(3, 5, 8), step_tokens=(1, 6, 20))


def test_a_search_is_born_grows_and_dies():
    steps = list(_SEARCH.run(seed=3))
    grown, alive = Counter(), {()}
    for step in steps:
        for path in step.dead:
            alive.remove(path)
        for path, count in step.forks:
            alive.remove(path)
            alive |= {(*path, child) for child in range(count)}
        assert step.live == sorted(alive)
        grown.update(step.live)
    assert max(map(len, grown)) == _SEARCH.steps
    assert min(grown.values()) >= 1 and max(grown.values()) <= 20
    assert any(step.dead for step in steps) and any(not s.is_new_topology for s in steps)
    assert steps == list(_SEARCH.run(seed=3)) != list(_SEARCH.run(seed=4))


@pytest.mark.parametrize("name", [name for name in data("replay") if name != "_"])
def test_published_searches_hold_the_live_branches(name: str):
    search = Search(name, **data("replay")[name])
    live = [len(step.live) for step in search.run(seed=0)]
    low, usual, high = search.live
    # At the end branches run out; until then their number is drawn.
    early = live[: len(live) // 2]
    assert low <= min(early) and max(live) <= high
    assert abs(np.mean(early) - usual) < (high - low) / 2


def test_forest_of_live_branches():
    sizes = {(): 9, (0,): 4, (1,): 5, (1, 0): 2, (1, 2): 3, (1, 2, 0): 1, (1, 2, 1): 6}
    forest, first = forest_of("test", sizes, [(0,), (1, 2, 0), (1, 2, 1)])
    # (1,) and (1, 2) have one live child each on the way and are one node; (1, 0) is dead.
    assert forest.parents == (-1, 0, 0, 2, 2)
    assert forest.sizes == (9, 4, 8, 1, 6)
    assert first == [(0,), (0,), (1, 2, 0), (1, 2, 0), (1, 2, 1)]


@pytest.mark.parametrize("reserve", [0, 5, 64])
def test_attention_of_every_step_is_right(reserve: int):
    torch.manual_seed(0)
    run = Replay(
        _SEARCH,
        (4, 2),
        64,
        torch.float32,
        torch.device("cpu"),
        reserve=reserve,
        num_pages=512,
        page_size=4,
    )
    steps = list(_SEARCH.run(seed=3))
    for step in steps:
        run.step(step)
        problem, ours = run.problem(max_bytes=1 << 30)
        lens = [19 + sum(run.sizes[p[: d + 1]] for d in range(len(p))) for p in step.live]
        assert problem.forest.kv_lens.tolist() == lens
        queries, expected = problem.definition()
        torch.testing.assert_close(ours()[queries].double(), expected, rtol=0, atol=1e-5)
    run.pool.check_integrity()
    assert len(run.plan_s) + len(run.update_s) == len(steps)
    # Without reserve every token needs a plan; with much only changes of the tree do.
    changes = sum(step.is_new_topology for step in steps)
    assert (len(run.plan_s) == len(steps)) if reserve == 0 else (len(run.update_s) > 0)
    assert reserve < 64 or len(run.plan_s) == changes


def test_command_replays_and_stores(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Roofline, "measure", lambda *_: Roofline(1e10, 1e11))
    file = tmp_path / "results" / "replay.json"
    arguments = "--dtype fp32 --heads 4/2 --head-dim 64 --max-steps 60 --samples 3 --rounds 1"
    argv = [*arguments.split(), "--search", "keyword", "--num-pages", "2048"]
    assert replay.main([*argv, "--json", str(file)]) == 0
    assert "keyword" in capsys.readouterr().out
    document = json.loads(file.read_text())
    (row,) = document["results"]
    assert (row["steps"], row["samples"]) == (60, 3)
    assert row["attention_s"] > 0 and row["plan_s_per_step"] > 0 and row["new_plans"] >= 1
    assert row["unique_tokens"] < row["path_tokens"]
    assert row["peers"]["sdpa"]["ratio"] > 0 and row["peers"]["cascade"]["samples"] == 3
    share = row["plan_s_per_step"] / (row["plan_s_per_step"] + 32 * row["attention_s"])
    assert row["plan_share"]["32"] == pytest.approx(share)
    head, _, line = tables.replay(document).splitlines()[-3:]
    assert head.count("|") == line.count("|") and "| keyword | 60 |" in line
