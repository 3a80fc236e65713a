"""Shapes of the zoo's models and their common character tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models
from transformers import LlamaConfig, PreTrainedTokenizerFast

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
VOCAB = [PAD, EOS, UNK, "\n", *"0123456789+-*=#"]
TOKEN_ID = {token: i for i, token in enumerate(VOCAB)}
PAD_ID, EOS_ID, NEWLINE_ID = TOKEN_ID[PAD], TOKEN_ID[EOS], TOKEN_ID["\n"]

_SHAPES = {  # name: hidden, intermediate, layers, query heads, KV heads
    "arith-draft": (64, 64, 2, 1, 1),
    "arith-small": (64, 128, 3, 2, 1),
    "arith-large": (256, 448, 4, 4, 2),
    "arith-prm": (256, 448, 6, 4, 2),  # arith-large and two layers more
}


def config(name: str) -> LlamaConfig:
    """The Llama configuration of a zoo model; head_dim is 64 throughout, embeddings are tied.

    >>> config("arith-small").head_dim
    64
    """
    hidden, intermediate, layers, heads, kv_heads = _SHAPES[name]
    # The reward model's position heads need biases.
    extra: dict[str, Any] = (
        {"attention_bias": True, "num_labels": 2, "classifier_dropout": 0.0}
        if name == "arith-prm"
        else {}
    )
    return LlamaConfig(
        vocab_size=len(VOCAB),
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=64,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
        **extra,
    )


def encode(text: str) -> list[int]:
    """Token ids of a text of known characters, without special tokens; KeyError for any other.

    >>> encode("1+2=") == [TOKEN_ID[c] for c in "1+2="]
    True
    """
    return [TOKEN_ID[c] for c in text]


def save_tokenizer(directory: Path) -> None:
    """Write the character tokenizer where AutoTokenizer finds it.

    A byte-pair model without merges cuts a text into its characters.
    """
    tokenizer = Tokenizer(models.BPE(vocab=TOKEN_ID, merges=[], unk_token=UNK))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([PAD, EOS, UNK])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    ).save_pretrained(directory)
