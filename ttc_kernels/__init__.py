"""Kernels that make test-time-compute tree search cheap: pages, plans, tree attention."""

from ._version import __version__

from . import _load  # noqa: F401  isort: skip  (registers torch.ops.ttc_kernels)
from .attention import merge_states, tree_attention
from .backends import backends
from .kv_cache import commit_kv, copy_pages, write_kv
from .step_score import (
    StepAggregates,
    StepHead,
    StepRound,
    aggregate_steps,
    score_round,
    score_steps,
    select_topk,
)
from .tree import (
    Branch,
    OutOfPages,
    PagePool,
    PlanCapacity,
    TreeAttentionPlan,
    plan_tree_attention,
)
from .verify import row_descriptor, sample_tokens

__all__ = [
    "Branch",
    "OutOfPages",
    "PagePool",
    "PlanCapacity",
    "StepAggregates",
    "StepHead",
    "StepRound",
    "TreeAttentionPlan",
    "__version__",
    "aggregate_steps",
    "backends",
    "commit_kv",
    "copy_pages",
    "merge_states",
    "plan_tree_attention",
    "row_descriptor",
    "sample_tokens",
    "score_round",
    "score_steps",
    "select_topk",
    "tree_attention",
    "write_kv",
]
