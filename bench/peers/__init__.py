"""Other ways to compute attention over a tree, each in its best layout, prepared untimed."""

from . import flashinfer
from .base import Problem, Run, Skip, make_problem
from .cascade import build_cascade, build_two_level_cascade
from .flex import build_flex
from .ours import Ours, build_deterministic, build_in_triton
from .paged import build_flash_attn, build_torch_paged
from .sdpa import build_sdpa

# What is compared with ttc_kernels on each device, by the name shown in the table.
CPU_PEERS = {
    "deterministic": build_deterministic,
    "sdpa": build_sdpa,
    "cascade": build_cascade,
    "flex": build_flex,
}
CUDA_PEERS = {
    "triton": build_in_triton,
    "deterministic": build_deterministic,
    "sdpa": build_sdpa,
    "torch paged": build_torch_paged,
    "two-level": build_two_level_cascade,
    "cascade": build_cascade,
    "flex": build_flex,
    "fi cascade": flashinfer.build_cascade,
    "fi batch": flashinfer.build_batch_attention,
    "fi masked": flashinfer.build_masked,
    "flash-attn": build_flash_attn,
}
PEERS = {"cpu": CPU_PEERS, "cuda": CUDA_PEERS}
OWN = ("triton", "deterministic")  # ttc_kernels in another way

__all__ = [
    "OWN",
    "PEERS",
    "Ours",
    "Problem",
    "Run",
    "Skip",
    "build_cascade",
    "build_flex",
    "build_sdpa",
    "build_two_level_cascade",
    "make_problem",
]
