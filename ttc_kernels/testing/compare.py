"""Is a result as good as its dtype allows? Are two results the same bits?"""

from __future__ import annotations

import torch


def assert_close_to_reference(
    actual: torch.Tensor,
    reference: torch.Tensor,
    baseline: torch.Tensor,
    *,
    factor: float = 2.0,
) -> None:
    """Asserts that a result is at most `factor` times as wrong as plain torch in the same dtype.

    No tolerance is invented: the baseline says what the dtype costs. One rounding of the largest
    reference value is allowed on top, for baselines that happen to be exact. Infinities and NaN
    must be in the same places as in the reference, and infinities of the same sign.

    Args:
        actual: the result, any shape and float dtype.
        reference: float64, same shape: the definition.
        baseline: same shape and dtype as ``actual``: the same formula in plain torch.
        factor: how many times the largest error of the baseline is accepted.

    Raises:
        AssertionError: naming the worst coordinate, its values and the error allowed.

    >>> x = torch.tensor([1.0, 2.0])
    >>> assert_close_to_reference(x, x.double(), x)
    """
    assert actual.shape == reference.shape == baseline.shape, (
        f"shapes differ: actual {list(actual.shape)}, reference {list(reference.shape)}, "
        f"baseline {list(baseline.shape)}"
    )
    assert reference.dtype == torch.float64, f"reference must be float64, got {reference.dtype}"
    assert actual.dtype == baseline.dtype, (
        f"dtypes differ: actual {actual.dtype}, baseline {baseline.dtype}"
    )
    if actual.numel() == 0:
        return
    finite = reference.isfinite()
    _assert_same_non_finite(actual, reference)
    error = torch.where(finite, actual.double() - reference, 0.0).abs()
    baseline_error = torch.where(finite, baseline.double() - reference, 0.0).abs()
    baseline_error = baseline_error[baseline_error.isfinite()]
    largest = torch.where(finite, reference, 0.0).abs().max().item()
    rounding = torch.finfo(actual.dtype).eps * largest
    worst_baseline = baseline_error.max().item() if baseline_error.numel() else 0.0
    allowed = factor * worst_baseline + rounding
    at = _coordinate(error, int(error.argmax()))
    assert error[at] <= allowed, (
        f"error {error[at].item():.3g} at {at} is more than {allowed:.3g} "
        f"({factor:g} x the error {worst_baseline:.3g} of plain {actual.dtype} + {rounding:.3g}): "
        f"got {actual[at].item():.9g}, expected {reference[at].item():.9g}"
    )


def assert_bitwise_equal(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Asserts that two tensors have the same shape, dtype and bits (NaN and -0.0 included).

    Raises:
        AssertionError: naming the number of differing elements, the first of them and its values.

    >>> assert_bitwise_equal(torch.tensor([float("nan")]), torch.tensor([float("nan")]))
    """
    assert actual.shape == expected.shape and actual.dtype == expected.dtype, (
        f"got {list(actual.shape)} {actual.dtype}, expected {list(expected.shape)} {expected.dtype}"
    )
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = integer[actual.element_size()]
    differing = actual.contiguous().view(bits) != expected.contiguous().view(bits)
    if differing.any():
        at = _coordinate(differing, int(differing.flatten().int().argmax()))
        raise AssertionError(
            f"{int(differing.sum())} of {actual.numel()} elements differ, first at {at}: "
            f"got {actual[at].item()!r}, expected {expected[at].item()!r}"
        )


def _assert_same_non_finite(actual: torch.Tensor, reference: torch.Tensor) -> None:
    for name, kind in (("NaN", torch.isnan), ("+inf", torch.isposinf), ("-inf", torch.isneginf)):
        differing = kind(actual) != kind(reference)
        if differing.any():
            at = _coordinate(differing, int(differing.flatten().int().argmax()))
            raise AssertionError(
                f"{int(differing.sum())} elements differ in being {name}, first at {at}: "
                f"got {actual[at].item()}, expected {reference[at].item()}"
            )


def _coordinate(tensor: torch.Tensor, flat: int) -> tuple[int, ...]:
    at = []
    for size in reversed(tensor.shape):
        at.append(flat % size)
        flat //= size
    return tuple(reversed(at))
