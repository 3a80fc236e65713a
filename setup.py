"""Builds the compiled modules with CMake; everything else is declared in pyproject.toml.

TTC_CUDA=1 builds the CUDA kernels too, TTC_CUDA=0 does not. Without it a wheel gets them where nvcc
is found, and an editable installation does not: they take minutes and need a GPU to run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
CUDA_FILES = ("_C_cuda.so", "_C_cuda.json")


class CMakeBuild(build_ext):
    """CMake puts every compiled module beside the Python package."""

    def run(self) -> None:
        package_dir = Path(self.get_ext_fullpath("ttc_kernels._host")).parent.resolve()
        package_dir.mkdir(parents=True, exist_ok=True)
        tag = sys.implementation.cache_tag
        cmake_build(ROOT / "build" / f"cmake-{tag}", package_dir, ["-DTTC_CUDA=OFF"], "all")
        for file in CUDA_FILES:  # none of an earlier build, which may not fit these ops
            (package_dir / file).unlink(missing_ok=True)
        if self._wants_cuda():
            # A tree of its own: the tests read the resources of the kernels from its objects.
            build_dir = ROOT / "build" / "cuda"
            cmake_build(build_dir, build_dir / "modules", ["-DTTC_CUDA=ON"], "_C_cuda")
            for file in CUDA_FILES:
                shutil.copy(build_dir / "modules" / file, package_dir)

    def _wants_cuda(self) -> bool:
        wish = os.environ.get("TTC_CUDA", "")
        if wish not in ("", "0", "1"):
            raise ValueError(f"TTC_CUDA must be 0 or 1, got {wish!r}")
        if wish == "1" and shutil.which("nvcc") is None:
            raise FileNotFoundError("TTC_CUDA=1 needs nvcc on PATH")
        editable = self.inplace or getattr(self, "editable_mode", False)
        return wish == "1" or (wish == "" and not editable and shutil.which("nvcc") is not None)


def cmake_build(build_dir: Path, output_dir: Path, options: list[str], target: str) -> None:
    """Configures and builds one target, incrementally."""
    configure = [
        "cmake", "-S", str(ROOT), "-B", str(build_dir), "-GNinja",
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DPython3_EXECUTABLE={sys.executable}",
        f"-DTTC_OUTPUT_DIR={output_dir}",
        *options,
    ]  # fmt: skip
    # cmake and ninja may be installed beside the interpreter, which need not be on PATH.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    env = {**os.environ, "PATH": path}
    subprocess.run(configure, check=True, env=env)
    jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 2))
    build = ["cmake", "--build", str(build_dir), "--target", target, "-j", jobs]
    subprocess.run(build, check=True, env=env)


if __name__ == "__main__":
    setup(
        ext_modules=[Extension("ttc_kernels._host", []), Extension("ttc_kernels._C", [])],
        cmdclass={"build_ext": CMakeBuild},
    )
