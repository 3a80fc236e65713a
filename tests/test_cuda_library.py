"""When the CUDA kernels are loaded, and what a report says when they are not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ttc_kernels
from ttc_kernels import _load
from ttc_kernels.collect_env import collect_env


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library of CUDA 13.0 beside a CUDA build of torch, on a machine with a driver for 13.1."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(_load, "_folder", tmp_path)
    monkeypatch.setattr(_load, "_driver", lambda: (13, 1))
    monkeypatch.delenv("TTC_CUDA", raising=False)
    (tmp_path / "_C_cuda.json").write_text('{"toolkit": "13.0.88"}')
    path = tmp_path / "_C_cuda.so"
    path.write_bytes(b"")
    return path


def test_the_library_is_loaded_by_a_cuda_build_with_a_driver_or_none(library, monkeypatch):
    assert _load._why_not(library) is None
    monkeypatch.setattr(_load, "_driver", lambda: None)  # a machine without a GPU
    assert _load._why_not(library) is None


def test_reasons_against_the_library(library, monkeypatch):
    monkeypatch.setenv("TTC_CUDA", "0")
    assert "TTC_CUDA=0" in _load._why_not(library)
    monkeypatch.delenv("TTC_CUDA")
    monkeypatch.setattr(_load, "_driver", lambda: (12, 8))
    reason = _load._why_not(library)
    assert "built with CUDA 13.0.88" in reason and "the driver here is for 12.8" in reason
    assert "without CUDA kernels" in _load._why_not(library.with_name("other.so"))
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "build without CUDA" in _load._why_not(library)


def test_a_library_that_does_not_load_is_a_reason_and_no_crash(library):
    assert "_C_cuda.so could not be loaded: " in _load._load_cuda(library)


@pytest.mark.parametrize(
    ("capability", "architecture"),
    [((8, 0), "sm_80"), ((8, 9), "sm_80"), ((9, 0), "sm_90a"), ((10, 0), "sm_80")],
)
def test_each_gpu_has_its_kernels(monkeypatch, capability, architecture):
    monkeypatch.setattr(_load, "cuda_error", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert _load.cuda_architecture(0) == (architecture, "")
    status = ttc_kernels.backends()["merge_states"]["cuda"]
    assert status == f"available (cuda:0: {architecture})"


def test_an_older_gpu_is_told_why_not(monkeypatch):
    monkeypatch.setattr(_load, "cuda_error", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert _load.cuda_architecture(0) == (None, "torch sees no CUDA GPU")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    architecture, reason = _load.cuda_architecture(0)
    assert architecture is None and "8.0 or newer, Tesla T4 has 7.5" in reason
    assert reason in ttc_kernels.backends()["merge_states"]["cuda"]


def test_the_environment_report_says_what_became_of_the_library():
    (line,) = [line for line in collect_env().splitlines() if line.startswith("CUDA kernels: ")]
    assert ("not loaded: " in line) == (_load.cuda_error is not None)
