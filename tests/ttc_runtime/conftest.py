"""Tiny random models of five architectures, saved as local Hugging Face directories."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from scripted import scripted
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

__all__ = ["ARCHITECTURES", "make_engine", "one_thread", "scripted", "speculating", "tiny_model"]

CHARACTERS = ["<pad>", "<eos>", "<unk>", "\n", *"0123456789+-*=#abcdefghijklmnopqrstuvwxyz "]

_SHAPE = {
    "vocab_size": len(CHARACTERS),
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
    "tie_word_embeddings": False,
}
_EXTRA = {
    "Llama": {},
    "Qwen2": {"num_attention_heads": 2, "num_key_value_heads": 1},
    "Qwen3": {},
    "Mistral": {"sliding_window": 9},
    "Gemma2": {
        "sliding_window": 7,
        "query_pre_attn_scalar": 96,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
    },
}
ARCHITECTURES = tuple(_EXTRA)


def save_tokenizer(directory: Path) -> None:
    vocabulary = {c: i for i, c in enumerate(CHARACTERS)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(CHARACTERS[:3])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    ).save_pretrained(directory)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny matrices gain nothing from threads, and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """Factory: ``tiny_model("Llama", kind="ForCausalLM", dtype=..., **config)`` -> directory."""
    made: dict[str, Path] = {}

    def make(architecture="Llama", kind="ForCausalLM", dtype=torch.float32, **changes) -> Path:
        key = repr((architecture, kind, dtype, sorted(changes.items())))
        if key not in made:
            shape = {**_SHAPE, **_EXTRA[architecture], **changes}
            if kind == "ForTokenClassification":
                shape["num_labels"] = 2
            config = getattr(transformers, f"{architecture}Config")(**shape)
            torch.manual_seed(0)
            model = getattr(transformers, architecture + kind)(config)
            for weight in model.parameters():  # spread the outputs: default initialisation is flat
                weight.data.mul_(3.0 if weight.ndim == 2 else 1.0)
            directory = tmp_path_factory.mktemp(f"{architecture}{kind}")
            model.to(dtype).save_pretrained(directory)
            save_tokenizer(directory)
            made[key] = directory
        return made[key]

    return make


@pytest.fixture
def make_engine(tiny_model):
    """Factory of engines on tiny random models; steps end with "a", a character they often say."""

    def make(*, reward=True, policy=None, model=None, **arguments):
        from ttc_runtime import Engine

        arguments = {"kv_memory": "32MiB", "step_separator": "a", "device": "cpu", **arguments}
        scorer = tiny_model("Llama", "ForTokenClassification") if reward else None
        return Engine.from_pretrained(
            model or tiny_model("Llama", **(policy or {})), reward=scorer, **arguments
        )

    return make


@pytest.fixture
def speculating(make_engine, tiny_model):
    """Factory of engines; `same`: the draft model is the policy, so that its guesses are right."""

    def make(kind: str, same: bool = False, **arguments):
        draft = None
        if kind.startswith(("chain", "tree")):
            draft = tiny_model("Llama") if same else tiny_model("Llama", num_hidden_layers=1)
        return make_engine(draft=draft, speculate=kind, **arguments)

    return make
