"""Models from local Hugging Face directories, run over a paged key/value cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ttc_kernels import PagePool
from ttc_kernels.kv_cache import copy_pages
from ttc_runtime import attention
from ttc_runtime.deterministic import make_row_independent

HEAD_DIMS = (64, 96, 128, 256)
PAGE_SIZES = (1, 8, 16, 32, 64, 128)
_SERIAL_WEIGHTS = 4_000_000  # models below run on one thread: threads would mostly wait
CAUSAL_LM, TOKEN_CLASSIFICATION = "AutoModelForCausalLM", "AutoModelForTokenClassification"


def model_directory(name: str | Path) -> Path:
    """The directory of a model: a local path, or ``zoo:NAME`` for one that ships with the package.

    Raises ValueError if there is no model; the network is never asked.
    """
    if str(name).startswith("zoo:"):
        from ttc_runtime import zoo

        return Path(zoo.path(str(name)[4:]))
    path = Path(name).expanduser()
    if not (path / "config.json").is_file():
        raise ValueError(
            f"model directory: expected 'zoo:NAME' or a local directory with config.json, "
            f"safetensors weights and tokenizer files, got {str(name)!r}"
        )
    return path


def resolve_device(device: str | torch.device) -> torch.device:
    """``auto`` or a torch device name as a device. Raises ValueError where it cannot run."""
    if str(device) in ("auto", "cpu"):
        return torch.device("cpu")
    if str(device).startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device: {str(device)!r} was asked for, but torch sees no CUDA GPU")
    raise ValueError(
        f"device: expected 'auto' or 'cpu', the devices this runtime is tested on, "
        f"got {str(device)!r}"
    )


def load_tokenizer(directory: Path):
    """The tokenizer of a model directory. Raises ValueError if it holds none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"tokenizer: none could be loaded from {str(directory)!r}: {error}"
        ) from error


class PagedModel:
    """A transformers model whose attention reads and writes a page pool.

    directory: local model directory. auto_class: `CAUSAL_LM` or `TOKEN_CLASSIFICATION`. device: as
    for `resolve_device`. dtype: ``auto`` keeps the checkpoint's, except float16 on a CPU, which
    becomes float32; or a torch dtype or its name. page_size: tokens to a page. deterministic: a
    row's bits do not depend on the rows beside it. row_block: rows to each matrix product then;
    also what a pass is padded to, so a small block wastes less on few rows and runs many slower.

    Raises ValueError for a model that is missing, incomplete, not finite or not supported.
    """

    def __init__(
        self,
        directory: Path,
        auto_class: str = CAUSAL_LM,
        *,
        device="auto",
        dtype="auto",
        page_size: int = 16,
        deterministic: bool = True,
        row_block: int = 64,
    ) -> None:
        if page_size not in PAGE_SIZES:
            raise ValueError(f"page_size: expected one of {PAGE_SIZES}, got {page_size!r}")
        if row_block < 16 or row_block % 16:
            raise ValueError(f"row_block: expected a positive multiple of 16, got {row_block!r}")
        self.device = resolve_device(device)
        self.model = _load(directory, auto_class, self.device, dtype)
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
        self._pool: PagePool | None = None
        self.k_caches: list[Tensor] = []
        self.v_caches: list[Tensor] = []

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
        """Create the page pool and the caches of ``num_pages`` pages."""
        self._pool = PagePool(num_pages, page_size=self.page_size)
        shape = (num_pages, self.page_size, self.num_kv_heads, self.head_dim)
        new = lambda: torch.empty(shape, dtype=self.model.dtype, device=self.device)  # noqa: E731
        self.k_caches = [new() for _ in range(self.config.num_hidden_layers)]
        self.v_caches = [new() for _ in range(self.config.num_hidden_layers)]

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
            copy_pages(self.k_caches, self.v_caches, torch.from_numpy(copies))

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
    ) -> Tensor:
        """Run the new tokens of many branches in one pass.

        token_ids, positions: int64[T], the branches' new tokens one branch after the other. slots:
        int32[T], from the branches' ``append``. branches: the B pool branches. kv_lens, q_lens:
        int32[B], tokens, the new ones included and alone. keep: int64[R], the rows (0 to T - 1)
        whose outputs are wanted. Returns logits ``[R, vocab]``, or ``[R, labels]``.
        """
        num_tokens, num_kept = len(token_ids), len(keep)
        padding = -num_tokens % self.row_block
        self.run_copies()
        tree = attention.TreeForward(
            self.k_caches,
            self.v_caches,
            self._tensor(slots, padding, -1),
            num_tokens,
            self.pool.block_tables(branches),
            kv_lens,
            q_lens,
            self.num_q_heads,
            self.deterministic,
        )
        inputs = {
            "input_ids": self._tensor(token_ids, padding, 0)[None],
            "position_ids": self._tensor(positions, padding, 0)[None],
            "use_cache": False,
            "tree": tree,
        }
        if hasattr(self.model, "lm_head"):
            padded = self._tensor(keep, -num_kept % self.row_block, 0)
            logits = self.model(**inputs, logits_to_keep=padded).logits[0, :num_kept]
        else:
            logits = self.model(**inputs).logits[0][self._tensor(keep, 0, 0)]
        if tree.layers_run != self.config.num_hidden_layers:
            raise RuntimeError(
                f"{type(self.model).__name__}: {tree.layers_run} of "
                f"{self.config.num_hidden_layers} layers called the registered attention; "
                "this architecture is not supported"
            )
        return logits

    def _tensor(self, values: np.ndarray, padding: int, fill: int) -> Tensor:
        if padding:
            values = np.concatenate([values, np.full(padding, fill, values.dtype)])
        return torch.from_numpy(values).to(self.device)


def _load(directory: Path, auto_class: str, device: torch.device, dtype):
    import transformers

    wanted = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype, dtype)
    if wanted != "auto" and not isinstance(wanted, torch.dtype):
        raise ValueError(f"dtype: expected 'auto' or a torch dtype, got {dtype!r}")
    config = transformers.AutoConfig.from_pretrained(directory, local_files_only=True)
    _check_config(config, directory, auto_class)
    try:
        model, info = getattr(transformers, auto_class).from_pretrained(
            directory,
            local_files_only=True,
            dtype=wanted,
            attn_implementation=attention.NAME,
            output_loading_info=True,
        )
    except OSError as error:
        raise ValueError(f"{directory}: no weights could be loaded: {error}") from error
    if info["missing_keys"]:
        raise ValueError(
            f"{directory}: weights missing for {auto_class}: {sorted(info['missing_keys'])[:4]}"
        )
    if wanted == "auto" and model.dtype == torch.float16 and device.type == "cpu":
        model = model.float()
    for name, weight in model.named_parameters():
        # The sum is one quick read; only where it is not finite does every value get looked at.
        if not torch.isfinite(weight.sum(dtype=torch.float32)) and not torch.isfinite(weight).all():
            raise ValueError(f"{directory}: weights must be finite, but {name} has NaN or infinity")
    return model.to(device).eval().requires_grad_(False)


def _check_config(config, directory: Path, auto_class: str) -> None:
    kind = auto_class.removeprefix("AutoModel")
    names = config.architectures or []
    if not any(name.endswith(kind) for name in names):
        raise ValueError(f"{directory}: expected a model of the kind ...{kind}, got {names}")
    ropes = getattr(config, "rope_parameters", None) or {}
    for rope in [ropes, *(value for value in ropes.values() if isinstance(value, dict))]:
        if rope.get("rope_type") in ("dynamic", "longrope"):
            raise ValueError(
                f"{directory}: rope_type {rope['rope_type']!r} rescales by the longest sequence of "
                "a batch, so branches would change each other; use a static one such as 'yarn'"
            )
