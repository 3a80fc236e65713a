"""ttc_runtime with its defaults: bitwise the same text whatever runs beside it."""

from __future__ import annotations

import time

import numpy as np
from ttc_runtime import Engine, Greedy, SamplingParams, SelfConsistency

from ..model_dir import text_of
from .base import CHECK_NEW, Outcome, Workload

# Room for pages beside the distinct tokens: each branch's partly filled last page, and the check's.
_SPARE_TOKENS_PER_BRANCH = 32


def run(workload: Workload, deterministic: bool = True) -> Outcome:
    """Measure it through the public interface.

    Args:
        workload: what to run.
        deterministic: the engine's mode.
    """
    tokens = workload.prompt + workload.n * (workload.new + _SPARE_TOKENS_PER_BRANCH)
    engine = Engine.from_pretrained(
        workload.model,
        kv_memory=_cache_bytes(workload, tokens),
        max_batch=workload.n,
        deterministic=deterministic,
    )
    check = engine.solve(text_of(workload.check_ids), Greedy(SamplingParams(max_tokens=CHECK_NEW)))
    passes = _note_passes(engine)
    sampling = SamplingParams(max_tokens=workload.new)
    start = time.perf_counter()
    result = engine.solve(
        text_of(workload.prompt_ids), SelfConsistency(workload.n, sampling=sampling)
    )
    end = time.perf_counter()
    lengths = {len(branch.tokens) for branch in result.branches}
    if lengths != {workload.new} or result.usage.recomputed:
        raise RuntimeError(
            f"ours: expected {workload.new} tokens in every branch and none recomputed, got "
            f"lengths {sorted(lengths)} and {result.usage.recomputed} recomputed"
        )
    # The pass that runs the first sampled tokens begins when the prefill and its sampling end.
    decoding = passes[-(workload.new - 1) :]
    prefill_s, *step_s = np.diff([start, *decoding, end]).tolist()
    return Outcome(prefill_s, step_s, check.branches[0].tokens)


def _cache_bytes(workload: Workload, tokens: int) -> int:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(workload.model, local_files_only=True)
    head_dim = config.hidden_size // config.num_attention_heads
    itemsize = {"bf16": 2, "fp32": 4}[workload.dtype]
    per_layer = 2 * config.num_key_value_heads * head_dim * itemsize
    return tokens * config.num_hidden_layers * per_layer


def _note_passes(engine: Engine) -> list[float]:
    """The times at which the policy's forward passes begin, from now on.

    One step's time is from one beginning to the next: pass, sampling and all bookkeeping.
    """
    model = engine.policy.lane.model
    forward, begins = model.forward, []

    def noted(*args, **kwargs):
        begins.append(time.perf_counter())
        return forward(*args, **kwargs)

    model.forward = noted  # type: ignore[method-assign]  # watched from outside, not changed
    return begins
