"""Compiles the emulator and adapters of CUDA kernels with g++, and calls them.

    kernels = Adapter(Path(__file__).with_name("scale_adapter.cpp"))
    kernels.call("scale", x, x.numel())            # EmulatorError says what the kernel did wrong
    kernels.call("scale", x, n, seed=3, resident=2)  # another order of blocks and warps
    kernels.bytes_read(x)                          # by asynchronous copies and load_global_16

Three variants, the default taken from the environment variable TTC_EMULATOR:

    plain     -O2
    sanitize  AddressSanitizer and UndefinedBehaviorSanitizer; python must run under `preload()`
    race      accesses to shared and global memory checked for races

The last two compile slowly; adapters may leave out instances of templates there (where
EMU_FEW_INSTANCES is defined) unless the environment variable TTC_EMULATOR_ALL is set.

Objects are kept in build/emulator and rebuilt when a file they were made from changes.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import os
import subprocess
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
EMULATOR = ROOT / "tests/emulator"
BUILD = ROOT / "build/emulator"
VARIANTS = ("plain", "sanitize", "race")

_FLAGS = ["-std=c++20", "-fPIC", "-march=native", "-ffp-contract=off", "-Wall", "-Wextra"]
_INCLUDES = [f"-I{path}" for path in (EMULATOR, EMULATOR / "include", ROOT / "csrc")]
_SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
_VARIANT_FLAGS = {
    "plain": ["-O2", "-ftree-vectorize", "-g1"],
    "sanitize": ["-O1", "-g1", "-fno-omit-frame-pointer", *_SANITIZE],
    "race": ["-O2", "-ftree-vectorize", "-g1", "-DEMU_RACE"],
}


class EmulatorError(RuntimeError):
    """A fault of an emulated kernel; the text names kernel, block, warp and lane."""


def default_variant() -> str:
    """The variant named by TTC_EMULATOR, else "plain"."""
    variant = os.environ.get("TTC_EMULATOR", "plain")
    if variant not in VARIANTS:
        raise ValueError(f"TTC_EMULATOR: expected one of {', '.join(VARIANTS)}, got {variant!r}")
    return variant


def preload() -> dict[str, str]:
    """Environment for a python that loads the sanitize variant."""

    def library(name: str) -> str:
        path = subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip()
        return str(Path(path).resolve())

    return {
        # The second one so that the first finds the function behind `throw`.
        "LD_PRELOAD": f"{library('libasan.so')} {library('libstdc++.so')}",
        "ASAN_OPTIONS": "detect_leaks=0:alloc_dealloc_mismatch=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TTC_EMULATOR": "sanitize",
    }


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _up_to_date(target: Path, command: list[str]) -> bool:
    manifest = target.with_suffix(".json")
    if not (target.exists() and manifest.exists()):
        return False
    made = json.loads(manifest.read_text())
    return made["command"] == command and all(
        Path(path).exists() and _digest(Path(path)) == digest
        for path, digest in made["sources"].items()
    )


def _compile(source: Path, variant: str, instrument: bool) -> Path:
    """The object file of a source, made anew only if something it includes has changed."""
    target = (
        BUILD / variant / f"{source.stem}-{hashlib.sha256(str(source).encode()).hexdigest()[:8]}.o"
    )
    flags = [*_FLAGS, *_VARIANT_FLAGS[variant], *_INCLUDES]
    if variant != "plain" and not os.environ.get("TTC_EMULATOR_ALL"):
        flags.append("-DEMU_FEW_INSTANCES")
    if instrument:
        flags.append("-fsanitize=thread")
    dependencies = target.with_suffix(".d")
    command = [
        "g++",
        *flags,
        "-MMD",
        "-MF",
        str(dependencies),
        "-c",
        str(source),
        "-o",
        str(target),
    ]
    if _up_to_date(target, command):
        return target
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr}")
    listed = dependencies.read_text().replace("\\\n", " ").split(":", 1)[1].split()
    ours = [
        path for path in listed if Path(path).resolve().is_relative_to(ROOT) or path == str(source)
    ]
    sources = {path: _digest(Path(path)) for path in ours}
    target.with_suffix(".json").write_text(json.dumps({"command": command, "sources": sources}))
    return target


def build(adapter: Path, variant: str | None = None) -> Path:
    """The shared library of an adapter and the emulator.

    adapter: a .cpp file with extern "C" functions. variant: see the module; None: the default.
    """
    variant = variant or default_variant()
    adapter = adapter.resolve()
    (BUILD / variant).mkdir(parents=True, exist_ok=True)
    with open(BUILD / variant / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        core = sorted(EMULATOR.glob("*.cpp"))
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            objects = list(pool.map(lambda source: _compile(source, variant, False), core))
        objects.append(_compile(adapter, variant, variant == "race"))
        name = hashlib.sha256("".join(_digest(path) for path in objects).encode()).hexdigest()[:16]
        library = BUILD / variant / f"{adapter.stem}-{name}.so"
        if not library.exists():
            sanitize = _SANITIZE if variant == "sanitize" else []
            subprocess.run(
                ["g++", "-shared", *sanitize, *map(str, objects), "-o", str(library), "-ldl"],
                check=True,
            )
    return library


def _extent(tensor: torch.Tensor | np.ndarray) -> tuple[int, int]:
    """First byte of a tensor and the one after its last."""
    if isinstance(tensor, np.ndarray):
        begin, end = np.lib.array_utils.byte_bounds(tensor)
        return int(begin), int(end)
    if tensor.numel() == 0:
        return tensor.data_ptr(), tensor.data_ptr()
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def _merged(extents: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Disjoint ranges that cover the same bytes."""
    begin, end = -1, -1
    for first, last in sorted(extents):
        if last <= first:
            continue
        if begin >= 0 and first < end:
            end = max(end, last)
        else:
            if begin >= 0:
                yield begin, end
            begin, end = first, last
    if begin >= 0:
        yield begin, end


class Adapter:
    """The extern "C" functions of an adapter, each of which returns null or an error text."""

    def __init__(self, source: Path, variant: str | None = None) -> None:
        self.variant = variant or default_variant()
        self.library = ctypes.CDLL(str(build(source, self.variant)))
        self.library.emu_bytes_read.restype = ctypes.c_uint64
        self._read: dict[int, int] = {}

    @contextmanager
    def _registered(self, tensors: list[Any]) -> Iterator[None]:
        ranges = list(_merged(_extent(tensor) for tensor in tensors))
        for begin, end in ranges:
            self.library.emu_register(
                ctypes.c_void_p(begin), ctypes.c_uint64(end - begin), hex(begin).encode()
            )
        try:
            yield
        finally:
            self._read = {
                begin: self.library.emu_bytes_read(ctypes.c_void_p(begin)) for begin, _ in ranges
            }
            self.library.emu_forget_ranges()

    def call(self, name: str, *arguments: Any, seed: int = 0, resident: int = 1) -> None:
        """Calls a function of the adapter.

        arguments: tensors and arrays pass their address and become the only global memory the
        kernels may touch through asynchronous copies and 16-byte accesses; None is a null pointer;
        bool and int pass int64_t, float passes double. seed: order of blocks and warps.
        resident: blocks that run interleaved. Raises EmulatorError with the text returned.
        """
        tensors = [a for a in arguments if isinstance(a, (torch.Tensor, np.ndarray))]
        function = getattr(self.library, name)
        function.restype = ctypes.c_char_p
        self.library.emu_schedule(ctypes.c_uint64(seed), ctypes.c_int(resident))
        with self._registered(tensors):
            error = function(*(_convert(argument) for argument in arguments))
        if error is not None:
            raise EmulatorError(error.decode())

    def bytes_read(self, tensor: torch.Tensor | np.ndarray) -> int:
        """Bytes of the tensor that the last call read by asynchronous copies and load_global_16."""
        begin = _extent(tensor)[0]
        if begin not in self._read:
            raise KeyError("the tensor was no argument of the last call, or shares memory with one")
        return self._read[begin]


def _convert(argument: Any) -> Any:
    if argument is None:
        return ctypes.c_void_p(None)
    if isinstance(argument, torch.Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    if isinstance(argument, np.ndarray):
        return ctypes.c_void_p(argument.ctypes.data)
    if isinstance(argument, (bool, int)):
        return ctypes.c_int64(argument)
    if isinstance(argument, float):
        return ctypes.c_double(argument)
    raise TypeError(f"cannot pass a {type(argument).__name__} to an adapter")
