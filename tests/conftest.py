"""Fixtures shared by all tests, and the count of GPU tests that did not run."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from ttc_kernels.testing import use_interpreter

if not torch.cuda.is_available() and importlib.util.find_spec("triton") is not None:
    use_interpreter()  # before anything imports triton


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where a test runs: a GPU if the test is marked `gpu`, else the CPU."""
    if request.node.get_closest_marker("gpu") is None:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda")


@pytest.fixture
def triton_device() -> torch.device:
    """Where Triton kernels run: on a GPU, or in the interpreter on the CPU."""
    pytest.importorskip("triton", reason="triton is not installed")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where there is a GPU, tests of Triton and CUDA kernels are GPU tests."""
    if torch.cuda.is_available():
        for item in items:
            if {"triton_device", "cuda_kernels"} & set(getattr(item, "fixturenames", ())):
                item.add_marker("gpu")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    for report in skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        terminalreporter.write_line(f"skipped {report.nodeid}: {reason}")
