"""Models from local Hugging Face directories, and the devices they can run on."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ttc_runtime import attention

CAUSAL_LM, BACKBONE = "AutoModelForCausalLM", "AutoModel"


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


def resolve_device(device: str | torch.device, backend: str = "auto") -> tuple[torch.device, str]:
    """A device and an attention backend by name, each or both ``auto``, as what will run.

    Raises ValueError where they cannot run, or not together.
    """
    if backend not in ("auto", "cpu", "triton"):
        raise ValueError(f"backend: expected 'auto', 'cpu' or 'triton', got {backend!r}")
    if str(device) == "auto":
        found = torch.cuda.is_available() and importlib.util.find_spec("triton") is not None
        device = "cuda" if found and backend != "cpu" else "cpu"
    if re.fullmatch(r"cpu|cuda(:\d+)?", str(device)) is None:
        raise ValueError(f"device: expected 'auto', 'cpu' or 'cuda', got {str(device)!r}")
    chosen = torch.device(device)
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: {str(device)!r} was asked for, but torch sees no CUDA GPU")
    if chosen.type == "cuda" and chosen.index not in (None, torch.cuda.current_device()):
        raise ValueError(
            f"device: {str(device)!r} is not torch's current device, where kernels are launched; "
            "choose the GPU with CUDA_VISIBLE_DEVICES or torch.cuda.set_device"
        )
    if backend == "auto":
        backend = "triton" if chosen.type == "cuda" else "cpu"
    if (chosen.type, backend) == ("cuda", "cpu"):
        raise ValueError(f"backend: 'cpu' cannot run on {str(device)!r}")
    if backend == "triton" and importlib.util.find_spec("triton") is None:
        raise ValueError("backend: 'triton' was asked for, but triton is not installed")
    if (chosen.type, backend) == ("cpu", "triton") and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError("backend: 'triton' runs on a CPU only with TRITON_INTERPRET=1, for tests")
    return chosen, backend


def load_tokenizer(directory: Path):
    """The tokenizer of a model directory. Raises ValueError if it holds none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"tokenizer: none could be loaded from {str(directory)!r}: {error}"
        ) from error


def load_model(directory: Path, auto_class: str, device: torch.device, dtype):
    """A transformers model whose attention is ours, checked, on its device.

    auto_class: `CAUSAL_LM`, or `BACKBONE`, a decoder without whatever head the checkpoint has. Code
    in the directory is never run. Raises ValueError for one that is missing, incomplete, not finite
    or not supported.
    """
    import transformers

    wanted = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype, dtype)
    if wanted not in ("auto", torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"dtype: expected 'auto', float32, float16 or bfloat16, got {dtype!r}")
    local = {"local_files_only": True, "trust_remote_code": False}
    config = transformers.AutoConfig.from_pretrained(directory, **local)
    _check_config(config, directory, auto_class)
    try:
        with _without_load_report(auto_class == BACKBONE):
            model, info = getattr(transformers, auto_class).from_pretrained(
                directory,
                **local,
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
    model = model.to(device).eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        # The sum is one quick read; only where it is not finite does every value get looked at.
        if not torch.isfinite(weight.sum(dtype=torch.float32)) and not torch.isfinite(weight).all():
            raise ValueError(f"{directory}: weights must be finite, but {name} has NaN or infinity")
    return model


@contextmanager
def _without_load_report(quiet: bool) -> Iterator[None]:
    """Weights that a decoder alone has no place for, a head's, are expected: no report of them."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    if quiet:
        logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _check_config(config, directory: Path, auto_class: str) -> None:
    kind = auto_class.removeprefix("AutoModel")
    names = config.architectures or []
    if auto_class != BACKBONE and not any(name.endswith(kind) for name in names):
        raise ValueError(f"{directory}: expected a model of the kind ...{kind}, got {names}")
    ropes = getattr(config, "rope_parameters", None) or {}
    for rope in [ropes, *(value for value in ropes.values() if isinstance(value, dict))]:
        if rope.get("rope_type") in ("dynamic", "longrope"):
            raise ValueError(
                f"{directory}: rope_type {rope['rope_type']!r} rescales by the longest sequence of "
                "a batch, so branches would change each other; use a static one such as 'yarn'"
            )
