"""The floor of a decoding step: the model's matrix products alone, on the same rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .base import Outcome, Workload, time_steps
from .hf_model import load_model


@torch.inference_mode()
def run(workload: Workload) -> Outcome:
    """Time every linear layer of the model once a step, on n rows, with nothing between them."""
    model = load_model(workload)
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    inputs = {w.shape[1]: torch.randn(workload.n, w.shape[1], dtype=w.dtype) for w in weights}

    def step() -> None:
        for weight in weights:
            F.linear(inputs[weight.shape[1]], weight)

    prefill_s, step_s = time_steps(step, step, min(workload.new, 32))
    return Outcome(prefill_s, step_s, [])
