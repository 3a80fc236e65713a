"""The head of a reward model, from its checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from ttc_kernels import StepHead
from ttc_runtime.rewards.format import Format


def load_head(directory: Path, written: Format, model) -> StepHead:
    """The head that a format names.

    directory: of the checkpoint. written: the format with the model's tokenizer. model: the loaded
    backbone, whose embedding an LM head may share. Raises ValueError for weights that are missing
    or not finite.
    """
    head = written.spec.head
    embedding = model.get_input_embeddings().weight
    try:
        if head["kind"] == "token_pair":
            ids = [written.token(head["good"]), written.token(head["bad"])]
            if ids[0] == ids[1]:
                raise ValueError(f"the tokenizer gives {head['good']!r} and {head['bad']!r} one id")
            rows = embedding[ids]
            if not model.config.tie_word_embeddings:
                rows = read_tensor(directory, "lm_head.weight", ids)
            return StepHead.token_pair(*rows.to(embedding.dtype)).to(embedding.device)
        weights = [read_tensor(directory, head["weights"][0])]
        for name in head["weights"][1:]:
            optional = name.endswith(".bias") and head["kind"] != "two_logit"
            weights.append(read_tensor(directory, name, optional=optional))
        w, b, *rest = (x if x is None else x.to(embedding.dtype) for x in weights)
        if head["kind"] == "two_logit":
            made = StepHead.two_logit(w, b, *rest)
        elif head["kind"] == "softmax":
            made = StepHead.softmax(w, b, tuple(head.get("good", (1,))))
        elif head["kind"] == "value":
            made = StepHead.value(w, 0.0 if b is None else b)
        else:
            made = StepHead.raw(w, 0.0 if b is None else b)
    except ValueError as error:
        raise ValueError(f"{directory}: reward head: {error}") from error
    return made.to(embedding.device)


def read_tensor(
    directory: Path, name: str, rows: list[int] | None = None, *, optional: bool = False
) -> Tensor:
    """A tensor of a checkpoint, or some of its rows, without reading the others.

    Raises ValueError if there is none of that name; optional gives None instead.
    """
    for stem, read in (("model.safetensors", _safetensor), ("pytorch_model.bin", _pickled)):
        index = directory / f"{stem}.index.json"
        file: Path | None = directory / stem
        if index.is_file():
            shard = json.loads(index.read_text())["weight_map"].get(name)
            file = None if shard is None else directory / shard
        if file is not None and file.is_file():
            tensor = read(file, name, rows)
            if tensor is not None:
                return tensor
    if optional:
        return None  # type: ignore[return-value]
    raise ValueError(f"expected a weight {name!r} in the checkpoint, found none")


def _safetensor(file: Path, name: str, rows: list[int] | None) -> Tensor | None:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        if name not in tensors.keys():  # noqa: SIM118  (no `in` of its own)
            return None
        if rows is None:
            return tensors.get_tensor(name)
        part = tensors.get_slice(name)
        return torch.cat([part[row : row + 1] for row in rows])


def _pickled(file: Path, name: str, rows: list[int] | None) -> Tensor | None:
    tensor = torch.load(file, map_location="cpu", weights_only=True, mmap=True).get(name)
    return tensor if tensor is None or rows is None else tensor[rows]
