"""Which backends each op has here, and why the others are missing."""

from __future__ import annotations

import importlib.util

import torch

from . import _load

__all__ = ["backends", "cpu_instruction_sets"]

# Of ops whose definition is not a function of their name.
_REFERENCES = {
    "score_round": "not available: score_steps, aggregate_steps and select_topk define it",
    "sample_children": "not available: row_descriptor and token_noise define it",
    "token_logprobs": "not available: row_descriptor defines it",
    "verify": "available as ttc_kernels.reference.verify_drafts, a function for each rule",
}


def backends() -> dict[str, dict[str, str]]:
    """For every op its backends: "available", with the instruction set, or why it is not.

    Returns:
        {op: {backend: status}}; a status begins with "available" or says what is missing.

    Example:
        >>> backends()["tree_attention"]["cpu"].startswith("available")
        True
    """
    report = {}
    instruction_sets = ", ".join(f"{d}: {isa}" for d, isa in cpu_instruction_sets().items())
    for op in _load.CUDA_OPS:
        report[op] = {
            "cpu": "available" + (f" ({instruction_sets})" if op == "tree_attention" else ""),
            "cuda": _cuda_status(),
            "triton": _triton_status(op),
            "reference": _REFERENCES.get(op, f"available as ttc_kernels.reference.{op}"),
        }
    return report


def _cuda_status() -> str:
    architecture, reason = _load.cuda_architecture(0)
    if architecture is None:
        return f"not available: {reason}"
    found = (f"cuda:{i}: {_load.cuda_architecture(i)[0]}" for i in range(torch.cuda.device_count()))
    return f"available ({', '.join(found)})"


def _triton_status(op: str) -> str:
    if op == "merge_states":
        return "not available: the op has no Triton kernel"
    if importlib.util.find_spec("triton") is None:
        return "not available: triton is not installed"
    if not torch.cuda.is_available():
        return "not available: torch sees no CUDA GPU"
    return "available"


def cpu_instruction_sets() -> dict[str, str]:
    """The instruction set of the CPU tree attention kernel for each dtype on this machine.

    Returns:
        {dtype: "avx512_bf16" | "avx512" | "avx2" | "portable"}. The environment variable
        TTC_CPU_ISA asks for a lesser one.

    Example:
        >>> sorted(cpu_instruction_sets())
        ['bfloat16', 'float16', 'float32']
    """
    dtypes = (torch.bfloat16, torch.float16, torch.float32)
    query = torch.ops.ttc_kernels.tree_attention_cpu_isa
    return {str(d).removeprefix("torch."): query(d) for d in dtypes}
