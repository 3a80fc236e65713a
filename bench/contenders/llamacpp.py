"""llama.cpp with one unified cache, whose cells the continuations share for the prompt."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from .base import CHECK_NEW, NotInstalled, Outcome, Workload, time_steps

_CHUNK = 512  # tokens of the prompt per call; llama.cpp's own default of a physical batch


class _Decoder:
    """One prompt in sequence 0, copied by reference to n sequences, one token each per step."""

    def __init__(
        self, api: ModuleType, context: object, vocab: int, prompt: list[int], n: int, sample: bool
    ) -> None:
        self._api, self._context, self._vocab = api, context, vocab
        self._prompt, self._n, self._sample = prompt, n, sample
        self._position = len(prompt)
        self._batch = api.llama_batch_init(max(_CHUNK, n), 0, 1)
        self.tokens: list[np.ndarray] = []

    def prefill(self) -> None:
        """Compute the prompt once and draw the first token of every continuation."""
        last = len(self._prompt) - 1
        for start in range(0, len(self._prompt), _CHUNK):
            chunk = self._prompt[start : start + _CHUNK]
            positions = range(start, start + len(chunk))
            self._decode(chunk, positions, [0] * len(chunk), [p == last for p in positions])
        memory = self._api.llama_get_memory(self._context)
        for sequence in range(1, self._n):
            self._api.llama_memory_seq_cp(memory, 0, sequence, -1, -1)
        self._choose(self._logits(1).expand(self._n, -1))

    def step(self) -> None:
        """Draw one more token of every continuation."""
        n = self._n
        self._decode(self.tokens[-1].tolist(), [self._position] * n, range(n), [True] * n)
        self._position += 1
        self._choose(self._logits(n))

    def _decode(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        sequences: Sequence[int],
        wants_logits: Sequence[bool],
    ) -> None:
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, values in enumerate(zip(tokens, positions, sequences, wants_logits, strict=True)):
            batch.token[i], batch.pos[i], batch.seq_id[i][0], batch.logits[i] = values
            batch.n_seq_id[i] = 1
        status = self._api.llama_decode(self._context, batch)
        if status:
            raise RuntimeError(f"llama_decode: expected status 0, got {status}")

    def _logits(self, rows: int) -> torch.Tensor:
        pointer = self._api.llama_get_logits(self._context)
        return torch.from_numpy(np.ctypeslib.as_array(pointer, (rows, self._vocab)))

    def _choose(self, logits: torch.Tensor) -> None:
        if self._sample:
            token = torch.multinomial(logits.softmax(-1), 1)[:, 0]
        else:
            token = logits.argmax(-1)
        self.tokens.append(token.numpy())


def run(workload: Workload) -> Outcome:
    """Measure it.

    Raises:
        NotInstalled: if llama-cpp-python or gguf is missing.
    """
    try:
        import gguf  # noqa: F401
        import llama_cpp as api
    except ImportError as error:
        raise NotInstalled(str(error)) from error
    from .gguf_file import write_gguf

    api.llama_backend_init()
    with tempfile.TemporaryDirectory(dir=workload.model.parent) as directory:
        path = Path(directory) / "model.gguf"
        write_gguf(workload.model, path)
        model = api.llama_model_load_from_file(str(path).encode(), api.llama_model_default_params())
        if not model:
            raise RuntimeError(f"llama.cpp: could not load {path}")
        check = _decoder(api, model, workload, workload.check_ids, CHECK_NEW, 1, sample=False)
        time_steps(check.prefill, check.step, CHECK_NEW)
        decoder = _decoder(
            api, model, workload, workload.prompt_ids, workload.new, workload.n, sample=True
        )
        prefill_s, step_s = time_steps(decoder.prefill, decoder.step, workload.new)
    return Outcome(prefill_s, step_s, [int(token[0]) for token in check.tokens])


def _decoder(
    api: ModuleType,
    model: object,
    workload: Workload,
    prompt: list[int],
    new: int,
    n: int,
    sample: bool,
) -> _Decoder:
    params = api.llama_context_default_params()
    params.n_ctx = len(prompt) + n * new
    params.n_batch = params.n_ubatch = max(_CHUNK, n)
    params.n_seq_max, params.kv_unified = n, True
    params.n_threads = params.n_threads_batch = workload.threads
    context = api.llama_init_from_model(model, params)
    if not context:
        raise RuntimeError(f"llama.cpp: could not make a context of {params.n_ctx} tokens")
    return _Decoder(api, context, workload.vocab, prompt, n, sample)
