"""row_descriptor against sorting in fp64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck

from ttc_kernels import reference
from ttc_kernels.testing import assert_bitwise_equal
from ttc_kernels.verify import DESCRIPTOR_COLUMNS, RowFilters, row_descriptor

FILTERS = [
    {},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 10**9},
    {"top_p": 0.7},
    {"top_p": 1e-9},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"top_k": 20, "top_p": 0.9, "min_p": 0.01},
]
COLUMN = {name: i for i, name in enumerate(DESCRIPTOR_COLUMNS)}


def _kept(logits: torch.Tensor, desc: torch.Tensor) -> torch.Tensor:
    """bool[N, V], by the rule that the descriptor promises."""
    pivot, tie_end = desc[:, 1:2].to(logits.dtype), desc[:, 2:3]
    index = torch.arange(logits.shape[1])
    return (logits > pivot) | ((logits == pivot) & (index < tie_end))


def _assert_matches(logits: torch.Tensor, temperature: float, **filters) -> None:
    desc = row_descriptor(logits, temperature, **filters)
    want = reference.row_descriptor(logits, temperature, **filters)
    fp32 = logits.float()
    assert torch.equal(_kept(fp32, desc), _kept(fp32.double(), want))
    same = [COLUMN[name] for name in ("temperature", "argmax", "max", "num_kept")]
    want_same = want[:, same].float()
    torch.testing.assert_close(desc[:, same], want_same, rtol=0, atol=0, equal_nan=True)
    log_z = [COLUMN["log_z"], COLUMN["log_z_all"], COLUMN["z"]]
    torch.testing.assert_close(
        desc[:, log_z].double(), want[:, log_z], rtol=1e-6, atol=2e-6, equal_nan=True
    )


@pytest.mark.parametrize("filters", FILTERS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab_size", [1, 63, 64, 1500])
def test_matches_sorting(filters: dict, dtype: torch.dtype, vocab_size: int) -> None:
    torch.manual_seed(vocab_size)
    logits = (torch.randn(5, vocab_size) * 4).to(dtype)  # bfloat16 brings many ties
    for temperature in (0.0, 0.4, 1.0, 1e-30):
        _assert_matches(logits, temperature, **filters)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    row=st.lists(st.sampled_from([-np.inf, -40.0, -1.0, 0.0, 0.5, 3.0]), min_size=1, max_size=90),
    temperature=st.sampled_from([0.0, 0.5, 1.0, 10.0]),
    top_k=st.integers(0, 100),
    top_p=st.sampled_from([0.123, 0.456, 0.789, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.011, 0.33, 1.0]),
)
def test_ties_and_minus_infinity(row, temperature, top_k, top_p, min_p) -> None:
    logits = torch.tensor([row], dtype=torch.float32)
    _assert_matches(logits, temperature, top_k=top_k, top_p=top_p, min_p=min_p)


def test_top_p_keeps_the_token_that_crosses() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    for top_p, expected in ((0.49, 1), (0.51, 2), (0.79, 2), (0.81, 3)):
        assert row_descriptor(logits, 1.0, top_p=top_p)[0, COLUMN["num_kept"]] == expected
    # After top_k = 2 the shares are 5/8 and 3/8.
    assert row_descriptor(logits, 1.0, top_k=2, top_p=0.62)[0, COLUMN["num_kept"]] == 1


def test_equal_logits_keep_the_lower_indices() -> None:
    desc = row_descriptor(torch.zeros(1, 200_000), 1.0, top_k=5)
    assert desc[0, [1, 2, 6]].tolist() == [0.0, 5.0, 5.0]
    assert desc[0, 3].item() == pytest.approx(np.log(5), abs=1e-6)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_rows_without_a_distribution(bad: float) -> None:
    logits = torch.randn(3, 70)
    logits[1, 66] = bad
    for temperature in (0.0, 1.0):
        desc = row_descriptor(logits, temperature, top_p=0.9)
        assert desc[:, COLUMN["argmax"]].tolist() == [
            logits[0].argmax().item(), -1.0, logits[2].argmax().item(),
        ]  # fmt: skip
        assert desc[1, COLUMN["num_kept"]] == 0 and desc[1, COLUMN["pivot"]] == torch.inf
    assert row_descriptor(torch.full((1, 9), -torch.inf), 1.0)[0, COLUMN["argmax"]] == -1


def test_parameters_per_row_and_strided_rows() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 300)[:, :211]
    temperature, top_k = [0.0, 0.5, 1.0, 2.0], [0, 5, 0, 9]
    top_p, min_p = [1.0, 0.9, 0.5, 1.0], [0, 0, 0, 0.2]
    together = row_descriptor(
        logits, np.array(temperature), torch.tensor(top_k), np.array(top_p), torch.tensor(min_p)
    )
    for r in range(4):
        alone = row_descriptor(logits[r : r + 1], temperature[r], top_k[r], top_p[r], min_p[r])
        assert_bitwise_equal(alone[0], together[r])
    assert row_descriptor(logits[:0], 1.0).shape == (0, 9)


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"temperature": -1.0}, ValueError, r"temperature\[0\] must be 0 .* got -1"),
        ({"temperature": torch.nan}, ValueError, "temperature"),
        ({"temperature": torch.inf}, ValueError, "temperature"),
        ({"top_k": -1}, ValueError, r"top_k\[0\] must be >= 0 .* got -1"),
        ({"top_k": 1.5}, TypeError, "top_k must be torch.int32, got torch.float32"),
        ({"top_p": 0.0}, ValueError, r"top_p\[0\] must be in \(0, 1\] .* got 0"),
        ({"top_p": np.array([0.5, 1.5])}, ValueError, r"top_p\[1\] .* got 1.5"),
        ({"min_p": 1.1}, ValueError, r"min_p\[0\] .* got 1.1"),
        ({"min_p": np.zeros(3)}, ValueError, r"min_p must be one number or \[2\], got \[3\]"),
        ({"logits": torch.zeros(4)}, ValueError, r"logits must be \[N, V\], got \[4\]"),
        ({"logits": torch.zeros(2, 8)[:, ::2]}, ValueError, "dense last dimension"),
        ({"logits": torch.zeros(2, 4).double()}, TypeError, "got torch.float64"),
    ],
)
def test_refuses(parameters: dict, error: type, message: str) -> None:
    arguments = {"logits": torch.zeros(2, 4), "temperature": 1.0} | parameters
    with pytest.raises(error, match="row_descriptor: .*" + message):
        row_descriptor(**arguments)


def test_columns_of_plain_numbers_alone_are_kept() -> None:
    two, three = torch.zeros(2, 4), torch.zeros(3, 4)
    filters = RowFilters(0.5, top_k=3)
    first = filters.columns("op", two)
    assert all(a is b for a, b in zip(first, filters.columns("op", two), strict=True))
    assert [len(column) for column in filters.columns("op", three)] == [3] * 4
    assert filters.columns("op", two)[1].tolist() == [3, 3]
    temperature = torch.ones(())
    given = RowFilters(temperature)
    assert given.columns("op", two)[0].tolist() == [1, 1]
    temperature.fill_(2)
    assert given.columns("op", two)[0].tolist() == [2, 2]


def test_columns_are_compiled() -> None:
    filters = RowFilters(0.5, top_k=3)
    compiled = torch.compile(
        lambda x: x + filters.columns("op", x)[0], fullgraph=True, backend="aot_eager"
    )
    for rows in (2, 3, 3):
        assert compiled(torch.ones(rows)).tolist() == [1.5] * rows
        assert filters.columns("op", torch.ones(rows))[0].tolist() == [0.5] * rows


def test_opcheck() -> None:
    logits, ones, none = torch.randn(2, 9), torch.ones(2), torch.zeros(2)
    arguments = (logits, ones, torch.zeros(2, dtype=torch.int32), ones, none)
    opcheck(torch.ops.ttc_kernels.row_descriptor.default, arguments)
