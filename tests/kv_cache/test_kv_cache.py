"""write_kv and copy_pages against their definitions, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.library import opcheck

from ttc_kernels import reference
from ttc_kernels._host import PagePool
from ttc_kernels.kv_cache import commit_kv, copy_pages, write_kv
from ttc_kernels.testing import assert_bitwise_equal, assert_close_to_reference

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
    with pytest.raises(ValueError, match=r"slots\[0\] must be -1"):
        write_kv(k, v, *caches, _int32(24))
    with pytest.raises(ValueError, match="k_scale is for float8_e4m3fn"):
        write_kv(k, v, *_caches(), _int32(0), k_scale=2.0)


def _rope(dtype: torch.dtype, rope_dim: int, max_position: int = 50) -> torch.Tensor:
    angles = torch.arange(max_position).outer(10000 ** -(torch.arange(rope_dim // 2) / rope_dim))
    return torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype)


def _rotate_in_float32(x: torch.Tensor, cos_sin: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """Every product and sum rounded by itself."""
    half = cos_sin.shape[1] // 2
    cos, sin = cos_sin.float().unsqueeze(1).split(half, dim=-1)
    x = x.float().clone()
    one = (..., slice(0, 2 * half, 2)) if interleaved else (..., slice(0, half))
    two = (..., slice(1, 2 * half, 2)) if interleaved else (..., slice(half, 2 * half))
    x[one], x[two] = x[one] * cos - x[two] * sin, x[two] * cos + x[one] * sin
    return x


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rope_dim", [16, 6])
@pytest.mark.parametrize("dtype", DTYPES)
def test_write_kv_rotates_keys(dtype: torch.dtype, rope_dim: int, interleaved: bool) -> None:
    torch.manual_seed(0)
    k, v = torch.randn(9, 4, 16).to(dtype).chunk(2, dim=1)
    slots, positions = torch.randperm(24)[:9].int(), torch.randint(0, 50, (9,))
    slots[3], positions[3] = -1, 1 << 40  # padding is not looked at
    cos_sin = _rope(torch.float32, rope_dim)
    caches, expected = _caches(dtype), _caches(dtype)
    for cache, want in zip(caches, expected, strict=True):
        want.copy_(cache)
    write_kv(k, v, *caches, slots, positions=positions, cos_sin=cos_sin, interleaved=interleaved)
    positions[3] = 0
    rotated = _rotate_in_float32(k, cos_sin[positions], interleaved)
    reference.write_kv(rotated, v, *expected, slots)
    assert_bitwise_equal(caches[0], expected[0])
    assert_bitwise_equal(caches[1], expected[1])
    want = reference.kv_cache.rotate(k, cos_sin[positions], interleaved)
    assert_close_to_reference(rotated.to(dtype), want, want.to(dtype))


@pytest.mark.parametrize("cos_sin_dtype", [torch.float32, torch.bfloat16])
def test_write_kv_rotates_and_quantises(cos_sin_dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    k, v = torch.randn(2, 5, 2, 16).bfloat16().unbind()
    caches = torch.zeros(2, 6, 4, 2, 16).to(torch.float8_e4m3fn).unbind()
    slots, positions = _int32(0, 5, 6, 7, 8), torch.arange(5) * 9
    cos_sin, scales = _rope(cos_sin_dtype, 16), torch.tensor([0.01, 0.3])
    write_kv(k, v, *caches, slots, scales, 0.5, positions=positions, cos_sin=cos_sin)
    rotated = _rotate_in_float32(k, cos_sin[positions], False)
    for cache, want in zip(caches, (rotated / scales[:, None], v.float() / 0.5), strict=True):
        got = cache.view(torch.uint8).flatten(0, 1)[slots.long()].view(cache.dtype)
        assert_bitwise_equal(got, want.clamp(-448, 448).to(cache.dtype))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"positions": None}, ValueError, "positions and cos_sin go together"),
        ({"cos_sin": None}, ValueError, "positions and cos_sin go together"),
        ({"positions": torch.tensor([0, 8])}, ValueError, r"positions\[1\] .* \[0, 8\), got 8"),
        ({"positions": torch.tensor([0, -1])}, ValueError, r"positions\[1\] .* got -1"),
        ({"positions": torch.tensor([0])}, ValueError, r"positions must be a contiguous \[2\]"),
        ({"positions": _int32(0, 1)}, TypeError, "positions must be int64, got torch.int32"),
        ({"cos_sin": torch.zeros(8, 5)}, ValueError, r"cos_sin .* at most 16.* got \[8, 5\]"),
        ({"cos_sin": torch.zeros(8, 18)}, ValueError, "cos_sin must be contiguous"),
        ({"cos_sin": torch.zeros(8, 4).half()}, TypeError, "cos_sin must be float32"),
    ],
)
def test_write_kv_refuses_wrong_rotations(change: dict, error: type, message: str) -> None:
    k_cache, v_cache = torch.zeros(2, 6, 4, 2, 16).unbind()
    new = torch.ones(2, 2, 16)
    options = {"positions": torch.tensor([0, 1]), "cos_sin": torch.zeros(8, 4)} | change
    with pytest.raises(error, match="write_kv: .*" + message):
        write_kv(new, new, k_cache, v_cache, _int32(0, 1), **options)
    assert not k_cache.any() and not v_cache.any()


def test_float8_caches_are_copied_and_committed() -> None:
    cache = torch.arange(24.0).reshape(6, 4, 1, 1).to(torch.float8_e4m3fn)
    other = torch.zeros(6, 4, 1, 1).to(torch.float8_e4m3fn)
    copy_pages([cache], [other], _int32(0, 1, 3).reshape(1, 3))
    commit_kv([cache], [other], _int32(8), _int32(20))
    got = cache.float().flatten()
    assert got[4:8].tolist() == [0, 1, 2, 7] and got[20] == 8


def test_compiled_calls_do_what_eager_calls_do() -> None:
    def step(k, v, k_cache, v_cache, slots, positions, cos_sin, copies, src, dst):
        write_kv(k, v, k_cache, v_cache, slots, positions=positions, cos_sin=cos_sin)
        copy_pages([k_cache], [v_cache], copies)
        commit_kv([k_cache], [v_cache], src, dst)
        return k_cache.sum()

    k, v = torch.randn(2, 3, 2, 16).unbind()
    rest = (_int32(0, 5, 6), torch.tensor([3, 4, 9]), _rope(torch.float32, 16))
    rest += (_int32(1, 3, 4).reshape(1, 3), _int32(13), _int32(20))
    eager, compiled = ([cache.clone() for cache in torch.zeros(2, 6, 4, 2, 16)] for _ in range(2))
    total = step(k, v, *eager, *rest)
    again = torch.compile(step, fullgraph=True, backend="aot_eager")(k, v, *compiled, *rest)
    assert_bitwise_equal(again, total)
    for got, want in zip(compiled, eager, strict=True):
        assert_bitwise_equal(got, want)


def test_ops_pass_opcheck() -> None:
    k, v = torch.randn(2, 2, 2, 16).unbind()
    opcheck(torch.ops.ttc_kernels.write_kv.default, (k, v, *_caches(), _int32(3, -1)))
    rope = (torch.tensor([1, 2]), _rope(torch.float32, 8), True)
    opcheck(
        torch.ops.ttc_kernels.write_kv.default,
        (k, v, *_caches(), _int32(3, -1), 1.0, 1.0, None, None, *rope),
    )
    caches = torch.zeros(2, 6, 4, 2, 16).to(torch.float8_e4m3fn).unbind()
    opcheck(
        torch.ops.ttc_kernels.write_kv.default,
        (k, v, *caches, _int32(3, -1), 1.0, 2.0, torch.ones(2), None, *rope),
        test_utils=("test_autograd_registration", "test_faketensor"),  # others compute in float8
    )
    copies = _int32(0, 1, 2).reshape(1, 3)
    k_cache, v_cache = _caches()
    opcheck(torch.ops.ttc_kernels.copy_pages.default, ([k_cache], [v_cache], copies))
    slots = _int32(5, 7), _int32(4, -1)
    opcheck(torch.ops.ttc_kernels.commit_kv.default, ([k_cache], [v_cache], *slots))
