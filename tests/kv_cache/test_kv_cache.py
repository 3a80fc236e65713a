"""write_kv and copy_pages against their definitions, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.library import opcheck

from ttc_kernels import reference
from ttc_kernels._host import PagePool
from ttc_kernels.kv_cache import commit_kv, copy_pages, write_kv
from ttc_kernels.testing import assert_bitwise_equal

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def _caches(dtype: torch.dtype = torch.float32, pages: int = 6, page_size: int = 4, heads: int = 2):
    return torch.randn(2, pages, page_size, heads, 16).to(dtype).unbind()


def _int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "qkv", "head_major", "reversed", "expanded"])
def test_write_kv_takes_any_strides(dtype: torch.dtype, layout: str) -> None:
    torch.manual_seed(0)
    tokens, heads, dim = 9, 2, 16
    if layout == "qkv":
        fused = torch.randn(tokens, 3 * heads, dim).to(dtype)
        k, v = fused[:, heads : 2 * heads], fused[:, 2 * heads :]
    elif layout == "head_major":
        k, v = torch.randn(2, heads, tokens, dim).to(dtype).transpose(1, 2).unbind()
    elif layout == "expanded":
        k, v = (torch.randn(1, 1, dim).to(dtype).expand(tokens, heads, dim) for _ in range(2))
    else:
        k, v = torch.randn(2, 2 * tokens, heads, dim).to(dtype)[:, ::2].unbind()
    slots = torch.randperm(24)[:tokens].int()
    slots[3] = -1
    caches = _caches(dtype)
    expected = [cache.clone() for cache in caches]
    reference.write_kv(k, v, *expected, slots)
    write_kv(k, v, *caches, slots)
    for got, want in zip(caches, expected, strict=True):
        assert_bitwise_equal(got, want)


def test_write_kv_with_threads_and_pool_slots() -> None:
    pool = PagePool(num_pages=512, page_size=16)
    slots = pool.new_branch().append(8000)
    k, v = torch.randn(2, 8000, 2, 64).unbind()
    k_cache, v_cache = torch.zeros(2, 512, 16, 2, 64).unbind()
    write_kv(k, v, k_cache, v_cache, slots)
    assert_bitwise_equal(k_cache.flatten(0, 1)[:8000], k)
    assert_bitwise_equal(v_cache.flatten(0, 1)[:8000], v)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"slots": _int32(0, 24)}, ValueError, r"slots\[1\] must be -1 .* \[0, 24\), got 24"),
        ({"slots": _int32(-2, 0)}, ValueError, r"slots\[0\] .* got -2"),
        ({"slots": _int32(0)}, ValueError, r"slots must be a contiguous \[2\] .* got \[1\]"),
        ({"slots": torch.tensor([0, 1])}, TypeError, "slots must be int32, got torch.int64"),
        ({"k": torch.zeros(2, 1, 16)}, ValueError, r"k must be \[T, 2, 16\] .* got \[2, 1, 16\]"),
        ({"v": torch.zeros(3, 2, 16)}, ValueError, "as many tokens, got 2 and 3"),
        ({"k": torch.zeros(2, 2, 32)[..., ::2]}, ValueError, "dense last dimension"),
        ({"k": torch.zeros(2, 2, 16).half()}, TypeError, "k must be float32, got torch.float16"),
        ({"k": [1.0]}, TypeError, "k must be a torch.Tensor, got list"),
        ({"v_cache": torch.zeros(5, 4, 2, 16)}, ValueError, "agree in shape and dtype"),
        ({"k_cache": torch.zeros(6, 2, 4, 16).transpose(1, 2)}, ValueError, "contiguous"),
        ({"k_cache": torch.zeros(6, 4, 2, 16).int()}, TypeError, "float32 or float16 or bfloat16"),
    ],
)
def test_write_kv_refuses_before_writing(change: dict, error: type, message: str) -> None:
    k_cache, v_cache = torch.zeros(2, 6, 4, 2, 16).unbind()
    arguments = {"k": torch.ones(2, 2, 16), "v": torch.ones(2, 2, 16), "k_cache": k_cache}
    arguments |= {"v_cache": v_cache, "slots": _int32(0, 1)} | change
    with pytest.raises(error, match="write_kv: .*" + message):
        write_kv(**arguments)
    assert not k_cache.any() and not v_cache.any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_copy_pages_runs_in_order_in_every_layer(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layers = [_caches(dtype) for _ in range(3)]
    expected = [[cache.clone() for cache in layer] for layer in layers]
    copies = np.array([[0, 1, 3], [1, 2, 4], [5, 4, 0], [2, 0, 1]], np.int32)
    copy_pages([k for k, _ in layers], [v for _, v in layers], copies)
    reference.copy_pages([k for k, _ in expected], [v for _, v in expected], torch.tensor(copies))
    for layer, want in zip(layers, expected, strict=True):
        assert_bitwise_equal(layer[0], want[0])
        assert_bitwise_equal(layer[1], want[1])
    assert_bitwise_equal(layers[0][0][2, :3], layers[0][0][1, :3])


def test_copy_pages_without_work() -> None:
    k, v = _caches()
    copy_pages([k], [v], np.empty((0, 3), np.int32))
    copy_pages([], [], np.empty((0, 3), np.int32))


@pytest.mark.parametrize(
    ("copy", "message"),
    [
        ((0, 6, 1), r"copies\[1\] must be two different pages in \[0, 6\).* got \(0, 6, 1\)"),
        ((-1, 0, 1), r"got \(-1, 0, 1\)"),
        ((0, 0, 1), "two different pages"),
        ((0, 1, 5), r"token count in \[0, 4\], got \(0, 1, 5\)"),
        ((0, 1, -1), r"got \(0, 1, -1\)"),
    ],
)
def test_copy_pages_refuses_before_writing(copy: tuple[int, int, int], message: str) -> None:
    k, v = _caches()
    before = k.clone()
    with pytest.raises(ValueError, match=message):
        copy_pages([k], [v], torch.tensor([(0, 1, 4), copy], dtype=torch.int32))
    assert_bitwise_equal(k, before)
    with pytest.raises(ValueError, match="lists of one length, got 1 and 0"):
        copy_pages([k], [], torch.tensor([copy], dtype=torch.int32))
    with pytest.raises(ValueError, match=r"k_caches\[1\] is"):
        copy_pages([k, k[:3]], [v, v[:3]], torch.tensor([(0, 1, 4)], dtype=torch.int32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_commit_kv_moves_an_accepted_path(dtype: torch.dtype) -> None:
    """Two requests; of each some draft nodes were accepted, and sources and places overlap."""
    torch.manual_seed(0)
    layers = [_caches(dtype) for _ in range(3)]
    expected = [[cache.clone() for cache in layer] for layer in layers]
    src, dst = _int32(4, 6, 9, 10, -1, 17, 20, 3), _int32(4, 5, 6, 7, 8, 16, 17, -1)
    commit_kv([k for k, _ in layers], [v for _, v in layers], src, dst.numpy())
    reference.commit_kv([k for k, _ in expected], [v for _, v in expected], src, dst)
    for layer, want in zip(layers, expected, strict=True):
        assert_bitwise_equal(layer[0], want[0])
        assert_bitwise_equal(layer[1], want[1])


@pytest.mark.parametrize(
    ("src", "dst", "message"),
    [
        ((0, 24), (1, 2), r"src_slots\[1\] and dst_slots\[1\] .* \[0, 24\), got 24 and 2"),
        ((0, 1), (1, -2), "got 1 and -2"),
        ((0, 1), (1, 2), r"src_slots\[1\] = 1 was overwritten .* by dst_slots\[0\]"),
        ((0, 1), (5, 5), r"dst_slots\[1\] = 5 is the destination of two"),
        ((0, 1), (5,), r"dst_slots must be a contiguous \[2\]"),
    ],
)
def test_commit_kv_refuses_before_writing(src, dst, message: str) -> None:
    k, v = _caches()
    before = k.clone()
    with pytest.raises(ValueError, match="commit_kv: .*" + message):
        commit_kv([k], [v], _int32(*src), _int32(*dst))
    with pytest.raises(TypeError, match="src_slots must be int32"):
        commit_kv([k], [v], torch.tensor([0]), _int32(1))
    assert_bitwise_equal(k, before)


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_write_kv_to_float8(dtype: torch.dtype, per_head: bool) -> None:
    k, v = (torch.randn(2, 7, 2, 16) * 300).to(dtype).unbind()
    caches = torch.zeros(2, 6, 4, 2, 16).to(torch.float8_e4m3fn).unbind()
    slots = _int32(3, 9, -1, 0, 23, 5, 6)
    scale = torch.tensor([0.5, 2.0]) if per_head else 0.25
    write_kv(k, v, *caches, slots, k_scale=scale, v_scale=2.0)
    unit = scale[:, None] if per_head else scale
    for t, slot in enumerate(slots.tolist()):
        if slot < 0:
            continue
        for x, cache, by in ((k, caches[0], unit), (v, caches[1], 2.0)):
            want = (x[t].float() / by).clamp(-448, 448).to(torch.float8_e4m3fn)
            assert_bitwise_equal(cache[slot // 4, slot % 4], want)
    assert caches[0].float().abs().sum((1, 2, 3))[3] == 0  # a page that no slot names


def test_write_kv_refuses_wrong_scales() -> None:
    k, v = torch.zeros(2, 1, 2, 16)
    caches = torch.zeros(2, 6, 4, 2, 16).to(torch.float8_e4m3fn).unbind()
    for scale, message in ((0.0, "positive"), (torch.ones(3), r"float32 \[2\]")):
        with pytest.raises(ValueError, match="write_kv: k_scale .*" + message):
            write_kv(k, v, *caches, _int32(0), k_scale=scale)
    with pytest.raises(ValueError, match="slots must be -1"):
        write_kv(k, v, *caches, _int32(24))
    with pytest.raises(ValueError, match="k_scale is for float8_e4m3fn"):
        write_kv(k, v, *_caches(), _int32(0), k_scale=2.0)


def test_ops_pass_opcheck() -> None:
    k, v = torch.randn(2, 2, 2, 16).unbind()
    opcheck(torch.ops.ttc_kernels.write_kv.default, (k, v, *_caches(), _int32(3, -1)))
    copies = _int32(0, 1, 2).reshape(1, 3)
    k_cache, v_cache = _caches()
    opcheck(torch.ops.ttc_kernels.copy_pages.default, ([k_cache], [v_cache], copies))
    slots = _int32(5, 7), _int32(4, -1)
    opcheck(torch.ops.ttc_kernels.commit_kv.default, ([k_cache], [v_cache], *slots))
