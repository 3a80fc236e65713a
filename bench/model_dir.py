"""A model with the shape of Qwen2-0.5B and random weights, in a local directory."""

from __future__ import annotations

import itertools
import json
import string
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2Tokenizer

# The published configuration of Qwen2-0.5B.
SHAPE: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "tie_word_embeddings": True,
}


# What the first token ids stand for. Prompts are made of these words.
_WORDS = [f" {a}{b}" for a, b in itertools.product(string.ascii_lowercase, repeat=2)]
NUM_WORDS = len(_WORDS)


def write_model(directory: Path, dtype: torch.dtype, shape: dict[str, Any] | None = None) -> None:
    """Save a seeded random model and a tokenizer that reads `text_of`.

    No token ends a text, so that every contender generates all the tokens asked for.

    Args:
        directory: is created.
        dtype: of the weights.
        shape: fields of Qwen2Config that differ from Qwen2-0.5B's.
    """
    config = Qwen2Config(
        **{**SHAPE, **(shape or {})}, bos_token_id=None, eos_token_id=None, pad_token_id=None
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(directory, max_shard_size="100GB")
    _write_tokenizer(directory, config.vocab_size)


def text_of(ids: list[int]) -> str:
    """The text that `write_model`'s tokenizer reads as these tokens, all below NUM_WORDS."""
    return "".join(_WORDS[token] for token in ids)


def _write_tokenizer(directory: Path, vocab_size: int) -> None:
    """transformers gives a Qwen2 model its own byte-pair tokenizer whatever the directory says,
    so the words are byte pairs: a space and a letter, and then the second letter.
    """
    space = "\u0120"  # how byte-level tokenizers write a space
    starts = [space + letter for letter in string.ascii_lowercase]
    pieces = [space + word[1:] for word in _WORDS] + starts + ByteLevel.alphabet()
    pieces += [f"<{token}>" for token in range(len(pieces), vocab_size)]
    merges = [(space, start[1]) for start in starts]
    merges += [(space + word[1], word[2]) for word in _WORDS]
    none = dict.fromkeys(("eos_token", "pad_token", "unk_token"))
    settings: dict[str, Any] = {
        "vocab": {piece: token for token, piece in enumerate(pieces)},
        "merges": merges,
        **none,
    }
    Qwen2Tokenizer(**settings).save_pretrained(directory)
    # Missing in the file they would come back as the class's defaults, which end texts.
    file = directory / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **none}))
