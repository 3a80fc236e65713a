"""Drafts to verify, and what the ways to verify them have in common."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType

import torch

from ttc_kernels import DraftTree

from .base import Skip


@dataclass(frozen=True)
class Drafts:
    """What is verified: drafts that were chosen, not drawn, as in n-gram and top-k trees.

    Attributes:
        logits: ``[N, V]``. tokens: int32 ``[N]``.
        tree: of the N nodes, as many for every request.
        temperature: 0 for greedy verification. top_p: in (0, 1].
    """

    logits: torch.Tensor
    tokens: torch.Tensor
    tree: DraftTree
    temperature: float
    top_p: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """Requests and the nodes of each."""
        return self.tree.num_requests, self.tree.num_nodes // self.tree.num_requests

    @cached_property
    def _inverse_temperature(self) -> torch.Tensor:
        # With a dimension, so that the product is in float32 whatever the logits are.
        return self.empty(1).fill_(1 / self.temperature if self.temperature else 1.0)

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """A buffer where the logits are."""
        return torch.empty(shape, dtype=dtype, device=self.logits.device)

    def scaled(self, logits: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Logits over the temperature, written to float32 in one pass."""
        return torch.mul(logits, self._inverse_temperature, out=out)

    def chains(self) -> tuple[int, int, torch.Tensor]:
        """Requests, nodes of each, and the drafts int32 ``[B, n - 1]``.

        Raises:
            Skip: if they are not chains, or there are no drafts.
        """
        try:
            self.tree.to_vllm()
        except ValueError as error:
            raise Skip("verifies chains only") from error
        b, n = self.shape
        if n < 2:
            raise Skip("needs drafts, and one row has none")
        return b, n, self.tokens.view(b, n)[:, 1:].contiguous()

    def probabilities(
        self,
        renorm: Callable[[torch.Tensor, float], torch.Tensor],
        softmax: Callable[..., torch.Tensor] | None = None,
    ) -> Callable[[], torch.Tensor]:
        """What makes float32 ``[N, V]``: softmax at the temperature, cut to top-p.

        Args:
            renorm: cuts probabilities to a top-p.
            softmax: of logits at a temperature, else torch's.
        """
        probs = self.empty(*self.logits.shape)
        scaled = probs if self.temperature == 1 else torch.empty_like(probs)

        def run() -> torch.Tensor:
            if softmax is not None:
                out = softmax(self.logits, temperature=self.temperature)
            elif self.temperature == 1:
                out = torch.softmax(self.logits, -1, dtype=torch.float32, out=probs)
            else:
                out = torch.softmax(self.scaled(self.logits, scaled), -1, out=probs)
            return renorm(out, self.top_p) if self.top_p < 1 else out

        return run


@dataclass(frozen=True)
class Verifier:
    """A prepared contender.

    Attributes:
        run: verifies once. accepted: after a run, the drafts that it accepted, ``[B]``.
    """

    run: Callable[[], object]
    accepted: Callable[[], torch.Tensor]


def torch_top_p(probs: torch.Tensor, top_p: float) -> torch.Tensor:
    """Probabilities ``[N, V]`` cut to top-p by sorting, and renormalised."""
    ordered, index = probs.sort(-1, descending=True)
    keep = ordered.cumsum(-1) - ordered < top_p
    kept = torch.zeros_like(probs).scatter_(-1, index, ordered * keep)
    kept /= kept.sum(-1, keepdim=True)
    return kept


def need(drafts: Drafts, name: str, *functions: str) -> ModuleType:
    """A module with these functions.

    Raises:
        Skip: without a GPU, or where it is not there, with the reason.
    """
    if drafts.logits.device.type != "cuda":
        raise Skip("runs on a GPU only")
    try:
        module = importlib.import_module(name)
    except Exception as error:  # a library that does not load raises whatever it likes
        raise Skip(f"{type(error).__name__}: {error}".splitlines()[0]) from error
    missing = [function for function in functions if not hasattr(module, function)]
    if missing:
        raise Skip(f"{name} has no {missing[0]}")
    return module


def parameters(function: Callable) -> set[str]:
    """Names of a function's parameters, which differ between versions."""
    return set(inspect.signature(function).parameters)
