"""Kernels that make test-time-compute tree search cheap: pages, plans, tree attention."""

from ._version import __version__
from . import _load  # noqa: F401  isort: skip  (registers torch.ops.ttc_kernels)
from .attention import merge_states, tree_attention
from .backends import backends
from .tree import Branch, OutOfPages, PagePool, TreeAttentionPlan, plan_tree_attention

__all__ = [
    "Branch",
    "OutOfPages",
    "PagePool",
    "TreeAttentionPlan",
    "__version__",
    "backends",
    "merge_states",
    "plan_tree_attention",
    "tree_attention",
]
