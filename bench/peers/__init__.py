"""Other ways to compute attention over a tree, each in its best layout, prepared untimed."""

from .base import Problem, Run, Skip, make_problem
from .cascade import build_cascade
from .flex import build_flex
from .ours import Ours
from .sdpa import build_sdpa

# What is compared with ttc_kernels, by the name shown in the table.
PEERS = {"sdpa": build_sdpa, "cascade": build_cascade, "flex": build_flex}

__all__ = [
    "PEERS",
    "Ours",
    "Problem",
    "Run",
    "Skip",
    "build_cascade",
    "build_flex",
    "build_sdpa",
    "make_problem",
]
