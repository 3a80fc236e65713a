"""The package as users meet it: imports, compiled modules, reports, docstring examples."""

from __future__ import annotations

import doctest
import importlib
import operator
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ttc_kernels
from ttc_kernels.collect_env import collect_env

PACKAGE = Path(ttc_kernels.__file__).parent


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")


def test_import_starts_no_gpu_and_no_model_library():
    done = python(
        "import sys, torch\n"
        "def refuse(*a, **k): raise AssertionError('asked for a GPU at import')\n"
        "torch.cuda._lazy_init = torch.cuda.is_available = torch.cuda.device_count = refuse\n"
        "import ttc_kernels, ttc_runtime\n"
        "assert 'transformers' not in sys.modules and 'triton' not in sys.modules"
    )
    assert done.returncode == 0, done.stderr


def test_host_module_knows_no_torch():
    done = python(
        "import importlib.util, sys\n"
        f"path = {str(next(PACKAGE.glob('_host*.so')))!r}\n"
        "spec = importlib.util.spec_from_file_location('_host', path)\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "assert module.PagePool(4).num_free == 4 and 'torch' not in sys.modules"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm of binutils")
def test_ops_need_only_the_stable_abi():
    """Undefined symbols: torch's stable C shim, the module API, and the C and C++ run time."""
    library = PACKAGE / "_C.abi3.so"
    command = ["nm", "-D", "--undefined-only", str(library)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    undefined = {line.split()[-1].split("@")[0] for line in lines}
    torch_symbols = {s for s in undefined if "torch" in s}
    assert torch_symbols and all(re.match(r"^(aoti_torch_|torch_)", s) for s in torch_symbols)
    assert {s for s in undefined if s.startswith("_Z") and re.search(r"3c10|2at\d", s)} == set()
    assert {s for s in undefined if s.startswith("Py")} <= {"PyModule_Create2"}


def test_backends_and_environment_report():
    report = ttc_kernels.backends()
    for op, status in report.items():
        assert hasattr(torch.ops.ttc_kernels, op)
        assert status["cpu"].startswith("available")
        named = re.match(r"available as ttc_kernels\.(reference\.\w+)", status["reference"])
        if named:
            found = operator.attrgetter(named[1])(ttc_kernels)
            assert callable(found) or named[1] == "reference.verify_drafts"
        else:
            assert "define" in status["reference"]
        if torch.version.cuda is None:
            assert "build without CUDA" in status["cuda"]
    text = collect_env()
    assert ttc_kernels.__version__ in text and torch.__version__ in text
    done = python("import runpy; runpy.run_module('ttc_kernels.collect_env', run_name='__main__')")
    assert done.returncode == 0 and "tree_attention" in done.stdout


MODULES = sorted(
    m.name
    for m in pkgutil.walk_packages([str(PACKAGE)], "ttc_kernels.")
    if not m.name.split(".")[-1].startswith("_")
)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    module = importlib.import_module(name)
    space = {"ttc_kernels": ttc_kernels, "torch": torch, **vars(ttc_kernels), **vars(module)}
    result = doctest.testmod(module, extraglobs=space, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_public_names_have_docstrings():
    missing = [
        n for n in ttc_kernels.__all__ if n[0] != "_" and not getattr(ttc_kernels, n).__doc__
    ]
    assert missing == []
