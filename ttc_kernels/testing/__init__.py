"""For tests of these kernels and of frameworks that call them: comparison, poison, workloads."""

from .compare import assert_bitwise_equal, assert_close_to_reference
from .interpreter import use_interpreter
from .poison import nan_outputs, pad_block_tables, poison_unused_slots
from .workloads import (
    Workload,
    from_nodes,
    many_branches,
    no_sharing,
    published_tree,
    random_forest,
)

__all__ = [
    "Workload",
    "assert_bitwise_equal",
    "assert_close_to_reference",
    "from_nodes",
    "many_branches",
    "nan_outputs",
    "no_sharing",
    "pad_block_tables",
    "poison_unused_slots",
    "published_tree",
    "random_forest",
    "use_interpreter",
]
