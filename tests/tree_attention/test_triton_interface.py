"""The Triton backend beside its arithmetic: 8-bit caches, wrong input, the op, equal bits."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import ttc_kernels
from ttc_kernels import reference
from ttc_kernels.testing import (
    assert_bitwise_equal,
    assert_close_to_reference,
    from_nodes,
    random_forest,
)

FP8 = torch.float8_e4m3fn


@pytest.fixture
def case(make_case, triton_device):
    """fp16, so that it also runs in the interpreter."""
    load = from_nodes("fork", [(-1, 40), (0, 20), (0, 3)], max_q_len=3)
    return dataclasses.replace(
        make_case(load, torch.float16), backend="triton", device=triton_device
    )


def _plan(case, **options):
    load = case.load
    return ttc_kernels.plan_tree_attention(
        load.block_tables, load.kv_lens, load.q_lens, page_size=load.page_size,
        num_q_heads=case.num_q_heads, num_kv_heads=case.num_kv_heads, head_dim=case.head_dim,
        dtype=case.dtype, device=case.device, **options,
    )  # fmt: skip


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("per_head", [False, True])
def test_float8_caches(case, per_head, capability, monkeypatch):
    """With the conversion instruction (in the interpreter: Triton's own), and without it."""
    from ttc_kernels.triton import tree_attention as module

    if case.device.type == "cpu":
        monkeypatch.setattr(module, "_capability", lambda device: capability)
    scales = torch.tensor([0.5, 3.0]) if per_head else torch.tensor([0.7, 0.7])
    given = scales.to(case.device) if per_head else 0.7
    stored = [(x.float() / scales[:, None]).to(FP8) for x in (case.k_cache, case.v_cache)]
    case.k_cache, case.v_cache = (
        (x.float() * scales[:, None]).to(torch.float16) for x in stored
    )  # NaN stays NaN
    exact = [x.double() * scales[:, None] for x in stored]
    out, lse = ttc_kernels.tree_attention(
        case.q.to(case.device), *(x.to(case.device) for x in stored),
        _plan(case, kv_dtype=FP8), k_scale=given, v_scale=given, backend="triton",
    )  # fmt: skip
    load = case.load
    want, want_lse = reference.tree_attention(
        case.q, *exact, load.block_tables, load.kv_lens, load.q_lens
    )
    plain, plain_lse = case.plain_torch()
    assert_close_to_reference(out.cpu(), want, plain)
    assert_close_to_reference(lse.cpu(), want_lse, plain_lse)


def test_a_window_over_split_rows_and_strided_inputs(case):
    """Caches as halves of one tensor, q as a slice of a fused projection."""
    both = torch.stack([case.k_cache, case.v_cache], dim=1).to(case.device)
    fused = torch.randn(len(case.q), 3 * case.num_q_heads, case.head_dim).half().to(case.device)
    fused[:, 4:8] = case.q
    plan = _plan(case)
    out, lse = ttc_kernels.tree_attention(
        fused[:, 4:8], both[:, 0], both[:, 1], plan, backend="triton"
    )
    want, want_lse = case.run()
    assert_bitwise_equal(out.cpu(), want)
    assert_bitwise_equal(lse.cpu(), want_lse)


def test_wrong_input_is_refused_before_the_launch(case):
    q, k, v = (x.to(case.device) for x in (case.q, case.k_cache, case.v_cache))
    plan = _plan(case)

    def call(*args, plan=plan, **kwargs):
        return ttc_kernels.tree_attention(*args, plan, **{"backend": "triton"} | kwargs)

    with pytest.raises(ValueError, match="one set of strides"):
        call(q, k, torch.stack([v, v], 1)[:, 0])
    with pytest.raises(ValueError, match="contiguous in its last dimension"):
        call(q, k.transpose(1, 3).contiguous().transpose(1, 3), v)
    odd = torch.zeros(k.numel() + 1, dtype=k.dtype, device=k.device)[1:].view(k.shape)
    with pytest.raises(ValueError, match="k_cache must begin at a multiple of 16 bytes"):
        call(q, odd, v)
    with pytest.raises(TypeError, match=r"k_cache must be .* float16"):
        call(q, k.float(), v.float())
    with pytest.raises(ValueError, match=r"k_cache must be \[P, 16, 2, 64\]"):
        call(q, k[:, :8], v[:, :8])  # a plan for another page size
    with pytest.raises(ValueError, match=r"q must be \[.*, 4, 64\]"):
        call(q[:, :2], k, v)  # ... head count
    with pytest.raises(ValueError, match="hold every planned page"):
        call(q, k[:1], v[:1])
    with pytest.raises(ValueError, match="k_scale is for float8"):
        call(q, k, v, k_scale=2.0)
    with pytest.raises(ValueError, match="on meta"):
        call(q.to("meta"), k, v)
    with pytest.raises(ValueError, match="backend must be one of"):
        call(q, k, v, backend="gpu")
    fp8_plan = _plan(case, kv_dtype=FP8)
    with pytest.raises(ValueError, match="v_scale must be positive"):
        call(q, k.to(FP8), v.to(FP8), plan=fp8_plan, v_scale=-1.0)
    with pytest.raises(ValueError, match=r"k_scale must be \[2\] float32"):
        call(q, k.to(FP8), v.to(FP8), plan=fp8_plan, k_scale=torch.ones(3, device=k.device))
    plan.workspace = torch.zeros(1, device=case.device)
    plan.capacity = dataclasses.replace(plan.capacity, partials=8)
    with pytest.raises(ValueError, match=r"plan.workspace must have 2112 floats for 8"):
        call(q, k, v)


def test_what_the_cpu_refuses(case, monkeypatch):
    cpu = dataclasses.replace(case, device=torch.device("cpu"))
    fp8 = [x.to(FP8) for x in (case.k_cache, case.v_cache)]
    with pytest.raises(TypeError, match='float8_e4m3fn caches need backend "cuda"'):
        ttc_kernels.tree_attention(case.q, *fp8, _plan(cpu, kv_dtype=FP8))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match='backend "triton" needs a plan on a GPU'):
        ttc_kernels.tree_attention(case.q, case.k_cache, case.v_cache, _plan(cpu), backend="triton")


def test_opcheck(case):
    q, k, v = (x.nan_to_num().to(case.device) for x in (case.q, case.k_cache, case.v_cache))
    plan = _plan(case)
    floats = max(1, plan.stats["partials"]) * 4 * 66
    workspace = torch.zeros(floats, device=case.device)
    out, lse = torch.zeros_like(q), torch.zeros(q.shape[:2], device=case.device)
    torch.library.opcheck(
        torch.ops.ttc_kernels.tree_attention_triton.default,
        (q, k, v, plan.buffer, workspace, 0.125, 0.0, 1.0, None, None, out, lse),
    )


def test_one_launch_serves_every_plan_of_its_buffer(make_case, triton_device):
    """The same tensors and scalars after plan.replan, as a captured graph would run them."""
    load = random_forest(2, num_nodes=8, max_tokens=40)
    case = dataclasses.replace(
        make_case(load, torch.float16), backend="triton", device=triton_device
    )
    capacity = ttc_kernels.PlanCapacity(16, 16, 4096, 64)
    plan = _plan(case, capacity=capacity)
    q, k, v = (x.to(case.device) for x in (case.q, case.k_cache, case.v_cache))
    want, _ = ttc_kernels.tree_attention(q, k, v, plan, backend="triton")
    address = plan.buffer.data_ptr()
    plan.replan(load.block_tables[:2], load.kv_lens[:2], load.q_lens[:2])
    few = int(load.q_lens[:2].sum())
    got, _ = ttc_kernels.tree_attention(q[:few], k, v, plan, backend="triton")
    assert plan.buffer.data_ptr() == address
    np.testing.assert_allclose(got.cpu(), want[:few].cpu(), atol=2e-3)
