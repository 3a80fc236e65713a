"""What nvcc makes of every CUDA kernel, read from the objects that the library is linked from.

The build tree is build/cuda, that of the wheel, so what is compiled already is not compiled again.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

LEDGER = Path(__file__).with_name("cuda.json")
ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "cuda"

# What an instruction of the machine code counts as: bytes moved 16 at a time, tensor cores, copies
# that do not pass through registers, and local memory, which no kernel should use.
INSTRUCTIONS = {
    "hgmma": r"HGMMA",
    "hmma": r"HMMA",
    "tma_loads": r"UTMALDG",
    "async_copies": r"LDGSTS",
    "ldmatrix": r"LDSM",
    "stmatrix": r"STSM",
    "loads_16": r"LDG\.[\w.]*128",
    "loads": r"LDG\.(?![\w.]*128)",
    "stores_16": r"STG\.[\w.]*128",
    "stores": r"STG\.(?![\w.]*128)",
    "shared_loads_16": r"LDS\.[\w.]*128",
    "global_atomics": r"(ATOMG|RED)\.",
    "barriers": r"BAR\.",
    "mbarriers": r"SYNCS\.",
    "local": r"(LDL|STL)\b",
}
# (kernel, bytes of dynamic shared memory, blocks that an SM should hold at least); the first match
# counts.
PLANNED = (
    (r"tree_attention_sm80_kernel<.*, false, 64>", 35552, 3),
    (r"tree_attention_sm80_kernel<.*, false, 96>", 51936, 2),
    (r"tree_attention_sm80_kernel<.*, false, 128>", 68320, 2),
    (r"tree_attention_sm80_kernel<.*, false, 256>", 78032, 2),
    (r"tree_attention_sm80_kernel<.*, true, 64>", 23264, 3),
    (r"tree_attention_sm80_kernel<.*, true, 96>", 31456, 2),
    (r"tree_attention_sm80_kernel<.*, true, 128>", 39648, 2),
    (r"tree_attention_sm80_kernel<.*, true, 256>", 80080, 2),
    (r"merge_states_kernel", 0, 12),
    (r"write_kv_copy_kernel", 0, 16),
    (r"write_kv_convert_kernel<.*, 1>", 0, 10),
    (r"write_kv_convert_kernel", 0, 4),
    (r"copy_pages_kernel", 0, 3),
    (r"commit_kv_kernel", 0, 5),
    (r"row_descriptor_kernel", 36408, 1),
    (r"sample_children_kernel", 4624, 2),
    (r"(sample_tokens|draw_nodes|token_logprobs)_kernel", 512, 1),
    # Sampled, target-only and rejection describe the rows that they come to.
    (r"verify_kernel<.*[123]>", 43832, 1),
    (r"verify_kernel<", 7680, 1),
    # With 64 rows, and with three pieces to a number, the registers hold what is on its way.
    (r"score_steps_kernel<__nv_bfloat16, 4, 4>", 48644, 1),
    (r"score_steps_kernel<__half, 4, 2>", 26628, 1),
    (r"score_steps_kernel<ttc::AnyFloat, 1, 2>", 6660, 1),
    (r"score_steps_kernel<.*, 1, 2>", 6660, 2),
    (r"aggregate_steps_kernel", 0, 8),
    (r"select_topk_kernel", 1024, 8),
    # One block of 12 warps to an SM: its shared memory is the pipeline.
    (r"tree_attention_sm90<.*unsigned char, 64>", 196608, 1),
    (r"tree_attention_sm90<.*, 64>", 180224, 1),
    (r"tree_attention_sm90<.*, 256>", 209920, 1),
    (r"tree_attention_sm90<", 212992, 1),
)
# What a kernel's machine code must contain: its products on the tensor cores, its tiles loaded past
# the registers, its data 16 bytes at a time.
DESIGNED = (
    (r"tree_attention_sm90<", ("hgmma", "async_copies", "mbarriers", "stores_16")),
    (r"tree_attention_sm90<(\w+), \1,", ("tma_loads",)),
    (r"tree_attention_sm80_kernel<", ("hmma", "ldmatrix", "async_copies", "stores_16")),
    (r"(copy|pages|commit_kv)_kernel<uint4>", ("loads_16", "stores_16")),
    (r"(row_descriptor|sample_tokens|draw_nodes|sample_children|verify)_kernel", ("loads_16",)),
    (r"(convert|merge_states)_kernel<.*, (4|8|16)>", ("loads_16", "stores_16")),
    (r"score_steps_kernel<", ("hmma", "loads_16")),
)
# Of an SM: bytes of shared memory, of which each block takes 1 KB more than it asked for.
SHARED_MEMORY = {80: 164 << 10, 90: 228 << 10}


_NEEDED = ("cuobjdump", "nvdisasm")


def missing_tools() -> str | None:
    """What is missing here to compile and read the kernels; None if nothing is."""
    if shutil.which("nvcc") is None:
        return "there is no nvcc"
    if _tools() is None:
        return "there is no cuobjdump with nvdisasm, which the package triton brings"
    return None


def _tools() -> Path | None:
    """The folder of cuobjdump and nvdisasm."""
    folders = [Path(found).parent for found in [shutil.which("nvdisasm")] if found]
    spec = importlib.util.find_spec("triton")
    if spec is not None and spec.origin is not None:
        folders.append(Path(spec.origin).parent / "backends" / "nvidia" / "bin")
    return next((f for f in folders if all((f / t).exists() for t in _NEEDED)), None)


def compiler() -> str | None:
    """The version of nvcc, if there is one: another one may use other registers."""
    if shutil.which("nvcc") is None:
        return None
    text = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"V(\d+\.\d+\.\d+)", text)
    assert found, text
    return found[1]


def build() -> Path:
    """Compiles what has changed, and returns the library."""
    spec = importlib.util.spec_from_file_location("ttc_setup", ROOT / "setup.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:  # of the tests that need it, one compiles
        fcntl.flock(lock, fcntl.LOCK_EX)
        module.cmake_build(BUILD, BUILD / "modules", ["-DTTC_CUDA=ON"], "_C_cuda")
    return BUILD / "modules" / "_C_cuda.so"


def kernels() -> dict[str, dict[str, int]]:
    """{"folder: kernel sm_90": resources and instructions} of all objects, which are up to date."""
    found = {}
    for file in sorted(BUILD.glob("CMakeFiles/kernels_*.dir/csrc/*/*.o")):
        if not (ROOT / "csrc" / file.parent.name / file.stem).exists():
            continue  # left over from a file that is gone
        for name, architecture, usage in _kernels_of(file):
            found[_key(file.parent.name, name, architecture)] = usage
    return dict(sorted(found.items()))


def write_ledger(measured: dict[str, dict[str, int]]) -> None:
    """Stores the resources, a line for each kernel."""
    lines = (f" {json.dumps(name)}: {json.dumps(usage)}" for name, usage in measured.items())
    LEDGER.write_text(f'{{"nvcc": "{compiler()}", "kernels": {{\n' + ",\n".join(lines) + "\n}}\n")


def faults(measured: dict[str, dict[str, int]]) -> list[str]:
    """What is wrong with the kernels, and how they differ from a ledger of the same nvcc."""
    ledger = json.loads(LEDGER.read_text())
    found = []
    for name, usage in measured.items():
        if usage["stack_bytes"] or usage.get("local"):
            found.append(f"uses local memory: {name}: {usage}")
        for pattern, kinds in DESIGNED:
            if re.search(pattern, name) and (lacking := [k for k in kinds if not usage.get(k)]):
                found.append(f"designed to have {', '.join(lacking)}: {name}: {usage}")
        if usage["blocks"] < usage["planned_blocks"]:
            found.append(f"fewer blocks to an SM than planned: {name}: {usage}")
    if ledger["nvcc"] == compiler():
        for name in sorted(set(measured) | set(ledger["kernels"])):
            before, now = ledger["kernels"].get(name), measured.get(name)
            if before != now:
                found.append(f"changed: {name}: {before} -> {now}")
    return found


def _key(folder: str, name: str, architecture: str) -> str:
    """The line of a kernel, whose template arguments are written without their types."""
    short = re.sub(r"\((?:int|bool|long|ttc::VerifyRule)\)", "", name.removeprefix("void "))
    return f"{folder}: {short.removeprefix('ttc::').split('(')[0]} sm_{architecture}"


def _kernels_of(file: Path) -> Iterator[tuple[str, str, dict[str, int]]]:
    resources: dict[tuple[str, str], dict[str, int]] = {}
    for architecture, text in _by_architecture(_dump("-res-usage", file)):
        for name, line in re.findall(r"Function (\S+):\n\s+(REG:.*)", text):
            values = {k: int(v) for k, v in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", line)}
            resources[architecture, name] = {
                "registers": values["REG"],
                "stack_bytes": values["STACK"] + values["LOCAL"],
                "static_shared": values["SHARED"],
            }
    for architecture, text in _by_architecture(_dump("-elf", file)):
        for name, info in re.findall(r"^\.nv\.info\.(\S+)\n(.*?)(?=^\.|\Z)", text, re.M | re.S):
            limit = re.search(r"EIATTR_MAX_THREADS.*?Value:\s+(.*?)\n", info, re.S)
            if limit and (architecture, name) in resources:
                x, y, z = (int(n, 16) for n in limit[1].split())
                resources[architecture, name]["threads"] = x * y * z
    for architecture, text in _by_architecture(_dump("-sass", file)):
        for name, code in re.findall(r"Function : (\S+)\n(.*?)(?=Function : |\Z)", text, re.S):
            counts = Counter(
                kind
                for op in re.findall(
                    r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)", code, re.M
                )
                for kind, pattern in INSTRUCTIONS.items()
                if re.match(pattern, op)
            )
            resources[architecture, name] |= {k: counts[k] for k in INSTRUCTIONS if counts[k]}
    names = [name for _, name in resources]
    plain = subprocess.run(
        ["c++filt", *names], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for (architecture, _), name, usage in zip(resources, plain, resources.values(), strict=True):
        usage |= _plan(name, int(re.sub(r"\D", "", architecture)), usage)
        yield name, architecture, usage


def _plan(name: str, architecture: int, usage: dict[str, int]) -> dict[str, int]:
    """Blocks to an SM, as they follow from the resources, beside those that were planned."""
    planned = next((p for p in PLANNED if re.search(p[0], name)), None)
    if planned is None:
        raise LookupError(f"PLANNED in {__file__} has no entry for {name}")
    _, dynamic, wanted = planned
    warps = -(-usage["threads"] // 32)
    by_registers = 65536 // (-(-usage["registers"] * 32 // 256) * 256 * warps)
    by_shared = SHARED_MEMORY[architecture] // (usage["static_shared"] + dynamic + 1024)
    blocks = min(by_registers, by_shared, 64 // warps, 32)
    return {"dynamic_shared": dynamic, "blocks": blocks, "planned_blocks": wanted}


def _by_architecture(text: str) -> Iterator[tuple[str, str]]:
    """("80", text) of each machine code in a dump of an object."""
    for part in re.split(r"^Fatbin elf code:\n=+\n", text, flags=re.M)[1:]:
        code = re.split(r"^Fatbin ptx code:\n", part, flags=re.M)[0]
        found = re.search(r"^arch = sm_(\w+)", code, re.M)
        assert found, code[:200]
        yield found[1], code


def _dump(what: str, file: Path) -> str:
    folder = _tools()
    assert folder is not None
    command = [str(folder / "cuobjdump"), what, str(file)]
    # cuobjdump looks for nvdisasm on PATH.
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env={"PATH": f"{folder}:/usr/bin:/bin"}
    ).stdout
