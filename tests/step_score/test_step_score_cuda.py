"""The CUDA kernels of the step-score ops: on a GPU, or in the emulator without one.

Aggregates and choices have the bits of the CPU; scores are as close to it as fp32 sums in another
order are, and have the same bits in any company.
"""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.step_score.cuda_kernels import AGGREGATES, DTYPES, KINDS, Emulated, OnGpu, to_device
from ttc_kernels import (
    StepHead,
    _load,
    aggregate_steps,
    reference,
    score_round,
    score_steps,
    select_topk,
)
from ttc_kernels.testing import assert_bitwise_equal


@pytest.fixture(scope="module")
def cuda_kernels() -> Emulated | OnGpu:
    if not torch.cuda.is_available():
        return Emulated()
    if _load.cuda_error is not None:
        pytest.skip(f"the CUDA kernels are not loaded: {_load.cuda_error}")
    return OnGpu()


@pytest.fixture
def emulated(cuda_kernels) -> Emulated:
    if not isinstance(cuda_kernels, Emulated):
        pytest.skip("bytes are counted in the emulator")
    return cuda_kernels


def int32(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def make_head(kind: str, width: int, dtype: torch.dtype, outputs: int = 37) -> StepHead:
    def matrix(n: int) -> torch.Tensor:
        return (torch.randn(n, width) / width**0.5).to(dtype)

    if kind == "two_logit":
        w2 = (torch.randn(2, outputs) / 6).to(dtype)
        return StepHead.two_logit(matrix(outputs), torch.randn(outputs), w2, torch.randn(2))
    if kind in ("value", "raw"):
        return getattr(StepHead, kind)(matrix(1), 0.25)
    if kind == "token_pair":
        return StepHead.token_pair(*matrix(2))
    return StepHead.softmax(matrix(outputs) * 3, torch.randn(outputs), (0, outputs - 1))


def check_scores(kernels, hidden, rows, head, norm, atol: float = 2e-6) -> torch.Tensor:
    got = kernels.score_steps(hidden, rows, head, norm=norm)
    want = score_steps(hidden, rows, head, norm=norm)
    exact = reference.score_steps(hidden, rows, head, norm=norm)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), exact, rtol=0, atol=atol, equal_nan=True)
    torch.testing.assert_close(got, want, rtol=0, atol=atol, equal_nan=True)
    return got


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_norm", [False, True])
def test_scores_of_the_cpu(cuda_kernels, kind, dtype, with_norm) -> None:
    """One row tile of 16, several, and those of 64; a width that is no multiple of a step."""
    torch.manual_seed(1)
    width = 152
    hidden = (torch.randn(40, width) * 3).to(dtype)
    norm = (torch.rand(width) + 0.5, 1e-6) if with_norm else None
    head = make_head(kind, width, dtype)
    for steps in (1, 21) if kind != "raw" else (3,):
        rows = torch.randint(0, 40, (steps,), dtype=torch.int32)
        got = check_scores(cuda_kernels, hidden, rows, head, norm, 1e-5 if kind == "raw" else 2e-6)
    assert got.std() > 1e-3


@pytest.mark.parametrize(
    ("hidden_dtype", "weight_dtype"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16), (torch.float16,) * 2],
)
@pytest.mark.parametrize("width", [1, 30, 104])
def test_mixed_types_and_odd_widths(cuda_kernels, hidden_dtype, weight_dtype, width) -> None:
    torch.manual_seed(width)
    hidden = (torch.randn(9, width) * 3).to(hidden_dtype)
    head = make_head("two_logit", width, weight_dtype, outputs=19)
    norm = (torch.rand(width).to(weight_dtype), 1e-5)
    check_scores(cuda_kernels, hidden, int32(8, 0, 8, 3), head, norm)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_row_has_the_same_bits_in_any_company(cuda_kernels, kind, dtype) -> None:
    """Tiles of 16 and of 64 rows; aligned and not, which is another kernel; dense and strided."""
    torch.manual_seed(0)
    hidden, head = torch.randn(90, 200).to(dtype), make_head(kind, 200, dtype, outputs=70)
    norm = (torch.rand(200), 1e-5)
    rows = torch.arange(90, dtype=torch.int32)
    together = cuda_kernels.score_steps(hidden, rows, head, norm=norm)
    for count in (1, 17):
        chosen = torch.randperm(90)[:count].int()
        alone = cuda_kernels.score_steps(hidden, chosen, head, norm=norm)
        assert_bitwise_equal(alone, together[chosen.long()])
    odd = torch.zeros(90, 203, dtype=dtype)[:, :200]
    odd.copy_(hidden)
    few = int32(3, 77)
    strided = cuda_kernels.score_steps(odd, few, head, norm=norm)
    assert_bitwise_equal(strided, together[few.long()])


@pytest.mark.parametrize("outputs", [520, 16500])
def test_many_outputs(cuda_kernels, outputs) -> None:
    """Several segments of shares, and shares of many groups: heads of more than 16,384 outputs."""
    torch.manual_seed(2)
    hidden = torch.randn(17, 16).bfloat16()
    head = make_head("softmax", 16, torch.bfloat16, outputs)
    together = check_scores(cuda_kernels, hidden, torch.arange(17).int(), head, None)
    alone = cuda_kernels.score_steps(hidden, int32(16), head)
    assert_bitwise_equal(alone, together[16:])


def test_bf16_weights_give_distinct_scores_near_one(cuda_kernels) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(64, 256).bfloat16() * 0.1
    bias = torch.tensor([-3.5, 3.5]).bfloat16()
    w1, w2 = (torch.randn(64, 256) / 16).bfloat16(), torch.randn(2, 64).bfloat16() * 0.3
    head = StepHead.two_logit(w1, torch.zeros(64).bfloat16(), w2, bias)
    scores = cuda_kernels.score_steps(hidden, torch.arange(64, dtype=torch.int32), head)
    assert scores.min() > 0.99 and len(set(scores.tolist())) > 60


def test_extreme_logits_nan_and_no_rows(cuda_kernels) -> None:
    head = StepHead.value(torch.ones(1), 0.0)
    hidden = torch.tensor([[1e30], [-1e30], [-50.0], [torch.nan], [0.0]])
    scores = cuda_kernels.score_steps(hidden, torch.arange(5, dtype=torch.int32), head)
    assert scores[[0, 1, 4]].tolist() == [1.0, 0.0, 0.5] and scores[3].isnan()
    assert scores[2].item() == pytest.approx(1.9287498e-22, rel=1e-5)
    assert cuda_kernels.score_steps(hidden, int32(), head).shape == (0,)
    for kind in KINDS:
        hidden = torch.randn(20, 40).bfloat16()
        hidden[1, 7] = torch.nan
        head = make_head(kind, 40, torch.bfloat16)
        got = check_scores(cuda_kernels, hidden, torch.arange(19).int(), head, None, 1e-5)
        assert got.isnan().tolist() == [i == 1 for i in range(19)]


def test_a_row_that_is_not_there_gives_nan(cuda_kernels) -> None:
    head = make_head("two_logit", 16, torch.float32)
    hidden = torch.randn(4, 16)
    got = cuda_kernels.score_steps(hidden, int32(-1, 2, 4), head)
    assert got.isnan().tolist() == [True, False, True]
    assert_bitwise_equal(got[1:2], cuda_kernels.score_steps(hidden, int32(2), head))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_weights_are_read_once_and_only_the_rows_needed(emulated, dtype) -> None:
    torch.manual_seed(0)
    width, outputs = 256, 96
    hidden = torch.full((500, width), torch.nan).to(dtype)  # of rows that are not scored
    head = make_head("two_logit", width, dtype, outputs)
    for steps in (1, 16, 64):
        rows = torch.randperm(500)[:steps].int()
        hidden[rows.long()] = torch.randn(steps, width).to(dtype)
        scores = emulated.score_steps(hidden, rows, head, norm=(torch.ones(width), 1e-6))
        assert not scores.isnan().any()
        many = dtype == torch.bfloat16 and steps > 16
        w1, row_bytes = head.weights[0], width * hidden.element_size()
        times = 1 if many else -(-steps // 16)  # through L2 where rows take several tiles
        assert emulated.adapter.bytes_read(w1) == times * w1.nbytes
        ranges = outputs // (32 if many else 16)  # of outputs, that a block takes
        assert emulated.adapter.bytes_read(hidden) == ranges * steps * row_bytes


def random_round(kind: str, steps: int, dtype: torch.dtype):
    torch.manual_seed(3)
    width, carried = 80, 9
    hidden, head = torch.randn(50, width).to(dtype), make_head(kind, width, dtype, 70)
    rows = torch.randint(0, 50, (steps,), dtype=torch.int32)
    rows[10:14] = rows[3]  # ties
    carry = aggregate_steps(torch.rand(carried), int32(*[-1] * carried))
    parent = torch.randint(-1, carried, (steps,), dtype=torch.int32)
    parent[10:14] = parent[3]
    parent[15] = carried + 4  # a step below one of this very call
    groups = int32(0, steps - 7, steps - 7, steps)
    norm = (torch.rand(width) + 0.5, 1e-6)
    return hidden, rows, head, parent, groups, carry, norm


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [16, 40])
def test_a_fused_round_has_the_bits_of_the_three_ops(cuda_kernels, kind, steps) -> None:
    dtype = torch.bfloat16 if steps == 40 else torch.float32
    hidden, rows, head, parent, groups, carry, norm = random_round(kind, steps, dtype)
    by = AGGREGATES[KINDS.index(kind) % 4]
    options = {"by": by, "carry": carry, "norm": norm}
    got = cuda_kernels.score_round(hidden, rows, head, parent, groups, 5, **options)
    scores = cuda_kernels.score_steps(hidden, rows, head, norm=norm)
    aggregates = cuda_kernels.aggregate_steps(scores, parent, carry)
    assert_bitwise_equal(got.scores, scores)
    assert_bitwise_equal(got.aggregates.stats, aggregates.stats)
    assert_bitwise_equal(got.aggregates.state, aggregates.state)
    selected = cuda_kernels.select_topk(getattr(aggregates, by).contiguous(), groups, 5)
    assert torch.equal(got.selected, selected)
    assert (got.selected[1] == -1).all() and (got.selected[0] >= 0).all()
    on_cpu = score_round(hidden, rows, head, parent, groups, 5, **options)
    assert torch.equal(got.selected, on_cpu.selected)


def test_a_round_of_many_steps_and_one_of_none(cuda_kernels) -> None:
    """More steps than the last block has threads, several row tiles, no carry."""
    torch.manual_seed(4)
    steps = 300
    hidden, head = torch.randn(64, 24).half(), make_head("value", 24, torch.float16)
    rows, groups = torch.randint(0, 64, (steps,), dtype=torch.int32), int32(3, 150, 151, 298)
    parent = torch.tensor([max(-1, i - 40) for i in range(steps)], dtype=torch.int32)
    got = cuda_kernels.score_round(hidden, rows, head, parent, groups, 7, by="prod")
    aggregates = aggregate_steps(got.scores, parent)
    assert_bitwise_equal(got.aggregates.stats, aggregates.stats)
    assert_bitwise_equal(got.aggregates.state, aggregates.state)
    assert torch.equal(got.selected, select_topk(aggregates.prod.contiguous(), groups, 7))
    none = cuda_kernels.score_round(hidden, rows[:0], head, parent[:0], int32(0, 0), 2)
    assert none.scores.shape == (0,) and none.selected.tolist() == [[-1, -1]]


def test_aggregates_have_the_bits_of_the_cpu(cuda_kernels) -> None:
    generator = torch.Generator().manual_seed(0)
    for n, special in ((1, 0.5), (40, 0.0), (300, torch.nan), (300, 1.5), (9, -0.0)):
        scores = torch.rand(n, generator=generator)
        scores[3::11] *= 1e-30
        scores[n // 2] = special
        parent = int32(*(int(torch.randint(-1, max(i, 1), ())) if i else -1 for i in range(n)))
        want = aggregate_steps(scores, parent)
        got = cuda_kernels.aggregate_steps(scores, parent)
        assert_bitwise_equal(got.stats, want.stats)
        assert_bitwise_equal(got.state, want.state)
        links = torch.randint(-1, n, (20,), dtype=torch.int32)
        want = aggregate_steps(torch.ones(20), links, want)
        got = cuda_kernels.aggregate_steps(torch.ones(20), links, got)
        assert_bitwise_equal(got.stats, want.stats)
        assert_bitwise_equal(got.state, want.state)


def test_links_that_lead_nowhere_give_nan(cuda_kernels) -> None:
    got = cuda_kernels.aggregate_steps(torch.full((4,), 0.5), int32(-1, 1, 7, -2))
    assert got.min.isnan().tolist() == [False, True, True, True]
    assert got.last.tolist() == [0.5] * 4


@pytest.mark.parametrize(
    "groups",
    [(0, 5), (0, 0, 3, 3, 9, 9), (2, 7), (0, 1, 300, 400), (0,), (0, 130, 131, 290)],
)
def test_ties_go_to_the_lower_index(cuda_kernels, groups) -> None:
    """Few different values, signed zeros, infinities and NaN among them."""
    values = torch.tensor([0.5, 0.0, -0.0, 1.0, torch.nan, -torch.inf, torch.inf, 0.25])
    for k in (1, 4, 9):
        scores = values[torch.randint(0, 8, (groups[-1] + 2,))]
        got = cuda_kernels.select_topk(scores, int32(*groups), k)
        assert torch.equal(got, select_topk(scores, int32(*groups), k))


@pytest.mark.gpu
def test_a_round_in_a_graph_and_wrong_arguments(device) -> None:
    if not _load.has_cuda_kernel("score_round"):
        pytest.skip(f"the CUDA kernels are not loaded: {_load.cuda_error}")
    inputs = to_device(random_round("two_logit", 40, torch.bfloat16), "cuda")
    hidden, rows, head, parent, groups, carry, norm = inputs

    def run():
        return score_round(hidden, rows, head, parent, groups, 5, carry=carry, norm=norm)

    want = run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = run()
    for _ in range(2):
        graph.replay()
        assert_bitwise_equal(got.scores, want.scores)
        assert torch.equal(got.selected, want.selected)
    with pytest.raises(ValueError, match=r"score_steps: w1 must be a contiguous .* on cuda:0"):
        score_steps(hidden, rows, head.to("cpu"))
    with pytest.raises(ValueError, match=r"score_steps: norm weight must be a contiguous \[80\]"):
        score_steps(hidden, rows, head, norm=(norm[0][:8], 1e-6))
    with pytest.raises(ValueError, match=r"aggregate_steps: parent must be a contiguous \[40\]"):
        aggregate_steps(got.scores, parent[:3])
    with pytest.raises(ValueError, match="select_topk: k must be >= 1, got 0"):
        select_topk(got.scores, groups, 0)


def test_fake_tensors_on_a_gpu_need_no_gpu() -> None:
    ops = torch.ops.ttc_kernels
    with FakeTensorMode():
        hidden, weight, bias = (
            torch.empty(shape, device="cuda") for shape in ((9, 64), (1, 64), (1,))
        )
        rows, groups = (torch.empty(n, dtype=torch.int32, device="cuda") for n in (5, 3))
        common = (hidden, rows, "value", [weight, bias], None, 0.0)
        scores = ops.score_steps(*common)
        stats, state = ops.aggregate_steps(scores, rows, None, None)
        whole = ops.score_round(*common, rows, None, None, groups, 4, 0)
        selected = ops.select_topk(scores, groups, 4)
    assert scores.shape == (5,) and stats.shape == (4, 5) and state.shape == (3, 5)
    assert selected.shape == (2, 4) and selected.dtype == torch.int32
    assert [x.shape for x in whole] == [x.shape for x in (scores, stats, state, selected)]
    assert all(x.device.type == "cuda" for x in (*whole, scores, stats, selected))
