"""aggregate_steps, select_topk and score_round: definitions, carry-over, ties, equal bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.library import opcheck

from ttc_kernels import (
    StepHead,
    aggregate_steps,
    reference,
    score_round,
    score_steps,
    select_topk,
)
from ttc_kernels.testing import assert_bitwise_equal

ops = torch.ops.ttc_kernels


def int32(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def random_tree(n: int, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.array([rng.integers(-1, i) for i in range(n)], np.int32))


def random_scores(n: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(n, generator=generator)
    scores[::7] = 1 - scores[::7] * 1e-6  # near one
    scores[3::11] *= 1e-30
    return scores


def in_triton(name: str, device: torch.device):
    """The op `name` in Triton, with tensors brought there and back."""
    import ttc_kernels.triton.score_steps as scoring
    import ttc_kernels.triton.step_paths as paths

    function = getattr(scoring if name.startswith("score") else paths, name)

    def move(x, to):
        if isinstance(x, (list, tuple)):
            return [move(y, to) for y in x]
        return x.to(to) if isinstance(x, torch.Tensor) else x

    return lambda *arguments: move(function(*(move(a, device) for a in arguments)), "cpu")


@pytest.mark.parametrize("n", [1, 2, 200])
def test_aggregates_match_their_definition(n: int) -> None:
    scores, parent = random_scores(n, n), random_tree(n, n)
    got, want = aggregate_steps(scores, parent), reference.aggregate_steps(scores, parent)
    for name, column in zip(("min", "prod", "mean", "last"), want, strict=True):
        torch.testing.assert_close(
            getattr(got, name).double(), column, rtol=1e-5, atol=1e-9, msg=name
        )


def test_products_far_below_one_go_to_zero_and_never_to_nan() -> None:
    chain = torch.arange(-1, 1999, dtype=torch.int32)
    got = aggregate_steps(torch.full((2000,), 0.9), chain)
    want = torch.tensor(0.9).double() ** torch.arange(1, 2001, dtype=torch.float64)
    normal = want > 1.2e-38
    torch.testing.assert_close(got.prod[normal].double(), want[normal], rtol=2e-5, atol=0)
    assert (got.prod[~normal] <= 1.3e-38).all() and got.prod[-1] == 0
    some_zero = torch.tensor([1.0, 0.0, 1.0, 1e-40])
    assert aggregate_steps(some_zero, int32(-1, 0, 1, -1)).prod.tolist()[:3] == [1.0, 0.0, 0.0]
    assert aggregate_steps(some_zero, int32(-1, 0, 1, -1)).prod[3].item() == pytest.approx(
        1e-40, 1e-4
    )


def test_rounds_that_carry_over_have_the_bits_of_one_call() -> None:
    scores, parent = random_scores(60, 1), random_tree(60, 1)
    whole = aggregate_steps(scores, parent)
    first = aggregate_steps(scores[:25], parent[:25])
    kept = torch.tensor(sorted(set(range(25)) & set(parent.tolist())), dtype=torch.int32)
    place = {int(step): i for i, step in enumerate(kept)}
    links = [
        p if p < 0 else place[p] if p < 25 else len(kept) + p - 25 for p in parent[25:].tolist()
    ]
    second = aggregate_steps(scores[25:], int32(*links), first[kept])
    assert_bitwise_equal(second.stats, whole.stats[:, 25:].contiguous())
    assert_bitwise_equal(second.state, whole.state[:, 25:].contiguous())


def test_what_is_no_probability_spreads_along_its_paths_only() -> None:
    scores = torch.tensor([0.5, torch.nan, 0.5, 1.5, 0.25])
    got = aggregate_steps(scores, int32(-1, 0, 1, 0, 0))
    for name in ("min", "prod", "mean"):
        assert getattr(got, name).isnan().tolist() == [False, True, True, True, False]
    assert got.last[[0, 2, 3]].tolist() == [0.5, 0.5, 1.5] and got.last[1].isnan()
    later = aggregate_steps(torch.ones(2), int32(1, 0), got[int32(0, 2)])
    assert later.min.isnan().tolist() == [True, False]


def tied_scores(n: int, seed: int) -> torch.Tensor:
    """Few different values, signed zeros, infinities and NaN among them."""
    values = torch.tensor([0.5, 0.0, -0.0, 1.0, torch.nan, -torch.inf, torch.inf, 0.25])
    return values[torch.randint(0, 8, (n,), generator=torch.Generator().manual_seed(seed))]


GROUPS = [(0, 5), (0, 0, 3, 3, 9, 9), (2, 7), (0, 1, 300, 400), (0,), (0, 130, 131, 290)]


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("k", [1, 4, 9])
def test_select_is_stable_and_ties_go_to_the_lower_index(groups, k: int) -> None:
    for seed in range(3):
        scores = tied_scores(groups[-1] + 2, seed)
        want = reference.select_topk(scores, int32(*groups), k)
        assert torch.equal(select_topk(scores, int32(*groups), k), want)


@pytest.mark.parametrize("groups", GROUPS)
def test_triton_selects_the_same(triton_device, groups) -> None:
    for k in (1, 4, 9):
        scores = tied_scores(groups[-1] + 2, k)
        got = in_triton("select_topk", triton_device)(scores, int32(*groups), k)
        assert torch.equal(got, select_topk(scores, int32(*groups), k))


def test_triton_aggregates_have_the_bits_of_the_cpu(triton_device) -> None:
    run = in_triton("aggregate_steps", triton_device)
    for n, seed in ((1, 0), (40, 1), (300, 2)):
        scores, parent = random_scores(n, seed), random_tree(n, seed)
        scores[n // 2] = 0.0 if seed == 1 else torch.nan
        want = aggregate_steps(scores, parent)
        stats, state = run(scores, parent, None, None)
        assert_bitwise_equal(stats, want.stats)
        assert_bitwise_equal(state, want.state)
    links = torch.randint(-1, 300, (50,), dtype=torch.int32)
    later = aggregate_steps(random_scores(50, 3), links, want)
    stats, state = run(random_scores(50, 3), links, want.stats, want.state)
    assert_bitwise_equal(stats, later.stats)
    assert_bitwise_equal(state, later.state)


def make_round(kind: str):
    """Small numbers whose products add up exactly: the interpreter's sums are not row by row."""
    torch.manual_seed(3)
    width, steps, carried = 80, 37, 9
    exact = lambda *shape: torch.randint(-8, 9, shape) / 16  # noqa: E731
    hidden = exact(50, width).half()
    rows = torch.randint(0, 50, (steps,), dtype=torch.int32)
    rows[20:24] = rows[3]  # ties
    head = {
        "two_logit": lambda: StepHead.two_logit(
            exact(70, width).half(), torch.randn(70), torch.randn(2, 70) / 9, torch.randn(2)
        ),
        "value": lambda: StepHead.value(exact(width), 0.1),
        "token_pair": lambda: StepHead.token_pair(*exact(2, width)),
        "softmax": lambda: StepHead.softmax(exact(90, width), good=(1, 5)),
    }[kind]()
    carry = aggregate_steps(torch.rand(carried), int32(*[-1] * carried))
    parent = torch.randint(-1, carried, (steps,), dtype=torch.int32)
    parent[20:24] = 5
    parent[30] = carried + 4  # a step below one of this very call
    norm = (2.0 ** torch.randint(-1, 2, (width,)), 1e-6)
    return hidden, rows, head, parent, int32(0, 20, 20, 37), carry, norm


KINDS = ["two_logit", "value", "token_pair", "softmax"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by", ["min", "prod", "mean", "last"])
def test_a_fused_round_has_the_bits_of_the_three_ops(kind: str, by: str) -> None:
    hidden, rows, head, parent, groups, carry, norm = make_round(kind)
    got = score_round(hidden, rows, head, parent, groups, 6, by=by, carry=carry, norm=norm)
    scores = score_steps(hidden, rows, head, norm=norm)
    aggregates = aggregate_steps(scores, parent, carry)
    assert_bitwise_equal(got.scores, scores)
    assert_bitwise_equal(got.aggregates.stats, aggregates.stats)
    assert_bitwise_equal(got.aggregates.state, aggregates.state)
    assert torch.equal(got.selected, select_topk(getattr(aggregates, by), groups, 6))
    assert (got.selected[1] == -1).all() and (got.selected[0] >= 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("carried", [True, False])
def test_a_round_in_triton(triton_device, kind: str, carried: bool) -> None:
    hidden, rows, head, parent, groups, carry, norm = make_round(kind)
    carry_arguments = (carry.stats, carry.state) if carried else (None, None)
    if not carried:
        parent = torch.where(parent >= 9, parent - 9, int32(-1))
    common = (hidden, rows, head.kind, list(head.weights), *norm)
    run = lambda name, *a: in_triton(name, triton_device)(*a)  # noqa: E731
    for _ in range(2):  # the second finds the counters that the first left
        fused = run("score_round", *common, parent, *carry_arguments, groups, 6, 1)
        scores = run("score_steps", *common)
        stats, state = run("aggregate_steps", scores, parent, *carry_arguments)
        assert_bitwise_equal(fused[0], scores)
        assert_bitwise_equal(fused[1], stats)
        assert_bitwise_equal(fused[2], state)
        assert torch.equal(fused[3], run("select_topk", stats[1].contiguous(), groups, 6))
    on_cpu = score_round(
        hidden,
        rows,
        head,
        parent,
        groups,
        6,
        by="prod",
        carry=carry if carried else None,
        norm=norm,
    )
    torch.testing.assert_close(fused[0], on_cpu.scores, rtol=0, atol=1e-5)
    assert torch.equal(fused[3], on_cpu.selected)


def test_bits_do_not_depend_on_threads() -> None:
    hidden, rows, head, parent, groups, carry, norm = make_round("softmax")
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(score_round(hidden, rows, head, parent, groups, 3, carry=carry, norm=norm))
    torch.set_num_threads(before)
    for result in results[1:]:
        assert_bitwise_equal(result.aggregates.stats, results[0].aggregates.stats)
        assert torch.equal(result.selected, results[0].selected)


@pytest.mark.parametrize(
    ("parent", "message"),
    [
        (
            [-1, 2],
            r"parent\[1\] must be -1, one of 0 carried entries, or 0 \+ an earlier step, got 2",
        ),
        ([0, -1], r"parent\[0\] must be .*, got 0"),
        ([-1, -2], r"parent\[1\] must be .*, got -2"),
        ([-1], r"parent must be a contiguous \[2\]"),
    ],
)
def test_aggregate_refuses_bad_links(parent, message: str) -> None:
    with pytest.raises(ValueError, match="aggregate_steps: " + message):
        aggregate_steps(torch.ones(2), int32(*parent))


def test_refuses_bad_arguments() -> None:
    with pytest.raises(TypeError, match="aggregate_steps: scores must be float32"):
        aggregate_steps(torch.ones(1).double(), int32(-1))
    for groups, message in (
        ((0, 3), r"group_indptr\[1\] must be in \[0, 2\], got 3"),
        ((0, 2, 1), r"group_indptr\[2\] must be in \[2, 2\], got 1"),
    ):
        with pytest.raises(ValueError, match="select_topk: " + message):
            select_topk(torch.ones(2), int32(*groups), 1)
    with pytest.raises(ValueError, match="select_topk: k must be >= 1, got 0"):
        select_topk(torch.ones(2), int32(0, 2), 0)
    hidden, rows, head, parent, groups, carry, _ = make_round("value")
    with pytest.raises(ValueError, match=r"score_round: by must be one of .*, got 'max'"):
        score_round(hidden, rows, head, parent, groups, 6, by="max", carry=carry)
    with pytest.raises(ValueError, match=r"score_round: parent\[\d+\] must be"):
        score_round(hidden, rows, head, parent, groups, 6)


def test_opcheck() -> None:
    hidden, rows, head, parent, groups, carry, norm = make_round("two_logit")
    scores = torch.rand(len(parent))
    opcheck(ops.aggregate_steps.default, (scores, parent, carry.stats, carry.state))
    opcheck(ops.select_topk.default, (scores, groups, 3))
    common = (hidden, rows, head.kind, list(head.weights), *norm)
    opcheck(ops.score_round.default, (*common, parent, carry.stats, carry.state, groups, 3, 0))
