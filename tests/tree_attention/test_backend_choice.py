"""Which backend a call on a GPU takes, and what it says where the CUDA kernels will not do."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import ttc_kernels
from ttc_kernels import _load
from ttc_kernels._attention_input import resolve_backend


def plan(dtype=torch.bfloat16, device="cuda"):
    """As much of a plan as the choice looks at: this machine may have no GPU."""
    return SimpleNamespace(dtype=dtype, kv_dtype=dtype, device=torch.device(device))


@pytest.fixture
def cuda(monkeypatch):
    """A CUDA build of torch on a GPU that the kernels serve; tests take parts of it away."""
    monkeypatch.setattr(_load, "cuda_error", None)
    monkeypatch.setattr(_load, "cuda_architecture", lambda device: ("sm_80", ""))
    return monkeypatch


def test_auto_takes_the_cuda_kernels(cuda):
    assert resolve_backend("auto", plan()) == "cuda"
    assert resolve_backend("auto", plan(torch.float16)) == "cuda"
    assert resolve_backend("cuda", plan()) == "cuda"
    assert resolve_backend("auto", plan(device="cpu")) == "cpu"


def refused(reason, *arguments):
    with pytest.raises(ValueError, match=f'backend "cuda" will not do: {reason}.*"triton" would'):
        resolve_backend("cuda", *arguments)
    pytest.importorskip("triton", reason="triton is not installed")
    assert resolve_backend("auto", *arguments) == "triton"


def test_what_the_cuda_kernels_do_not_serve(cuda):
    refused("it computes in float16 and bfloat16, got float32", plan(torch.float32))
    reason = "the kernels need compute capability 8.0 or newer, Quadro has 7.5"
    cuda.setattr(_load, "cuda_architecture", lambda device: (None, reason))
    refused("the kernels need compute capability 8.0 or newer, Quadro has 7.5", plan())
    cuda.setattr(_load, "CUDA_OPS", ())
    refused("this build has no CUDA kernel for it", plan())
    cuda.undo()
    cuda.setattr(_load, "cuda_error", "the driver here is for 11.4")
    refused("the driver here is for 11.4", plan())


def test_a_plan_on_the_cpu_is_refused():
    with pytest.raises(ValueError, match='backend "cuda" needs a plan on a GPU, got cpu'):
        resolve_backend("cuda", plan(device="cpu"))


def test_the_report_names_the_cuda_kernel():
    status = ttc_kernels.backends()["tree_attention"]["cuda"]
    assert status.startswith("available") or "no CUDA kernel" not in status
