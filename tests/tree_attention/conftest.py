"""One attention case: tensors of a workload, what the definition says, what plain torch says."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import ttc_kernels
from tests.tree_attention import emulated
from ttc_kernels import reference
from ttc_kernels.testing import (
    Workload,
    assert_close_to_reference,
    nan_outputs,
    pad_block_tables,
    poison_unused_slots,
)

EMULATED = ("sm80", "sm90")  # CUDA kernels in tests/emulator


@dataclass
class Case:
    """Tensors of a workload; every slot that no row owns is NaN."""

    load: Workload
    dtype: torch.dtype = torch.float32
    head_dim: int = 64
    num_q_heads: int = 4
    num_kv_heads: int = 2
    window_left: int = -1
    soft_cap: float = 0.0
    draft_parents: list[Any] | None = None
    seed: int = 0
    backend: str = "auto"
    device: torch.device = torch.device("cpu")  # noqa: RUF009  (immutable)
    q: torch.Tensor = field(init=False)
    k_cache: torch.Tensor = field(init=False)
    v_cache: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        g = torch.Generator().manual_seed(self.seed)
        shape = (self.load.num_pages, self.load.page_size, self.num_kv_heads, self.head_dim)
        self.k_cache = torch.randn(shape, generator=g).to(self.dtype)
        self.v_cache = torch.randn(shape, generator=g).to(self.dtype)
        tokens = int(self.load.q_lens.sum())
        self.q = torch.randn(tokens, self.num_q_heads, self.head_dim, generator=g).to(self.dtype)
        caches = [self.k_cache, self.v_cache]
        poison_unused_slots(caches, self.load.block_tables, self.load.kv_lens)

    def plan(self, **options: Any) -> ttc_kernels.TreeAttentionPlan:
        make = ttc_kernels.plan_tree_attention
        if self.backend in EMULATED:
            make = partial(emulated.plan, self.backend)
        return make(
            pad_block_tables(self.load.block_tables),
            self.load.kv_lens,
            self.load.q_lens,
            page_size=self.load.page_size,
            num_q_heads=self.num_q_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            dtype=self.dtype,
            window_left=self.window_left,
            draft_parents=self.draft_parents,
            device=self.device,
            **options,
        )

    def run(self, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return self.attend(self.plan(**options))

    def attend(
        self, plan: ttc_kernels.TreeAttentionPlan, **options: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        tensors = [x.to(self.device) for x in (self.q, self.k_cache, self.v_cache)]
        out, lse = nan_outputs(tensors[0])
        options = {"logits_soft_cap": self.soft_cap, "out": out, "lse": lse, **options}
        if self.backend in EMULATED:
            return emulated.attend(self.backend, *tensors, plan, **options)
        ttc_kernels.tree_attention(*tensors, plan, backend=self.backend, **options)
        return out.cpu(), lse.cpu()

    def check(self, **options: Any) -> None:
        """Out and lse at most twice as wrong as plain torch in the same dtype."""
        out, lse = self.run(**options)
        expected_out, expected_lse = reference.tree_attention(
            self.q,
            self.k_cache,
            self.v_cache,
            self.load.block_tables,
            self.load.kv_lens,
            self.load.q_lens,
            self.draft_parents,
            self.window_left,
            logits_soft_cap=self.soft_cap,
        )
        plain_out, plain_lse = self.plain_torch()
        assert_close_to_reference(out, expected_out, plain_out)
        assert_close_to_reference(lse, expected_lse, plain_lse)

    def plain_torch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Row by row in the case's dtype: matmul, fp32 softmax, matmul, as model code does it."""
        out = torch.zeros_like(self.q)
        lse = torch.full(self.q.shape[:2], -math.inf)
        group = self.num_q_heads // self.num_kv_heads
        begin = 0
        for b, (length, count) in enumerate(
            zip(self.load.kv_lens.tolist(), self.load.q_lens.tolist(), strict=True)
        ):
            rows = slice(begin, begin + count)
            begin += count
            if length == 0:
                continue
            pages = torch.from_numpy(np.asarray(self.load.block_tables[b], np.int64))
            k = self.k_cache[pages].flatten(0, 1)[:length].repeat_interleave(group, 1)
            v = self.v_cache[pages].flatten(0, 1)[:length].repeat_interleave(group, 1)
            s = self.q[rows].transpose(0, 1) @ k.permute(1, 2, 0) / math.sqrt(self.head_dim)
            if self.soft_cap:
                s = self.soft_cap * torch.tanh(s / self.soft_cap)
            parents = None if self.draft_parents is None else self.draft_parents[b]
            mask = visible(length, count, parents, self.window_left)
            s = s.float().masked_fill(~mask, -math.inf)
            lse[rows] = s.logsumexp(-1).T
            out[rows] = (s.softmax(-1).to(self.dtype) @ v.transpose(0, 1)).transpose(0, 1)
        return out, lse


def visible(kv_len: int, q_len: int, parents: Any, window_left: int) -> torch.Tensor:
    """bool [q_len, kv_len], written independently of the reference: walks up the draft tree."""
    prefix = kv_len - q_len
    up = list(range(-1, q_len - 1)) if parents is None else list(parents)
    depth = [0] * q_len
    mask = torch.zeros(q_len, kv_len, dtype=torch.bool)
    mask[:, :prefix] = True
    for j in range(q_len):
        depth[j] = 0 if up[j] < 0 else depth[up[j]] + 1
        at = j
        while at >= 0:
            mask[j, prefix + at] = True
            at = up[at]
    if window_left >= 0:
        logical = torch.tensor([*range(prefix), *(prefix + d for d in depth)])
        mask &= logical[None] >= logical[prefix:, None] - window_left
    return mask


@pytest.fixture
def make_case(request: pytest.FixtureRequest) -> Callable[..., Case]:
    """Makes cases for the backend that the test is parametrised with, by default the CPU's."""
    backend = getattr(request, "param", "cpu")
    if backend == "cpu":
        return Case
    if backend in EMULATED:

        def emulate(load: Workload, dtype: torch.dtype = torch.bfloat16, *args: Any, **kwargs: Any):
            dtype = torch.bfloat16 if dtype == torch.float32 else dtype
            return Case(load, dtype, *args, **kwargs, backend=backend)

        return emulate
    device = request.getfixturevalue("triton_device")

    def make(load: Workload, dtype: torch.dtype = torch.float32, *args: Any, **kwargs: Any) -> Case:
        if dtype == torch.bfloat16 and device.type == "cpu":
            pytest.skip("Triton's interpreter computes wrongly in bfloat16")
        return Case(load, dtype, *args, **kwargs, backend="triton", device=device)

    return make


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests marked `backends` run on every backend, the others on the CPU."""
    if "make_case" in metafunc.fixturenames and metafunc.definition.get_closest_marker("backends"):
        gpu = [pytest.mark.gpu] if torch.cuda.is_available() else []
        backends = ["cpu", pytest.param("triton", marks=gpu), *EMULATED]
        metafunc.parametrize("make_case", backends, indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The CUDA kernels have no float32."""
    without = [item for item in items if _is_emulated_float32(item)]
    if without:
        config.hook.pytest_deselected(items=without)
        items[:] = [item for item in items if item not in without]


def _is_emulated_float32(item: pytest.Item) -> bool:
    params = getattr(getattr(item, "callspec", None), "params", {})
    return params.get("make_case") in EMULATED and params.get("dtype") == torch.float32
