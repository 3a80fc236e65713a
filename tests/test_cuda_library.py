"""When the CUDA kernels are loaded, and what a report says when they are not."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import ttc_kernels
from tests.ledger import cuda
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


@pytest.fixture(scope="module")
def built() -> Path:
    """The library, compiled here: minutes, unless that was done before."""
    missing = cuda.missing_tools() or (None if shutil.which("readelf") else "there is no readelf")
    if missing:
        pytest.skip(f"the CUDA library is not built: {missing}")
    return cuda.build()


def _lines(*command: object) -> list[str]:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_the_library_needs_torch_and_the_system_only(built):
    """Neither libcudart, which is linked in, nor libcuda, which that opens itself, nor a path."""
    dynamic = _lines("readelf", "-d", built)
    needed = {m[1] for line in dynamic if (m := re.search(r"NEEDED.*\[(.*)\]", line))}
    system = {"libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libc.so.6", "ld-linux-x86-64.so.2"}
    assert needed - system == {"libtorch_cuda.so", "libtorch_cpu.so"}
    assert not any(re.search(r"RPATH|RUNPATH", line) for line in dynamic)


def test_undefined_symbols_are_of_the_stable_abi_and_the_system(built):
    entries = [line.split() for line in _lines("nm", "-D", "--undefined-only", built)]
    undefined = {entry[-1].split("@")[0] for entry in entries if entry[-2] == "U"}
    of_torch = {s for s in undefined if re.match(r"aoti_torch_|torch_", s)}
    system = [ctypes.CDLL(name) for name in ("libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", None)]
    unknown = {s for s in undefined - of_torch if not any(hasattr(lib, s) for lib in system)}
    assert unknown == set()
    # What a CPU build of torch lacks; the rest is what _C.abi3.so needs too.
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    of_cpu = {line.split()[-1] for line in _lines("nm", "-D", "--defined-only", library)}
    assert of_torch - of_cpu == {"aoti_torch_get_current_cuda_stream"}


def test_the_library_loads_under_a_cuda_build_of_torch(built, tmp_path):
    """Such a build is gigabytes: TTC_CUDA_TORCH names a python that has one."""
    python = os.environ.get("TTC_CUDA_TORCH")
    if python is None:
        pytest.skip("TTC_CUDA_TORCH names no python with a CUDA build of torch >= 2.11")
    package = tmp_path / "ttc_kernels"
    shutil.copytree(cuda.ROOT / "ttc_kernels", package, ignore=shutil.ignore_patterns("_C_cuda.*"))
    for file in (built, built.with_name("_C_cuda.json")):
        shutil.copy(file, package)
    say = "from ttc_kernels import _load; print(_load.cuda_error, _load.__file__)"
    done = subprocess.run([python, "-c", say], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == ["None", str(package / "_load.py")], done.stderr


def test_the_library_says_what_it_was_built_with(built):
    build = json.loads(built.with_name("_C_cuda.json").read_text())
    assert build["toolkit"] == cuda.compiler()


def test_every_op_of_the_library_is_known():
    """`_load.CUDA_OPS` and the registrations of csrc/*/op_cuda*.cpp."""
    sources = "".join(file.read_text() for file in cuda.ROOT.glob("csrc/*/op_cuda*.cpp"))
    assert set(re.findall(r'm\.impl\("(\w+)"', sources)) == set(_load.CUDA_OPS)


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """common/cuda_errors.h with the run time that the library has."""
    if shutil.which("nvcc") is None:
        pytest.skip("there is no nvcc")
    source, library = (
        Path(__file__).with_name("cuda_errors.cpp"),
        tmp_path_factory.mktemp("e") / "e.so",
    )
    command = ["nvcc", "-std=c++20", "-shared", "-Xcompiler=-fPIC", f"-I{cuda.ROOT}/csrc"]
    _lines(*command, source, "-o", library)
    loaded = ctypes.CDLL(str(library))
    loaded.too_old.restype = loaded.failure.restype = ctypes.c_char_p
    return loaded


def test_an_error_names_the_cause_and_what_would_do(errors):
    assert errors.too_old(75).decode() == (
        "write_kv: the CUDA kernels need compute capability 8.0 or newer, cuda:1 has 7.5; do this"
    )
    insufficient_driver, no_kernel_image = 35, 209
    assert errors.failure(insufficient_driver, 12080).decode() == (
        f"write_kv: the CUDA kernels were built for CUDA {cuda.compiler().rsplit('.', 1)[0]}, the "
        "driver here serves CUDA 12.8; do this"
    )
    text = errors.failure(no_kernel_image, 13000).decode()
    assert text.startswith("write_kv: the launch on cuda:1 (sm_90) failed: cudaErrorNoKernelImage")
    assert text.endswith("; do this")


def test_the_error_of_a_machine_without_a_driver(errors):
    driver = ctypes.c_int(-1)
    status = errors.status_here(ctypes.byref(driver))
    if status == 0:
        pytest.skip("there is a CUDA device")
    text = errors.failure(status, driver).decode()
    if driver.value == 0:
        assert text == "write_kv: there is no CUDA driver on this machine; do this"
    else:
        assert "failed: cudaError" in text
