"""The CUDA kernels of verification in place of the ops of the CPU, on a GPU or in the emulator.

`cuda_ops(...)` replaces `torch.ops.ttc_kernels.<op>`, so that whatever is written for the public
functions on CPU tensors runs the CUDA kernels instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.emulator.build import Adapter
from ttc_kernels import _load

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
RULES = ("greedy", "sampled", "target_only", "rejection", "block", "traversal", "typical")
MODES = ("topk", "iid", "without_replacement")
OPS = ("row_descriptor", "sample_tokens", "sample_children", "token_logprobs", "verify")


class Emulated:
    """The ops on CPU tensors; the order of blocks and warps is another in every call.

    eager: whether rows are described, and drawn from, before the walk. None: by turns.
    """

    def __init__(self) -> None:
        self.kernels = Adapter(Path(__file__).with_name("emulated.cpp"))
        self.eager: bool | None = None
        self._calls = 0

    def _call(self, name: str, *arguments: object) -> None:
        self._calls += 1
        self.kernels.call(name, *arguments, seed=self._calls, resident=1 + self._calls % 3)

    def row_descriptor(self, logits, temperature, top_k, top_p, min_p, bitmask=None):
        out = torch.full((logits.shape[0], 9), torch.nan)
        columns = (temperature, top_k, top_p, min_p)
        self._call("row_descriptor", *_logits(logits, bitmask), *columns, out)
        return out

    def sample_tokens(self, logits, desc, seeds, positions, bitmask=None):
        tokens = torch.full((logits.shape[0],), -7, dtype=torch.int32)
        self._call("sample_tokens", *_logits(logits, bitmask), desc, seeds, positions, tokens)
        return tokens

    def sample_children(
        self, logits, desc, k, mode, target_noise, seeds, positions, streams, bitmask=None
    ):
        shape = (logits.shape[0], k)
        tokens = torch.full(shape, -7, dtype=torch.int32)
        logprobs, scores = torch.full((2, *shape), torch.nan)
        self._call(
            "sample_children", *_logits(logits, bitmask), desc, seeds, positions, streams, k,
            MODES.index(mode), target_noise, tokens, logprobs, scores,
        )  # fmt: skip
        return tokens, logprobs, scores

    def token_logprobs(self, logits, desc, rows, tokens, raw, bitmask=None):
        processed = torch.full((len(rows),), torch.nan)
        plain = torch.full((len(rows) if raw else 0,), torch.nan)
        self._call(
            "token_logprobs", *_logits(logits, bitmask), desc, rows, tokens, len(rows), processed,
            plain if raw else None,
        )  # fmt: skip
        return processed, plain

    def verify(
        self, op, rule, logits, desc, temperature, top_k, top_p, min_p, bitmask, tokens, parent,
        cu_nodes, seeds, positions, coins, draft_logits, draft_desc, draft_ids, draft_logprobs,
        draft_rows, proposals, epsilon, delta, num_accepted, out_tokens, path, logprobs, status,
    ) -> None:  # fmt: skip
        for out in (num_accepted, out_tokens, path, status, logprobs):
            if out is not None:
                out.fill_(-7)
        eager = self._calls % 2 == 0 if self.eager is None else self.eager
        drawn = torch.full((len(tokens),), -7, dtype=torch.int32) if rule == "sampled" else None
        given = draft_logits if draft_ids is None else draft_ids
        rows, width = (0, 0) if given is None else given.shape
        stride = 0 if draft_logits is None else draft_logits.stride(0) * logits.element_size()
        self._call(
            "verify", eager, drawn, RULES.index(rule), *_logits(logits, bitmask), desc,
            temperature, top_k, top_p, min_p, tokens, parent, cu_nodes, len(cu_nodes) - 1, seeds,
            positions, coins, draft_logits, stride, draft_desc, draft_ids, draft_logprobs, rows,
            width, draft_rows, proposals, epsilon, delta, out_tokens.shape[1], num_accepted,
            out_tokens, path, logprobs, status,
        )  # fmt: skip


class OnGpu:
    """The ops on copies of CPU tensors."""

    def __init__(self) -> None:
        self._ops = {name: getattr(torch.ops.ttc_kernels, name) for name in OPS}

    def __getattr__(self, name: str):
        def run(*arguments):
            moved = [x.cuda() if isinstance(x, torch.Tensor) else x for x in arguments]
            result = self._ops[name](*moved)
            for x, y in zip(arguments, moved, strict=True):
                if isinstance(x, torch.Tensor) and name == "verify":
                    x.copy_(y)
            if isinstance(result, torch.Tensor):
                return result.cpu()
            return None if result is None else tuple(x.cpu() for x in result)

        return run


def _logits(x: torch.Tensor, bitmask: torch.Tensor | None) -> tuple:
    return (x, x.stride(0) * x.element_size(), DTYPES.index(x.dtype), *x.shape, bitmask)


def make() -> Emulated | OnGpu:
    """The kernels where they can run here."""
    if not torch.cuda.is_available():
        return Emulated()
    if _load.cuda_error is not None:
        pytest.skip(f"the CUDA kernels are not loaded: {_load.cuda_error}")
    return OnGpu()


@contextmanager
def cuda_ops(kernels: Emulated | OnGpu, ops: tuple[str, ...] = OPS) -> Iterator[None]:
    """Within it, these ops are those of `kernels`."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ops:
            getattr(torch.ops.ttc_kernels, name)  # the namespace makes its attributes when asked
            patch.setattr(torch.ops.ttc_kernels, name, getattr(kernels, name))
        yield
