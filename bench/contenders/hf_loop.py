"""transformers used well: the prompt is computed once, its cache repeated, then a plain loop."""

from __future__ import annotations

import torch
from transformers import DynamicCache

from .base import CHECK_NEW, Outcome, Workload, time_steps
from .hf_model import load_model


class _Decoder:
    """One prompt, n continuations, one token each per step."""

    def __init__(self, model: torch.nn.Module, prompt: list[int], n: int, sample: bool) -> None:
        self._model, self._prompt, self._n, self._sample = model, prompt, n, sample
        self._cache = DynamicCache()
        self.tokens: list[torch.Tensor] = []

    def prefill(self) -> None:
        """Compute the prompt once and draw the first token of every continuation."""
        logits = self._forward(torch.tensor([self._prompt])).expand(self._n, -1)
        self._cache.batch_repeat_interleave(self._n)
        self._choose(logits)

    def step(self) -> None:
        """Draw one more token of every continuation."""
        self._choose(self._forward(self.tokens[-1]))

    def _forward(self, ids: torch.Tensor) -> torch.Tensor:
        out = self._model(
            input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1
        )
        return out.logits[:, -1]

    def _choose(self, logits: torch.Tensor) -> None:
        if self._sample:
            token = torch.multinomial(logits.float().softmax(-1), 1)
        else:
            token = logits.argmax(-1, keepdim=True)
        self.tokens.append(token)


@torch.inference_mode()
def run(workload: Workload) -> Outcome:
    """Measure it."""
    model = load_model(workload)
    check = _Decoder(model, workload.check_ids, 1, sample=False)
    time_steps(check.prefill, check.step, CHECK_NEW)
    decoder = _Decoder(model, workload.prompt_ids, workload.n, sample=True)
    prefill_s, step_s = time_steps(decoder.prefill, decoder.step, workload.new)
    return Outcome(prefill_s, step_s, torch.cat(check.tokens)[:, 0].tolist())
