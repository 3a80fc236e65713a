"""A Qwen2 checkpoint as the GGUF file that llama.cpp reads, same weights, same dtype."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import torch
from safetensors.torch import load_file


def write_gguf(model: Path, path: Path) -> None:
    """Convert a directory with one safetensors file; matrices keep their dtype.

    Norms and biases become float32, as in llama.cpp's own converter. There is no vocabulary:
    tokens go in and out as numbers.

    Args:
        model: Hugging Face directory of a Qwen2 model.
        path: the file to write.
    """
    config = json.loads((model / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config["num_hidden_layers"])
    for name, tensor in load_file(model / "model.safetensors").items():
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise ValueError(f"write_gguf: expected tensors of a Qwen2 model, got {name!r}")
        if tensor.ndim == 2 and tensor.dtype == torch.bfloat16:
            raw = tensor.view(torch.uint8).numpy()
            writer.add_tensor(target, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(target, tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
