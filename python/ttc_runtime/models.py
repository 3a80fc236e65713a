"""Transformers models run over a paged key/value cache."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ttc_kernels import PagePool, StepHead, score_steps
from ttc_kernels.kv_cache import copy_pages
from ttc_runtime import attention
from ttc_runtime.batch import Batch, Rows
from ttc_runtime.deterministic import make_row_independent
from ttc_runtime.graphs import CalledAgain, Capture, CudaGraph, GraphRunner
from ttc_runtime.loading import CAUSAL_LM, load_model, resolve_device

HEAD_DIMS = (64, 96, 128, 256)
PAGE_SIZES = (1, 8, 16, 32, 64, 128)
_SERIAL_WEIGHTS = 4_000_000  # models below run on one thread: threads would mostly wait


class PagedModel:
    """A transformers model whose attention reads and writes a page pool.

    directory: local model directory. auto_class: `CAUSAL_LM` or `BACKBONE`. device,
    backend: as for `resolve_device`. dtype: ``auto`` keeps the checkpoint's, except float16 on a
    CPU, which becomes float32; or a torch dtype or its name. page_size: tokens to a page.
    deterministic: a row's bits do not depend on the rows beside it. row_block: rows to each matrix
    product then; also what a pass is padded to, so a small block wastes less on few rows and runs
    many slower.

    `allocate` makes k_caches and v_caches, per layer ``[num_pages, page_size, Hkv, D]``, and
    runner, which runs the passes.

    Raises ValueError for a model that is missing, incomplete, not finite or not supported.
    """

    def __init__(
        self,
        directory: Path,
        auto_class: str = CAUSAL_LM,
        *,
        device="auto",
        backend="auto",
        dtype="auto",
        page_size: int = 16,
        deterministic: bool = True,
        row_block: int = 64,
    ) -> None:
        if page_size not in PAGE_SIZES:
            raise ValueError(f"page_size: expected one of {PAGE_SIZES}, got {page_size!r}")
        if row_block < 16 or row_block % 16:
            raise ValueError(f"row_block: expected a positive multiple of 16, got {row_block!r}")
        self.device, self.backend = resolve_device(device, backend)
        self.model = load_model(directory, auto_class, self.device, dtype)
        self.config = config = self.model.config
        self.page_size, self.deterministic = page_size, deterministic
        self.num_q_heads = config.num_attention_heads
        self.num_kv_heads = getattr(config, "num_key_value_heads", None) or self.num_q_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.num_q_heads
        self.max_positions = config.max_position_embeddings
        self.vocab_size = config.vocab_size
        if self.head_dim not in HEAD_DIMS:
            raise ValueError(
                f"{directory}: head_dim must be one of {HEAD_DIMS}, got {self.head_dim}"
            )
        linears = [m for m in self.model.modules() if isinstance(m, nn.Linear)]
        self.num_weights = sum(m.weight.numel() for m in linears)
        self.row_block = row_block if deterministic else 1
        if deterministic:
            make_row_independent(self.model, row_block)
        self._head: StepHead | None = None
        self._norm: tuple[Tensor, float] | None = None
        self._pool: PagePool | None = None
        self.k_caches: list[Tensor] = []
        self.v_caches: list[Tensor] = []

    def attach_head(self, head: StepHead) -> None:
        """Make the outputs scores: `score_steps` on the rows wanted, the final norm with it.

        head: for the backbone's width.
        """
        norm: Any = getattr(self.model, "norm", None)
        if type(norm).__name__.endswith("RMSNorm"):
            gain = norm.weight + 1 if type(norm).__name__.startswith("Gemma") else norm.weight
            eps = getattr(norm, "variance_epsilon", None) or norm.eps
            self._norm = gain.float(), float(eps)
            self.model.norm = nn.Identity()
        self._head = head
        self.num_weights += sum(weight.numel() for weight in head.weights)

    @property
    def pool(self) -> PagePool:
        """The page pool. Raises RuntimeError before `allocate`."""
        if self._pool is None:
            raise RuntimeError("PagedModel: no pages yet, call allocate first")
        return self._pool

    @property
    def has_pages(self) -> bool:
        return self._pool is not None

    @property
    def page_bytes(self) -> int:
        """Bytes that one page takes over all layers, keys and values."""
        token = 2 * self.num_kv_heads * self.head_dim * self.model.dtype.itemsize
        return self.config.num_hidden_layers * self.page_size * token

    def allocate(self, num_pages: int) -> None:
        """Create the page pool, the caches of ``num_pages`` pages, and what runs passes on them."""
        self._pool = PagePool(num_pages, page_size=self.page_size)
        shape = (num_pages, self.page_size, self.num_kv_heads, self.head_dim)
        new = lambda: torch.empty(shape, dtype=self.model.dtype, device=self.device)  # noqa: E731
        self.k_caches = [new() for _ in range(self.config.num_hidden_layers)]
        self.v_caches = [new() for _ in range(self.config.num_hidden_layers)]
        # Decoding steps run from static buffers on the Triton backend; on a CPU that is for tests.
        capture: Capture = CalledAgain
        if self.device.type == "cuda":
            capture = functools.partial(CudaGraph, torch.cuda.graph_pool_handle())
        plan_options = {
            "page_size": self.page_size,
            "num_q_heads": self.num_q_heads,
            "num_kv_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "dtype": self.model.dtype,
            "device": self.device,
            "deterministic": self.deterministic,
        }
        self.runner = GraphRunner(
            self._compute,
            plan_options,
            self.row_block,
            capture if self.backend == "triton" else None,
        )

    @contextmanager
    def threads(self) -> Iterator[None]:
        """Limits torch to one thread for as long as a small model runs.

        Its operations take microseconds, less than threads need to meet on a busy machine.
        """
        before = torch.get_num_threads()
        if self.num_weights < _SERIAL_WEIGHTS:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def run_copies(self) -> None:
        """Copy the pages that forked branches wrote to since the last pass, which frees sources."""
        copies = self.pool.take_copies()
        if len(copies):
            copy_pages(self.k_caches, self.v_caches, copies)

    @torch.inference_mode()
    def forward(
        self,
        token_ids: np.ndarray,
        positions: np.ndarray,
        slots: np.ndarray,
        branches: list,
        kv_lens: np.ndarray,
        q_lens: np.ndarray,
        keep: np.ndarray,
        draft_parents: list[np.ndarray | None] | None = None,
    ) -> Tensor:
        """Run the new tokens of many branches in one pass.

        token_ids, positions: int64[T], the branches' new tokens one branch after the other. slots:
        int32[T], from the branches' ``append``. branches: the B pool branches. kv_lens, q_lens:
        int32[B], tokens, the new ones included and alone. keep: int64[R], the rows (0 to T - 1)
        whose outputs are wanted. draft_parents: for each branch None, or int32[q_len] if its new
        tokens are a tree. Returns logits ``[R, vocab]``, or with a head scores ``[R]``, valid until
        the next pass.
        """
        self.run_copies()
        tables = self.pool.block_tables(branches)
        return self.runner.run(
            Rows(token_ids, positions, slots, tables, kv_lens, q_lens, keep, draft_parents)
        )

    def _compute(self, batch: Batch) -> Tensor:
        """The outputs of a batch, ``[num_outputs, vocab]`` or scores ``[num_outputs]``."""
        tree = attention.TreeForward(self.k_caches, self.v_caches, batch, self.backend)
        inputs = {
            "input_ids": batch.token_ids[None],
            "position_ids": batch.positions[None],
            "use_cache": False,
            "tree": tree,
        }
        if self._head is None:
            outputs = self.model(**inputs, logits_to_keep=batch.keep).logits[0]
        else:
            hidden = self.model(**inputs).last_hidden_state[0]
            outputs = score_steps(hidden, batch.keep, self._head, norm=self._norm)
        if tree.layers_run != self.config.num_hidden_layers:
            raise RuntimeError(
                f"{type(self.model).__name__}: {tree.layers_run} of "
                f"{self.config.num_hidden_layers} layers called the registered attention; "
                "this architecture is not supported"
            )
        return outputs
