"""Short, readable definitions of the ops, in fp64. What the kernels are compared with."""

from . import verify_drafts
from .kv_cache import commit_kv, copy_pages, write_kv
from .merge_states import merge_states
from .step_score import aggregate_steps, score_steps, select_topk
from .tree_attention import tree_attention
from .verify import philox4x32, row_descriptor, sample_tokens, token_noise

__all__ = [
    "aggregate_steps",
    "commit_kv",
    "copy_pages",
    "merge_states",
    "philox4x32",
    "row_descriptor",
    "sample_tokens",
    "score_steps",
    "select_topk",
    "token_noise",
    "tree_attention",
    "verify_drafts",
    "write_kv",
]
