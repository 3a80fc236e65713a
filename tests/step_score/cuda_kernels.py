"""The step-score ops in CUDA on CPU tensors: on a GPU, or in the emulator without one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import ttc_kernels
from tests.emulator.build import Adapter
from ttc_kernels import StepAggregates, StepHead, StepRound

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
KINDS = ["two_logit", "value", "raw", "token_pair", "softmax"]
AGGREGATES = ["min", "prod", "mean", "last"]


class Emulated:
    """Blocks and warps run in another order in every call, and no memory is zero by chance."""

    def __init__(self) -> None:
        self.adapter = Adapter(Path(__file__).with_name("emulated.cpp"))
        self._calls = 0

    def _call(self, *arguments: object) -> None:
        self._calls += 1
        self.adapter.call(*arguments, seed=self._calls, resident=1 + self._calls % 3)

    def _score_arguments(self, hidden, rows, head: StepHead, norm) -> tuple[tuple, torch.Tensor]:
        first, *rest = head.weights
        b1, w2, b2, good = {
            "two_logit": lambda b1, w2, b2: (b1, w2, b2, None),
            "softmax": lambda b1, good: (b1, None, None, good),
            "token_pair": lambda: (None, None, None, None),
        }.get(head.kind, lambda b1: (b1, None, None, None))(*rest)
        gain, eps = (None, 0.0) if norm is None else (norm[0].float(), norm[1])
        room = np.zeros(2, np.int64)
        self.adapter.call("workspace", room, len(rows), len(first))
        floats = torch.full((int(room[0]),), torch.nan)
        ints = torch.full((int(room[1]),), 77, dtype=torch.int32)
        sizes = np.array(
            [
                DTYPES.index(hidden.dtype), hidden.stride(0) * hidden.element_size(), len(hidden),
                len(rows), hidden.shape[1], KINDS.index(head.kind), DTYPES.index(first.dtype),
                len(first), DTYPES.index(w2.dtype) if w2 is not None else 0,
            ],
            np.int64,
        )  # fmt: skip
        scores = torch.full((len(rows),), torch.nan)
        arguments = (
            hidden, rows, first, b1, w2, b2, good, gain, eps, scores, sizes, floats, ints
        )  # fmt: skip
        return arguments, scores

    def score_steps(self, hidden, rows, head, *, norm=None) -> torch.Tensor:
        arguments, scores = self._score_arguments(hidden, rows, head, norm)
        self._call("score_steps", *arguments)
        return scores

    def aggregate_steps(self, scores, parent, carry=None) -> StepAggregates:
        n = len(scores)
        stats = torch.full((4, n), 9.0)
        state = torch.full((3, n), 9, dtype=torch.int64)
        self._call("aggregate_steps", scores, parent, *_carried(carry), stats, state, n)
        return StepAggregates(stats, state)

    def select_topk(self, scores, group_indptr, k) -> torch.Tensor:
        groups = len(group_indptr) - 1
        selected = torch.full((groups, k), 99, dtype=torch.int32)
        self._call("select_topk", scores, len(scores), group_indptr, groups, k, selected)
        return selected

    def score_round(
        self, hidden, rows, head, parent, group_indptr, k, *, by="min", carry=None, norm=None
    ) -> StepRound:
        arguments, scores = self._score_arguments(hidden, rows, head, norm)
        n, groups = len(rows), len(group_indptr) - 1
        stats = torch.full((4, n), 9.0)
        state = torch.full((3, n), 9, dtype=torch.int64)
        selected = torch.full((groups, k), 99, dtype=torch.int32)
        self._call(
            "score_round", *arguments, parent, *_carried(carry), stats, state, group_indptr,
            groups, k, AGGREGATES.index(by), selected,
        )  # fmt: skip
        return StepRound(scores, StepAggregates(stats, state), selected)


class OnGpu:
    """The ops themselves."""

    def score_steps(self, hidden, rows, head, *, norm=None) -> torch.Tensor:
        return to_device(
            ttc_kernels.score_steps(*to_device((hidden, rows, head), "cuda"), norm=_gain(norm))
        )

    def aggregate_steps(self, scores, parent, carry=None) -> StepAggregates:
        return to_device(ttc_kernels.aggregate_steps(*to_device((scores, parent, carry), "cuda")))

    def select_topk(self, scores, group_indptr, k) -> torch.Tensor:
        return to_device(ttc_kernels.select_topk(*to_device((scores, group_indptr, k), "cuda")))

    def score_round(
        self, hidden, rows, head, parent, group_indptr, k, *, by="min", carry=None, norm=None
    ) -> StepRound:
        arguments = to_device((hidden, rows, head, parent, group_indptr, k), "cuda")
        carry = to_device(carry, "cuda")
        got = ttc_kernels.score_round(*arguments, by=by, carry=carry, norm=_gain(norm))
        return StepRound(to_device(got.scores), to_device(got.aggregates), to_device(got.selected))


def _carried(carry: StepAggregates | None) -> tuple:
    return (None, None, 0) if carry is None else (carry.stats, carry.state, carry.stats.shape[1])


def _gain(norm):
    return None if norm is None else (norm[0].cuda(), norm[1])


def to_device(x, device: str = "cpu"):
    """x, or what is in it, on a device; strides stay, as they are part of what is tested."""
    if isinstance(x, tuple):
        return tuple(to_device(y, device) for y in x)
    if isinstance(x, StepAggregates):
        return StepAggregates(x.stats.to(device), x.state.to(device))
    if isinstance(x, torch.Tensor) and not x.is_contiguous():
        new = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device)
        return new.copy_(x)
    return x.to(device) if isinstance(x, (torch.Tensor, StepHead)) else x
