"""Kernels that make test-time-compute tree search cheap: pages, plans, tree attention."""

from ._version import __version__

from . import _load  # noqa: F401  isort: skip  (registers torch.ops.ttc_kernels)
from .attention import merge_states, tree_attention
from .backends import backends
from .draft_distribution import DraftDistribution
from .draft_tree import MAX_DRAFT_NODES, DraftTree, commit_plan
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
from .verify import (
    DESCRIPTOR_COLUMNS,
    RowFilters,
    row_descriptor,
    sample_children,
    sample_tokens,
    token_logprobs,
)
from .verify_drafts import (
    verify_chain,
    verify_greedy,
    verify_sampled,
    verify_target_only,
    verify_tree,
    verify_typical,
)
from .verify_result import VerifyResult
from .vocab_shards import merge_descriptors

__all__ = [
    "DESCRIPTOR_COLUMNS",
    "MAX_DRAFT_NODES",
    "Branch",
    "DraftDistribution",
    "DraftTree",
    "OutOfPages",
    "PagePool",
    "PlanCapacity",
    "RowFilters",
    "StepAggregates",
    "StepHead",
    "StepRound",
    "TreeAttentionPlan",
    "VerifyResult",
    "__version__",
    "aggregate_steps",
    "backends",
    "commit_kv",
    "commit_plan",
    "copy_pages",
    "merge_descriptors",
    "merge_states",
    "plan_tree_attention",
    "row_descriptor",
    "sample_children",
    "sample_tokens",
    "score_round",
    "score_steps",
    "select_topk",
    "token_logprobs",
    "tree_attention",
    "verify_chain",
    "verify_greedy",
    "verify_sampled",
    "verify_target_only",
    "verify_tree",
    "verify_typical",
    "write_kv",
]
