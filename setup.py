"""Builds the compiled modules with CMake; everything else is declared in pyproject.toml."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """One CMake configure and build puts every compiled module beside the Python package."""

    def run(self) -> None:
        package_dir = Path(self.get_ext_fullpath("ttc_kernels._host")).parent.resolve()
        build_dir = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        package_dir.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(build_dir), "-GNinja",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython3_EXECUTABLE={sys.executable}",
            f"-DTTC_OUTPUT_DIR={package_dir}",
        ]  # fmt: skip
        # cmake and ninja may be installed beside the interpreter, which need not be on PATH.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        env = {**os.environ, "PATH": path}
        subprocess.run(configure, check=True, env=env)
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 2))
        subprocess.run(["cmake", "--build", str(build_dir), "-j", jobs], check=True, env=env)


setup(
    ext_modules=[Extension("ttc_kernels._host", []), Extension("ttc_kernels._C", [])],
    cmdclass={"build_ext": CMakeBuild},
)
