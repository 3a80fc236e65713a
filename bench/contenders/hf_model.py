"""The workload's model as plain transformers loads it."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForCausalLM

from .base import Workload


def load_model(workload: Workload) -> Any:
    """The model in its own dtype, with torch's fused attention.

    Any: the type of transformers' models does not know that they generate.
    """
    model = AutoModelForCausalLM.from_pretrained(
        workload.model, dtype="auto", attn_implementation="sdpa", local_files_only=True
    )
    return model.eval()
