"""transformers' generate: the prompt is repeated for every continuation, prefill included."""

from __future__ import annotations

import time

import numpy as np
import torch
from transformers.generation.streamers import BaseStreamer

from .base import CHECK_NEW, Outcome, Workload
from .hf_model import load_model


class _Clock(BaseStreamer):
    """Notes when generate hands out tokens: first the prompt, then one step's after another."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.marks.append(time.perf_counter())

    def end(self) -> None:
        pass


@torch.inference_mode()
def run(workload: Workload) -> Outcome:
    """Measure it; the loop of generation and the sampling are transformers' own."""
    model = load_model(workload)
    short = torch.tensor([workload.check_ids])
    greedy = model.generate(
        short, attention_mask=torch.ones_like(short), do_sample=False, max_new_tokens=CHECK_NEW
    )
    prompt = torch.tensor([workload.prompt_ids])
    clock = _Clock()
    model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        num_return_sequences=workload.n,
        max_new_tokens=workload.new,
        streamer=clock,
    )
    prefill_s, *step_s = np.diff(clock.marks).tolist()
    return Outcome(prefill_s, step_s, greedy[0, short.shape[1] :].tolist())
