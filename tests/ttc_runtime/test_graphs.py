"""Passes from static buffers: sizes, padding, growth, captures that fail, and whole searches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import ARCHITECTURES
from torch.utils._python_dispatch import TorchDispatchMode
from ttc_runtime import BestOfN, Greedy, SamplingParams
from ttc_runtime.batch import Batch, Rows
from ttc_runtime.graphs import LARGEST, CalledAgain, GraphRunner
from ttc_runtime.models import PagedModel

OPTIONS = {
    "page_size": 16,
    "num_q_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 64,
    "dtype": torch.float32,
    "device": torch.device("cpu"),
    "deterministic": True,
}
SHORT = SamplingParams(max_tokens=24)
PROBLEMS = [f"{a}+{b}*3=\n" for a, b in ((12, 34), (99, 7), (5, 61))]


def rows_of(kv_lens, q_lens=None, keep=None) -> Rows:
    """Rows with pages of their own; the tokens are numbered."""
    kv_lens = np.array(kv_lens, np.int32)
    q_lens = np.ones_like(kv_lens) if q_lens is None else np.array(q_lens, np.int32)
    total = int(q_lens.sum())
    pages = -(-int(kv_lens.max()) // 16)
    tables = np.arange(len(kv_lens) * pages, dtype=np.int32).reshape(-1, pages)
    ids = np.arange(total, dtype=np.int64)
    keep = ids if keep is None else np.array(keep)
    return Rows(ids, ids + 5, (ids + 9).astype(np.int32), tables, kv_lens, q_lens, keep)


def test_padding_is_a_row_that_sees_and_writes_nothing():
    batch = Batch(8, 4, OPTIONS, refillable=False)
    assert not batch.fill(rows_of([20, 30, 40], [1, 1, 3], keep=[0, 4]))
    assert batch.token_ids.tolist() == [0, 1, 2, 3, 4, 0, 0, 0]
    assert batch.positions.tolist() == [5, 6, 7, 8, 9, 0, 0, 0]
    assert batch.slots.tolist() == [9, 10, 11, 12, 13, -1, -1, -1]
    assert batch.keep.tolist() == [0, 4, 0, 0]
    plan = batch.plan(-1)
    assert plan.num_queries == 8 and plan.stats["path_kv_tokens"] == 90
    assert batch.plan(-1) is plan and batch.plan(7) is not plan


def test_refilling_keeps_every_address_until_a_plan_must_grow():
    batch = Batch(8, 8, OPTIONS, refillable=True)
    batch.fill(rows_of([20, 30]))
    plan = batch.plan(-1)
    addresses = batch.token_ids.data_ptr(), batch.keep.data_ptr(), plan.buffer.data_ptr()

    stats = plan.stats
    assert not batch.fill(rows_of([21, 31]))  # on the same pages: lengths alone are rewritten
    assert plan.stats is stats
    assert not batch.fill(rows_of([21, 33]))  # a new page: planned again
    assert plan.stats is not stats and plan.stats["path_kv_tokens"] == 54
    assert not batch.fill(rows_of([700] * 8))  # all rows, no padding
    assert batch.plan(-1) is plan and plan.num_queries == 8
    assert addresses == (
        batch.token_ids.data_ptr(), batch.keep.data_ptr(), plan.buffer.data_ptr()
    )  # fmt: skip

    assert batch.fill(rows_of([5000] * 8))
    grown = batch.plan(-1)
    assert grown is not plan and grown.stats["path_kv_tokens"] == 40_000
    assert not batch.fill(rows_of([5001] * 8)) and batch.plan(-1) is grown
    with pytest.raises(ValueError, match="block_tables"):  # what is wrong otherwise is raised
        broken = rows_of([40] * 3)
        batch.fill(Rows(*list(vars(broken).values())[:4], broken.kv_lens + 90, *[
            broken.q_lens, broken.keep]))  # fmt: skip


def numbered(batch: Batch) -> torch.Tensor:
    """A model: the output of each token is its id, then its position."""
    batch.plan(-1)
    return torch.stack((batch.token_ids, batch.positions), 1)[batch.keep.long()]


def test_sizes_and_which_passes_have_a_graph():
    runner = GraphRunner(numbered, OPTIONS, 1, CalledAgain)
    sizes = [runner.size_for(rows_of([40] * n)) for n in (1, 2, 3, 5, 200, LARGEST, LARGEST + 1)]
    assert sizes == [1, 2, 4, 8, 256, LARGEST, None]
    assert runner.size_for(rows_of([40, 40], [1, 2])) is None
    padded = GraphRunner(numbered, OPTIONS, 64, CalledAgain)
    assert [padded.size_for(rows_of([40] * n)) for n in (1, 64, 65, 129)] == [64, 64, 128, 256]
    assert GraphRunner(numbered, OPTIONS, 64, None).size_for(rows_of([40])) is None


def test_every_pass_gives_its_rows_outputs():
    runner = GraphRunner(numbered, OPTIONS, 16, CalledAgain)
    graphs = set()
    for count in (3, 16, 1, 40, 7, 300, 3):
        rows = rows_of([30 + count] * count)
        for _ in range(2):  # captured, then replayed
            out = runner.run(rows)
            assert out[:, 0].tolist() == list(range(count))
            assert out[:, 1].tolist() == list(range(5, 5 + count))
        graphs.add(runner._steps[runner.size_for(rows)].graph)
    assert len(graphs) == 3 and None not in graphs
    mixed = runner.run(rows_of([40, 60, 9], [1, 30, 9], keep=[0, 30, 39]))
    assert mixed[:, 0].tolist() == [0, 30, 39]
    assert len(runner.run(rows_of([40] * 3, keep=np.array([], np.int64)))) == 0
    assert len(runner.run(rows_of([40] * (LARGEST + 3)))) == LARGEST + 3
    report = runner.report()
    assert report.pop("other").startswith("eager: passes with prompts")
    assert report == {"16 rows": "graph", "64 rows": "graph", "512 rows": "graph"}


def test_a_graph_whose_plan_moved_is_captured_again():
    runner = GraphRunner(numbered, OPTIONS, 16, CalledAgain)
    runner.run(rows_of([40] * 4))
    first = runner._steps[16].graph
    runner.run(rows_of([900] * 4))
    assert runner._steps[16].graph is first
    assert runner.run(rows_of([9000] * 16))[:, 0].tolist() == list(range(16))
    assert runner._steps[16].graph not in (None, first)


def test_a_capture_that_fails_leaves_the_step_eager_and_says_why():
    calls = []

    def refuse(function):
        calls.append(function)
        raise RuntimeError("operation not permitted when stream is capturing")

    runner = GraphRunner(numbered, OPTIONS, 16, refuse)
    for count in (3, 4, 20, 5):
        assert runner.run(rows_of([40] * count))[:, 0].tolist() == list(range(count))
    assert len(calls) == 2  # once for each size, not at every step
    reason = "eager: RuntimeError: operation not permitted when stream is capturing"
    assert runner.report()["16 rows"] == runner.report()["32 rows"] == reason


def test_errors_of_the_model_itself_are_not_swallowed():
    def broken(batch):
        raise RuntimeError("this architecture is not supported")

    with pytest.raises(RuntimeError, match="not supported"):
        GraphRunner(broken, OPTIONS, 16, CalledAgain).run(rows_of([40]))


def tree_of(result):
    return [(b.path, b.tokens, b.logprobs, b.step_scores, b.stop_reason) for b in result.branches]


def with_static_buffers(engine):
    """The engine, with decoding steps from static buffers on whatever backend it has."""
    for model in (engine.policy.lane.model, engine.reward.model):
        model.runner._capture = CalledAgain
    return engine


@pytest.mark.parametrize("strategy", [Greedy(SHORT), BestOfN(6, sampling=SHORT)])
@pytest.mark.parametrize("deterministic", [True, False])
def test_searches_from_static_buffers_give_the_same_trees(make_engine, strategy, deterministic):
    plain = make_engine(deterministic=deterministic)
    engine = with_static_buffers(make_engine(deterministic=deterministic))
    expected = plain.solve_all(PROBLEMS, strategy, seed=1)
    for result, want in zip(engine.solve_all(PROBLEMS, strategy, seed=1), expected, strict=True):
        if deterministic:
            assert tree_of(result) == tree_of(want)
        assert [b.tokens for b in result.branches] == [b.tokens for b in want.branches]
        assert result.usage.recomputed == 0
    assert "graph" in engine.graph_report()["policy"].values()
    assert plain.graph_report()["policy"] == {"all": "eager: the cpu backend has no graphs"}


class NoHostData(TorchDispatchMode):
    """Refuses what cannot be captured: values read by the host, and tensors made from its data."""

    refused = ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "unique")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(name in str(function) for name in self.refused):
            raise RuntimeError(f"{function} waits for the host")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_step_waits_for_nothing_between_its_layers(make_engine, tiny_model, architecture):
    def capture(function):
        with NoHostData():
            return CalledAgain(function)

    engine = with_static_buffers(make_engine(model=tiny_model(architecture)))
    for model in (engine.policy.lane.model, engine.reward.model):
        model.runner._capture = capture
    engine.solve(PROBLEMS[0], Greedy(SHORT))
    assert engine.graph_report()["policy"]["64 rows"] == "graph"
    with NoHostData(), pytest.raises(RuntimeError, match="_local_scalar_dense"):  # the control
        torch.ones(1).item()


def test_windows_have_plans_of_their_own_in_static_buffers(make_engine, tiny_model):
    model, strategy = tiny_model("Gemma2"), BestOfN(4, sampling=SHORT)
    want = make_engine(model=model).solve(PROBLEMS[0], strategy)
    engine = with_static_buffers(make_engine(model=model))
    assert tree_of(engine.solve(PROBLEMS[0], strategy)) == tree_of(want)
    steps = engine.policy.lane.model.runner._steps
    assert [len(step.batch._plans) for step in steps.values()] == [2]


@pytest.mark.gpu
def test_a_gpu_gives_the_same_trees_in_any_company(device, make_engine):
    strategy = BestOfN(30, sampling=SHORT)
    engine = make_engine(device=device)
    together = engine.solve_all(PROBLEMS, strategy, seed=2)
    for result, problem in zip(together, PROBLEMS, strict=True):
        alone = make_engine(device=device).solve(problem, strategy, seed=2)
        assert tree_of(result) == tree_of(alone)
        assert result.usage.recomputed == 0
    report = engine.graph_report()["policy"]
    assert report.pop("other") and set(report.values()) == {"graph"}


@pytest.mark.gpu
def test_greedy_on_a_gpu_equals_the_cpu(device, make_engine):
    for deterministic in (True, False):
        results = make_engine(device=device, deterministic=deterministic).solve_all(
            PROBLEMS, Greedy(SHORT)
        )
        expected = make_engine().solve_all(PROBLEMS, Greedy(SHORT))
        for result, want in zip(results, expected, strict=True):
            assert result.branches[0].tokens == want.branches[0].tokens


def test_devices_and_backends(tiny_model):
    directory = tiny_model("Llama")
    for arguments, message in (
        ({"device": "tpu"}, "device: expected 'auto', 'cpu' or 'cuda', got 'tpu'"),
        ({"backend": "fast"}, "backend: expected 'auto', 'cpu' or 'triton', got 'fast'"),
    ):
        with pytest.raises(ValueError, match=message):
            PagedModel(directory, **arguments)
    if torch.cuda.is_available():
        with pytest.raises(ValueError, match="backend: 'cpu' cannot run on 'cuda'"):
            PagedModel(directory, device="cuda", backend="cpu")
    else:
        with pytest.raises(ValueError, match="torch sees no CUDA GPU"):
            PagedModel(directory, device="cuda")
    model = PagedModel(directory, device="cpu")
    assert (model.device.type, model.backend) == ("cpu", "cpu")


def test_triton_on_a_cpu_needs_the_interpreter(tiny_model, monkeypatch):
    pytest.importorskip("triton", reason="triton is not installed")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="only with TRITON_INTERPRET=1"):
        PagedModel(tiny_model("Llama"), device="cpu", backend="triton")
