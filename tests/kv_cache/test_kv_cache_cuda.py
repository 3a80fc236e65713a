"""The CUDA kernels of write_kv, copy_pages and commit_kv: on a GPU, or in the emulator without one.

What they are compared with, bit for bit, are the kernels of the CPU and the definitions.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

from tests.emulator.build import Adapter
from ttc_kernels import _load, commit_kv, copy_pages, merge_states, reference, write_kv
from ttc_kernels.testing import assert_bitwise_equal

FP8 = torch.float8_e4m3fn
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


class Emulated:
    """The ops on CPU tensors; the order of blocks and warps is another in every call."""

    def __init__(self) -> None:
        self._kernels = Adapter(Path(__file__).with_name("emulated.cpp"))
        self._calls = 0

    def _call(self, *arguments: object) -> None:
        self._calls += 1
        self._kernels.call(*arguments, seed=self._calls, resident=1 + self._calls % 3)

    def write_kv(
        self, k, v, k_cache, v_cache, slots, k_scale=1.0, v_scale=1.0, *, positions=None,
        cos_sin=None, interleaved=False,
    ) -> None:  # fmt: skip
        scales = [
            (1.0, s) if isinstance(s, torch.Tensor) else (s, None) for s in (k_scale, v_scale)
        ]
        strides = [s * x.element_size() for x in (k, v) for s in x.stride()[:2]]
        rope_dtype, rope_dim = (0, 0) if cos_sin is None else (_dtype(cos_sin), cos_sin.shape[1])
        self._call(
            "write_kv", k, v, _bytes(k_cache), _bytes(v_cache), slots, *k.shape, _dtype(k),
            k_cache.dtype == FP8, *strides, *(number for number, _ in scales),
            *(tensor for _, tensor in scales), positions, cos_sin, rope_dtype, rope_dim,
            interleaved,
        )  # fmt: skip

    def copy_pages(self, k_caches, v_caches, copies) -> None:
        table, token_bytes = _table(k_caches, v_caches)
        page_size = k_caches[0].shape[1]
        self._call("copy_pages", table, len(table), copies, len(copies), page_size, token_bytes)

    def commit_kv(self, k_caches, v_caches, src, dst) -> None:
        table, token_bytes = _table(k_caches, v_caches)
        self._call("commit_kv", table, len(table), src, dst, len(src), token_bytes)


class OnGpu:
    """The ops on copies of CPU tensors."""

    def write_kv(self, k, v, k_cache, v_cache, *rest, **options) -> None:
        caches = [k_cache.cuda(), v_cache.cuda()]
        rest = [x.cuda() if isinstance(x, torch.Tensor) else x for x in rest]
        options = {n: x.cuda() if isinstance(x, torch.Tensor) else x for n, x in options.items()}
        # Strides are part of what is tested.
        new = [
            torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda") for x in (k, v)
        ]
        for to, x in zip(new, (k, v), strict=True):
            to.copy_(x)
        write_kv(*new, *caches, *rest, **options)
        k_cache.copy_(caches[0])
        v_cache.copy_(caches[1])

    def _move(self, op, k_caches, v_caches, *rest) -> None:
        sides = [[cache.cuda() for cache in side] for side in (k_caches, v_caches)]
        op(*sides, *(x.cuda() for x in rest))
        for side, caches in zip(sides, (k_caches, v_caches), strict=True):
            for cache, moved in zip(caches, side, strict=True):
                cache.copy_(moved)

    def copy_pages(self, *arguments) -> None:
        self._move(copy_pages, *arguments)

    def commit_kv(self, *arguments) -> None:
        self._move(commit_kv, *arguments)


@pytest.fixture(scope="module")
def cuda_kernels() -> Emulated | OnGpu:
    if not torch.cuda.is_available():
        return Emulated()
    if _load.cuda_error is not None:
        pytest.skip(f"the CUDA kernels are not loaded: {_load.cuda_error}")
    return OnGpu()


def _dtype(x: torch.Tensor) -> int:
    return DTYPES.index(x.dtype)


def _bytes(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.uint8) if x.dtype == FP8 else x


def _table(k_caches, v_caches) -> tuple[torch.Tensor, int]:
    addresses = torch.tensor([cache.data_ptr() for cache in (*k_caches, *v_caches)])
    first = k_caches[0]
    return addresses, first.shape[2] * first.shape[3] * first.element_size()


def _caches(dtype: torch.dtype, dim: int, heads: int = 2) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return list(torch.randn(2, 6, 4, heads, dim).to(dtype))


def _new_tokens(layout: str, dtype: torch.dtype, heads: int, dim: int, tokens: int = 9):
    torch.manual_seed(0)
    if layout == "qkv":
        fused = torch.randn(tokens, 3 * heads, dim).to(dtype)
        return fused[:, heads : 2 * heads], fused[:, 2 * heads :]
    if layout == "head_major":
        return torch.randn(2, heads, tokens, dim).to(dtype).transpose(1, 2).unbind()
    if layout == "odd":  # begins at no multiple of 16 bytes
        flat = torch.randn(2, 1 + tokens * heads * dim).to(dtype)[:, 1:]
        return [row.reshape(tokens, heads, dim) for row in flat]
    return torch.randn(2, tokens, heads, dim).to(dtype).unbind()


def _slots(tokens: int = 9) -> torch.Tensor:
    slots = torch.randperm(24, generator=torch.Generator().manual_seed(2))[:tokens].int()
    slots[3] = -1
    return slots


def _rope(dtype: torch.dtype, rope_dim: int) -> torch.Tensor:
    angles = torch.randn(30, rope_dim // 2, generator=torch.Generator().manual_seed(3))
    return torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype)


def _check_write(kernels, k, v, cache_dtype, *rest, **options) -> None:
    got, want = (_caches(cache_dtype, k.shape[2], k.shape[1]) for _ in range(2))
    write_kv(k, v, *want, _slots(), *rest, **options)
    kernels.write_kv(k, v, *got, _slots(), *rest, **options)
    for x, y in zip(got, want, strict=True):
        assert_bitwise_equal(_bytes(x), _bytes(y))


@pytest.mark.parametrize("dim", [64, 20])
@pytest.mark.parametrize("layout", ["contiguous", "qkv", "head_major", "odd"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_write_kv_moves_tokens_as_they_are(cuda_kernels, dtype, layout, dim):
    _check_write(cuda_kernels, *_new_tokens(layout, dtype, 2, dim), dtype)


def test_write_kv_of_many_heads(cuda_kernels):
    """More pieces to a token than a block has threads."""
    _check_write(cuda_kernels, *_new_tokens("qkv", torch.float32, 5, 128), torch.float32)


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("layout", ["qkv", "odd"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_write_kv_rounds_to_float8(cuda_kernels, dtype, layout, per_head):
    k, v = _new_tokens(layout, dtype, 2, 32)
    scale = torch.tensor([0.01, 3.0]) if per_head else 0.125
    _check_write(cuda_kernels, k, v, FP8, scale, 2.0)


def test_write_kv_rounds_all_magnitudes_to_float8(cuda_kernels):
    """Every value, the ties between them, subnormals, overflow."""
    grid = torch.arange(127, dtype=torch.uint8).view(FP8).float()
    middle = (grid[1:] + grid[:-1]) / 2
    values = torch.cat(
        [grid, -grid, middle, -middle, torch.tensor([1e4, -1e4, 2.0**-10, 2.0**-11])]
    )
    k = torch.zeros(9, 2, 32)
    k.view(-1)[: len(values)] = values
    _check_write(cuda_kernels, k, -k, FP8)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rope_dim", [64, 32, 20])
@pytest.mark.parametrize("to_float8", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_write_kv_rotates_keys(cuda_kernels, dtype, to_float8, rope_dim, interleaved):
    k, v = _new_tokens("qkv", dtype, 2, 64)
    options = {"positions": torch.arange(9) * 3, "interleaved": interleaved}
    for table_dtype in {torch.float32, dtype}:
        options["cos_sin"] = _rope(table_dtype, rope_dim)
        _check_write(cuda_kernels, k, v, FP8 if to_float8 else dtype, **options)


def test_write_kv_rotates_unaligned_keys(cuda_kernels):
    for interleaved in (False, True):
        options = {"positions": torch.arange(9), "cos_sin": _rope(torch.float32, 32)}
        k, v = _new_tokens("odd", torch.float16, 2, 32)
        _check_write(cuda_kernels, k, v, torch.float16, **options, interleaved=interleaved)


def _check_moves(op, define, dtype, shape, *indices, layers=2) -> None:
    torch.manual_seed(0)
    got = [[torch.randn(shape).to(dtype) for _ in range(layers)] for _ in range(2)]
    want = [[cache.clone() for cache in side] for side in got]
    op(*got, *indices)
    define(*want, *indices)
    for x, y in zip(got[0] + got[1], want[0] + want[1], strict=True):
        assert_bitwise_equal(_bytes(x), _bytes(y))


# A token of 16-byte pieces, of 2-byte pieces, and of bytes.
TOKENS = [(torch.float32, (6, 4, 2, 16)), (torch.bfloat16, (6, 4, 1, 9)), (FP8, (6, 4, 3, 5))]


@pytest.mark.parametrize(("dtype", "shape"), TOKENS)
def test_copy_pages_in_order(cuda_kernels, dtype, shape):
    copies = [[0, 1, 3], [1, 2, 4], [5, 4, 0], [2, 0, 1]]
    copies = torch.tensor(copies, dtype=torch.int32)
    _check_moves(cuda_kernels.copy_pages, reference.copy_pages, dtype, shape, copies)


def test_copy_pages_in_chains_and_fans(cuda_kernels):
    """Longer than what a thread reads at once, with and without copies that need each other."""
    generator = torch.Generator().manual_seed(4)
    for pages in (2, 4, 40):
        pairs = torch.stack([torch.randperm(pages, generator=generator)[:2] for _ in range(21)])
        counts = torch.randint(0, 5, (21, 1), generator=generator)
        copies = torch.cat([pairs, counts], dim=1).int()
        _check_moves(
            cuda_kernels.copy_pages, reference.copy_pages, torch.float16, (pages, 4, 1, 8), copies
        )


@pytest.mark.parametrize(("dtype", "shape"), TOKENS)
def test_commit_kv_moves_an_accepted_path(cuda_kernels, dtype, shape):
    src = torch.tensor([4, 6, 9, 10, -1, 17, 20, 3], dtype=torch.int32)
    dst = torch.tensor([4, 5, 6, 7, 8, 16, 17, -1], dtype=torch.int32)
    _check_moves(cuda_kernels.commit_kv, reference.commit_kv, dtype, shape, src, dst)


def test_commit_kv_of_more_tokens_than_move_at_a_time(cuda_kernels):
    """A path of 300 tokens moved down by one place: every destination is the source before it."""
    slots = torch.arange(300, dtype=torch.int32)
    _check_moves(
        cuda_kernels.commit_kv, reference.commit_kv, torch.float32, (20, 16, 1, 4), slots + 1, slots
    )


def test_moves_in_more_layers_than_one_launch_takes(cuda_kernels):
    copies = torch.tensor([[0, 1, 2]], dtype=torch.int32)
    src, dst = torch.tensor([[1], [0]], dtype=torch.int32)
    for op, define, *indices in (
        (cuda_kernels.copy_pages, reference.copy_pages, copies),
        (cuda_kernels.commit_kv, reference.commit_kv, src, dst),
    ):
        _check_moves(op, define, torch.float16, (2, 2, 1, 8), *indices, layers=250)


def test_nothing_to_do(cuda_kernels):
    none = torch.zeros(0, dtype=torch.int32)
    _check_moves(
        cuda_kernels.copy_pages, reference.copy_pages, torch.float16, (2, 2, 1, 8),
        none.reshape(0, 3),
    )  # fmt: skip
    _check_moves(
        cuda_kernels.commit_kv, reference.commit_kv, torch.float16, (2, 2, 1, 8), none, none
    )
    caches = _caches(torch.float32, 16)
    before = [cache.clone() for cache in caches]
    new = torch.zeros(0, 2, 16)
    cuda_kernels.write_kv(new, new, *caches, none)
    for x, y in zip(caches, before, strict=True):
        assert_bitwise_equal(x, y)


@pytest.mark.gpu
def test_moves_are_captured_in_a_graph(device):
    """A replay reads the indices and tokens that are there then."""
    caches = [[torch.zeros(6, 4, 2, 16, device=device) for _ in range(3)] for _ in range(2)]
    new = torch.randn(2, 2, 2, 16, device=device)
    slots, src, dst = torch.tensor([[0, 5], [5, -1], [20, -1]], dtype=torch.int32, device=device)
    copies = torch.tensor([[1, 3, 2]], dtype=torch.int32, device=device)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        write_kv(new[0], new[1], caches[0][0], caches[1][0], slots)
        copy_pages(*caches, copies)
        commit_kv(*caches, src, dst)
    slots[1], copies[0, 1], dst[0] = 6, 2, 23
    src[0] = 6
    new.add_(1)
    want = [[cache.cpu() for cache in side] for side in caches]
    graph.replay()
    reference.write_kv(*new.cpu(), want[0][0], want[1][0], slots.cpu())
    reference.copy_pages(*want, copies.cpu())
    reference.commit_kv(*want, src.cpu(), dst.cpu())
    for got, expected in zip(caches[0] + caches[1], want[0] + want[1], strict=True):
        assert_bitwise_equal(got.cpu(), expected)


@pytest.mark.gpu
def test_ops_on_a_gpu_pass_opcheck_and_compile(device):
    k = torch.randn(2, 2, 16, device=device)
    k_cache, v_cache = torch.zeros(2, 6, 4, 2, 16, device=device).unbind()
    slots = torch.tensor([3, -1], dtype=torch.int32, device=device)
    rope = (torch.tensor([1, 2], device=device), torch.randn(9, 16, device=device))
    ops = torch.ops.ttc_kernels
    opcheck(ops.write_kv.default, (k, k, k_cache, v_cache, slots, 1.0, 1.0, None, None, *rope))
    copies = torch.tensor([[0, 1, 2]], dtype=torch.int32, device=device)
    opcheck(ops.copy_pages.default, ([k_cache], [v_cache], copies))
    opcheck(ops.commit_kv.default, ([k_cache], [v_cache], slots, slots + 4))

    def step(k, k_cache, v_cache, slots, positions, cos_sin):
        write_kv(k, k, k_cache, v_cache, slots, positions=positions, cos_sin=cos_sin)
        return k_cache.sum()

    torch.compile(step, fullgraph=True)(k, k_cache, v_cache, slots, *rope)


@pytest.mark.gpu
def test_a_gpu_refuses_what_the_cpu_refuses(device):
    caches = torch.zeros(2, 6, 4, 2, 16, device=device).unbind()
    k, slots = torch.zeros(2, 2, 16, device=device), torch.zeros(2, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"slots must be .* on cuda:0, got \[2\] .* on cpu"):
        write_kv(k, k, *caches, slots)
    with pytest.raises(ValueError, match=r"k must be \[T, 2, 16\] .* on cpu"):
        write_kv(k.cpu(), k, *caches, slots.to(device))
    with pytest.raises(ValueError, match="as many tokens, got 2 and 1"):
        write_kv(k, k[:1], *caches, slots.to(device))


def test_fake_tensors_on_a_gpu_need_no_gpu():
    with FakeTensorMode():
        k, k_cache, v_cache = (
            torch.empty(shape, device="cuda")
            for shape in ((2, 2, 16), (6, 4, 2, 16), (6, 4, 2, 16))
        )
        slots = torch.empty(2, dtype=torch.int32, device="cuda")
        rope = {"positions": slots.long(), "cos_sin": k.new_empty(9, 16)}
        write_kv(k, k, k_cache, v_cache, slots, **rope)
        copy_pages([k_cache], [v_cache], slots.new_empty(4, 3))
        commit_kv([k_cache], [v_cache], slots, slots)
        out, lse = merge_states(k.new_empty(3, 5, 2, 16), k.new_empty(3, 5, 2))
    assert out.device.type == lse.device.type == "cuda"
    assert out.shape == (5, 2, 16) and lse.shape == (5, 2)
