"""Every contender computes the same attention, and the command measures and stores it."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch

from bench import measure, tree_attention
from bench.devices import make_clock
from bench.forest import Forest
from bench.peers import (
    Ours,
    Problem,
    Skip,
    build_cascade,
    build_flex,
    build_sdpa,
    build_two_level_cascade,
    make_problem,
)
from bench.peers.base import Run
from bench.roofline import Gauge, Roofline
from bench.timing import Timing, in_turn
from bench.tree import parse_tree
from ttc_kernels import reference

# A root that ends in mid-page, uneven sizes, a forest of two roots with one-token nodes, leaves
# unevenly spread; and rows of several queries, of different depth, in draft trees.
_SHAPES = ("1,2,4x9,17,3", "2,4,8x5,1,20", "1,2,3x4,4,4")
_RAGGED = {
    "extend": Forest("test", "extend", (-1, 0, 0, 2, 2), (9, 7, 16, 3, 30), (5, 3, 20)),
    "draft": Forest("test", "draft", (-1, -1, 0, 1), (9, 9, 4, 4), (4, 4), (-1, 0, 1, 0)),
    "empty": Forest("test", "empty", (-1, 0, 1, 1, 0), (19, 0, 5, 0, 20)),
}
_BUILD = {
    "ours": Ours,
    "sdpa": build_sdpa,
    "cascade": build_cascade,
    "two-level": build_two_level_cascade,
}


def _problem(shape: str, dtype: torch.dtype = torch.float32) -> Problem:
    forest = _RAGGED.get(shape) or parse_tree(shape)
    return make_problem(forest, (8, 2), 64, dtype, max_bytes=1 << 30)


def _definition(problem: Problem) -> torch.Tensor:
    """The reference on pages of one token: block tables are then the paths themselves."""
    forest = problem.forest
    pages = forest.pages(page_size=1)
    tokens = torch.from_numpy(pages.page_tokens)
    k_cache, v_cache = (x.transpose(0, 1)[tokens] for x in (problem.k, problem.v))
    draft = None
    if forest.draft_parents is not None:
        draft = [list(forest.draft_parents)] * forest.num_rows
    tables = [table[:n] for table, n in zip(pages.block_tables, pages.kv_lens, strict=True)]
    out, _ = reference.tree_attention(
        problem.q, k_cache, v_cache, tables, pages.kv_lens, forest.query_counts, draft
    )
    return out


def _check(run: Run, problem: Problem) -> None:
    tolerance = 2e-5 if problem.q.dtype == torch.float32 else 2e-2
    torch.testing.assert_close(run().double(), _definition(problem), rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [*_SHAPES, *_RAGGED])
@pytest.mark.parametrize("name", _BUILD)
def test_contender_agrees_with_the_reference(name: str, shape: str, dtype: torch.dtype):
    problem = _problem(shape, dtype)
    _check(_BUILD[name](problem), problem)


@pytest.mark.parametrize("shape", [*_SHAPES, *_RAGGED])
def test_definition_of_the_benchmark_is_the_reference(shape: str):
    problem = _problem(shape)
    queries, out = problem.definition(count=7)
    assert 2 <= len(queries) <= 7
    torch.testing.assert_close(out, _definition(problem)[queries], rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", ["1,2,4x9,150,3", "draft"])
def test_flex_agrees_with_the_reference(shape: str):
    problem = _problem(shape)
    try:
        run = build_flex(problem)
    except Skip as reason:
        pytest.skip(f"flex {reason}")
    _check(run, problem)


@pytest.mark.parametrize("runs", [[(0, 0), (1, 1), (2, 2)], [(0, 1), (2, 2)], [(0, 0), (1, 2)]])
def test_every_cut_of_the_cascade_agrees(runs: list, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("bench.peers.cascade._choose_runs", lambda problem, two_levels: runs)
    problem = _problem(_SHAPES[0])
    _check(build_cascade(problem), problem)


def test_peers_say_why_they_skip():
    small = make_problem(parse_tree("1,2,4x50,50,4"), (8, 2), 64, torch.float32, max_bytes=1000)
    with pytest.raises(Skip, match=r"needs .* GiB"):
        build_sdpa(small)
    with pytest.raises(Skip, match="too much memory"):
        build_two_level_cascade(small)


def test_floor_is_the_larger_of_reading_and_multiplying():
    # 1 root of 10 tokens, 2 leaves of 5: 20 unique tokens, 30 on paths.
    tree = parse_tree("1,2x10,5")
    reading = Roofline(bytes_per_s=1.0, flops_per_s=1e30)
    assert reading.floor_s(tree, (4, 2), 8, itemsize=2) == 2 * 20 * 2 * 8 * 2
    # A query more on each leaf: it sees all 15 tokens, the one before it 14.
    two = Forest("test", "two", (-1, 0, 0), (10, 5, 5), (2, 2))
    assert reading.floor_s(two, (4, 2), 8, itemsize=2) == 2 * 20 * 2 * 8 * 2
    assert Roofline(1e30, 1.0).floor_s(two, (4, 2), 8, 2) == 4 * 2 * (14 + 15) * 4 * 8
    multiplying = Roofline(bytes_per_s=1e30, flops_per_s=1.0)
    assert multiplying.floor_s(tree, (4, 2), 8, itemsize=2) == 4 * 30 * 4 * 8


def test_model_adds_what_a_plan_costs():
    stats = {"kv_bytes": 100, "partials": 3, "flops": 7}
    partial_bytes = 2 * 4 * 3 * 4 * (8 + 2)
    assert Roofline(1.0, 1e30).model_s(stats, (4, 2), 8, launches=2) == 100 + partial_bytes
    assert Roofline(1e30, 1.0, 5.0).model_s(stats, (4, 2), 8, launches=2) == 7 + 2 * 5.0


def test_a_cpu_is_gauged_beside_its_contenders_and_a_gpu_beforehand():
    first = Roofline(1.0, 2.0)
    gauge = Gauge(torch.float32, torch.device("cpu"), first)
    assert list(gauge.contenders()) == ["read", "product"]
    limit = gauge.roofline({"read": Timing(0.5, 0.1, 1.0), "product": Timing(2.0, 1.0, 3.0)})
    assert limit.bytes_per_s == 4 * (1 << 26) / 0.5 and limit.flops_per_s == 2 * 2048**3 / 2.0
    gauge = Gauge(torch.float32, torch.device("cuda"), first)
    assert gauge.contenders() == {} and gauge.roofline({}) is first


def test_contenders_take_turns():
    calls: list[str] = []
    timings = in_turn({n: lambda n=n: calls.append(n) for n in "ab"}, rounds=2, warmup=0)
    assert calls == ["a", "b", "b", "a"]
    assert all(0 < t.low <= t.median <= t.high for t in timings.values())


def test_ratios_are_of_the_same_rounds():
    one, twice = Timing.of([1.0, 1.0, 4.0, 4.0, 4.0]), Timing.of([2.0, 2.0, 2.0, 8.0, 8.0])
    assert twice.median == one.median / 2 and twice.over(one) == 2
    assert asdict(one) == {"median": 4.0, "low": 1.0, "high": 4.0}


@pytest.fixture
def no_roofline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring the machine takes seconds and is not what these tests are about."""
    monkeypatch.setattr(Roofline, "measure", lambda *_: Roofline(1e10, 1e11))


@pytest.mark.usefixtures("no_roofline")
def test_command_measures_a_tree_and_stores_it(tmp_path, capsys):
    file = tmp_path / "results" / "tree.json"
    arguments = "--dtype fp32 --heads 8/2 --head-dim 64 --rounds 2 --peers sdpa cascade"
    argv = [*arguments.split(), "--trees", _SHAPES[0], "--json", str(file)]
    assert tree_attention.main(argv) == 0
    assert _SHAPES[0] in capsys.readouterr().out
    document = json.loads(file.read_text())
    (result,) = document["results"]
    assert result["unique_tokens"] == 9 + 34 + 12
    assert result["ours"]["median"] > 0
    assert result["peers"]["sdpa"]["ratio"] > 0
    assert result["peers"]["cascade"]["max_abs_error"] < 1e-5
    assert document["machine"]["versions"]["torch"]


@pytest.mark.usefixtures("no_roofline")
def test_command_tells_of_a_peer_that_disagrees(
    monkeypatch: pytest.MonkeyPatch, tmp_path, capsys: pytest.CaptureFixture
):
    wrong = {"sdpa": lambda problem: lambda: problem.q * float("nan"), "cascade": build_cascade}
    monkeypatch.setitem(measure.PEERS, "cpu", wrong)
    file = tmp_path / "tree.json"
    argv = ["--dtype", "fp32", "--trees", _SHAPES[0], "--json", str(file)]
    assert tree_attention.main(argv) == 1
    assert "sdpa on 1,2,4x9,17,3, fp32: must be within" in capsys.readouterr().err
    (result,) = json.loads(file.read_text())["results"]
    assert result["peers"]["sdpa"]["seconds"] is None
    assert result["peers"]["cascade"]["ratio"] > 0


@pytest.mark.usefixtures("no_roofline")
def test_command_tells_if_ours_disagrees(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Ours, "__call__", lambda self: self._problem.q + 1)
    argv = ["--dtype", "fp32", "--trees", _SHAPES[0], "--peers"]
    assert tree_attention.main(argv) == 1


@pytest.mark.usefixtures("no_roofline")
def test_command_refuses_unknown_peers():
    with pytest.raises(SystemExit, match="--peers: on cpu there are"):
        tree_attention.main(["--peers", "fi cascade"])
    with pytest.raises(SystemExit):
        tree_attention.main(["--peers", "nonsense"])


@pytest.mark.usefixtures("no_roofline")
@pytest.mark.parametrize("name", ["35", "-1", "some", "1,2x"])
def test_command_refuses_unknown_trees(name: str):
    with pytest.raises((SystemExit, ValueError), match=r"--trees|parse_tree"):
        tree_attention.main([f"--trees={name}"])


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [_SHAPES[0], "1,8,64x300,40,5"])
def test_command_on_a_gpu(device: torch.device, shape: str, tmp_path):
    file = tmp_path / "tree.json"
    arguments = f"--device cuda --dtype bf16 --trees {shape} --rounds 2 --json {file}"
    peers = ["sdpa", "cascade", "two-level"]
    assert tree_attention.main([*arguments.split(), "--peers", *peers]) == 0
    document = json.loads(file.read_text())
    (result,) = document["results"]
    assert list(result["modes"]) == ["graph", "graph warm", "eager", "eager warm"]
    assert all(result["peers"][name]["ratio"] > 0 for name in peers)
    assert document["machine"]["gpu"] and document["roofline"]["bf16"]["bytes_per_s"] > 1e11


@pytest.mark.gpu
def test_cuda_clock_measures_a_copy(device: torch.device):
    data = torch.randn(1 << 27, device=device)
    other = torch.empty_like(data)
    clock = make_clock(device)
    timings = {m: in_turn({"copy": lambda: other.copy_(data)}, 5, clock=clock, mode=m)["copy"]
               for m in clock.modes}  # fmt: skip
    rates = [2 * data.nbytes / timing.median for timing in timings.values()]
    assert min(rates) > 0.5 * max(rates), "half a GiB is no more than a copy in any mode"
