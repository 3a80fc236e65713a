"""write_kv, copy_pages and commit_kv in Triton against their definitions."""

from __future__ import annotations

import pytest
import torch

from ttc_kernels import reference
from ttc_kernels.kv_cache import write_kv as write_kv_by_torch
from ttc_kernels.testing import assert_bitwise_equal

FP8 = torch.float8_e4m3fn
# bfloat16 too: nothing is computed in it, and the interpreter moves it as it is.
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def _layers(device, dtype, count=2):
    torch.manual_seed(0)
    return [torch.randn(6, 4, 2, 48).to(dtype).to(device) for _ in range(count)]


def _check(run, define, device, dtype):
    """Runs both on equal caches of two layers, and compares all their bits."""
    from ttc_kernels.triton import kv_cache

    caches = [_layers(device, dtype) for _ in range(2)]
    expected = [[cache.cpu().clone() for cache in side] for side in caches]
    run(kv_cache, *caches)
    define(reference, *expected)
    for got, want in zip(caches[0] + caches[1], expected[0] + expected[1], strict=True):
        assert_bitwise_equal(got.cpu(), want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_copy_pages_in_order(triton_device, dtype):
    copies = torch.tensor([[0, 1, 3], [1, 2, 4], [5, 4, 0], [2, 0, 1]], dtype=torch.int32)
    _check(
        lambda op, k, v: op.copy_pages(k, v, copies.to(triton_device)),
        lambda op, k, v: op.copy_pages(k, v, copies),
        triton_device,
        dtype,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_commit_kv(triton_device, dtype):
    src = torch.tensor([4, 6, 9, 10, -1, 17, 20, 3], dtype=torch.int32)
    dst = torch.tensor([4, 5, 6, 7, 8, 16, 17, -1], dtype=torch.int32)
    _check(
        lambda op, k, v: op.commit_kv(k, v, src.to(triton_device), dst.to(triton_device)),
        lambda op, k, v: op.commit_kv(k, v, src, dst),
        triton_device,
        dtype,
    )


def test_commit_kv_of_more_tokens_than_move_at_a_time(triton_device):
    """A path of 80 tokens moved down by one place: every destination is the source before it."""
    from ttc_kernels.triton import kv_cache

    cache = torch.arange(96.0).reshape(6, 16, 1, 1).expand(6, 16, 1, 4).contiguous()
    device_cache = cache.clone().to(triton_device)
    slots = torch.arange(80, dtype=torch.int32, device=triton_device)
    other = device_cache.clone()
    kv_cache.commit_kv([device_cache], [other], slots + 1, slots)
    want = cache.clone()
    reference.commit_kv([want], [cache.clone()], slots.cpu() + 1, slots.cpu())
    assert_bitwise_equal(device_cache.cpu(), want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_write_kv(triton_device, dtype):
    fused = torch.randn(9, 6, 48).to(dtype)
    slots = torch.randperm(24)[:9].int()
    slots[3] = -1
    k, v = fused[:, 2:4], fused[:, 4:]
    where = fused.to(triton_device)
    _check(
        lambda op, kc, vc: op.write_kv(
            where[:, 2:4], where[:, 4:], kc[0], vc[0], slots.to(triton_device)
        ),
        lambda op, kc, vc: op.write_kv(k, v, kc[0], vc[0], slots),
        triton_device,
        dtype,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_write_kv_rounds_to_float8_like_torch(triton_device, dtype):
    """All magnitudes, ties, subnormals, overflow and NaN."""
    from ttc_kernels.triton import kv_cache

    grid = torch.arange(127, dtype=torch.uint8).view(FP8).float()
    middle = (grid[1:] + grid[:-1]) / 2
    values = torch.cat([grid, -grid, middle, -middle, torch.randn(300) * 10])
    values = torch.cat([values, torch.tensor([1e4, -1e4, torch.nan, 2.0**-10, 2.0**-11])])
    k = values[: len(values) // 48 * 48].reshape(-1, 1, 48).to(dtype)
    k[-1, 0, :2] = torch.tensor([torch.nan, 3e4])
    scales = torch.tensor([0.5])
    slots = torch.arange(len(k), dtype=torch.int32)
    got, want = (torch.zeros(2, 8, 4, 1, 48).to(FP8) for _ in range(2))
    device_caches = [cache.to(triton_device) for cache in got]
    on_device = [x.to(triton_device) for x in (k, slots, scales)]
    kv_cache.write_kv(on_device[0], on_device[0], *device_caches, on_device[1], on_device[2], 3.0)
    write_kv_by_torch(k, k, want[0], want[1], slots, scales, 3.0)
    for x, y in zip(device_caches, want, strict=True):
        x, y = x.cpu().float(), y.float()
        assert_bitwise_equal(x.nan_to_num(999), y.nan_to_num(999))
        assert_bitwise_equal(x.isnan(), y.isnan())


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("cache_dtype", [None, FP8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_write_kv_rotates_like_the_cpu(triton_device, dtype, cache_dtype, interleaved):
    """Bit for bit, with a rotated part of 20 of 48 elements."""
    from ttc_kernels.triton import kv_cache

    torch.manual_seed(0)
    fused = torch.randn(9, 6, 48).to(dtype)
    k, v = fused[:, 2:4], fused[:, 4:]
    slots, positions = torch.randperm(24)[:9].int(), torch.randint(0, 30, (9,))
    slots[3] = -1
    angles = torch.randn(30, 10)
    cos_sin = torch.cat([angles.cos(), angles.sin()], dim=-1)
    got, want = (torch.zeros(2, 6, 4, 2, 48).to(cache_dtype or dtype).unbind() for _ in range(2))
    write_kv_by_torch(
        k, v, *want, slots, positions=positions, cos_sin=cos_sin, interleaved=interleaved
    )
    caches = [cache.to(triton_device) for cache in got]
    where = fused.to(triton_device)
    rope = [x.to(triton_device) for x in (slots, positions, cos_sin)]
    kv_cache.write_kv(
        where[:, 2:4], where[:, 4:], *caches, rope[0], 1.0, 1.0, *rope[1:], interleaved
    )
    for x, y in zip(caches, want, strict=True):
        assert_bitwise_equal(x.cpu(), y)
