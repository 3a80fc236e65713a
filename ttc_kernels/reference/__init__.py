"""Short, readable definitions of the ops, in fp64. What the kernels are compared with."""

from .kv_cache import commit_kv, copy_pages, write_kv
from .merge_states import merge_states
from .step_score import score_steps
from .tree_attention import tree_attention
from .verify import gumbel, philox4x32, row_descriptor, sample_tokens

__all__ = [
    "commit_kv",
    "copy_pages",
    "gumbel",
    "merge_states",
    "philox4x32",
    "row_descriptor",
    "sample_tokens",
    "score_steps",
    "tree_attention",
    "write_kv",
]
