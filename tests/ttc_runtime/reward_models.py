"""Small random models in the layout of each public reward model, with tokenizers of their own.

Each test model comes with `plain`: its scores by plain transformers over the whole text, written
from the format's description: `plain(problem, steps) -> scores`.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)

_WORDS = r" ?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def byte_tokenizer(directory: Path, special: list[str], template: str | None, **names) -> None:
    """Byte-level as Qwen2's and Llama 3's, with a few merges across and inside words."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ċ", "Ċ"), ("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("i", "n"), ("o", "n"), ("1", "2")]
    vocabulary = {token: i for i, token in enumerate([*alphabet, *("".join(m) for m in merges)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in special])
    (directory / "chat_template.jinja").unlink(missing_ok=True)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    made.chat_template = template
    made.save_pretrained(directory)


def sentencepiece_tokenizer(directory: Path) -> None:
    """As Mistral's: spaces are part of words, unknown characters are bytes, "▁ки" is one token."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    characters = ["▁", *"abcdefghijklmnopqrstuvwxyzSTABC0123456789+-=.,:*к", "и"]
    merges = [("к", "и"), ("▁", "ки"), ("▁", "+"), ("▁", "-"), ("t", "h"), ("▁", "S"), ("1", "2")]
    vocabulary = {p: i for i, p in enumerate([*pieces, *characters, *("".join(m) for m in merges)])}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(directory)


def save_model(
    directory: Path, architecture: str, kind: str, changes: dict, extra: dict, **config
) -> None:
    """A random model, its tokenizer being there already.

    changes: to config.json afterwards. extra: shapes of weights beside those of the class.
    """
    shape = {
        "vocab_size": len(AutoTokenizer.from_pretrained(directory)),
        "hidden_size": 128,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        **config,
    }
    torch.manual_seed(0)
    made = getattr(transformers, architecture + kind)(
        getattr(transformers, f"{architecture}Config")(**shape)
    )
    for name, weight in made.named_parameters():
        if weight.ndim == 2:
            weight.data.mul_(3.0)
        elif "norm" in name:
            weight.data.uniform_(0.5, 1.5)
    made.save_pretrained(directory)
    path = directory / "model.safetensors"
    if extra:
        weights = load_file(path)
        save_file(
            weights | {k: torch.randn(v) / 8 for k, v in extra.items()}, path, {"format": "pt"}
        )
    if changes:
        config_file = directory / "config.json"
        config_file.write_text(json.dumps(json.loads(config_file.read_text()) | changes))


@torch.no_grad()
def hidden_states(directory: Path, ids: list[int]) -> torch.Tensor:
    """``[T, E]`` behind the final norm, of the whole text at once."""
    backbone = transformers.AutoModel.from_pretrained(directory, attn_implementation="eager").eval()
    return backbone(torch.tensor([ids])).last_hidden_state[0]


def pair_scores(directory: Path, ids: list[int], ends: list[int], pair: list[int]) -> list[float]:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    return logits[ends][:, pair].softmax(-1)[:, 0].tolist()


def qwen_prm(root: Path, name: str = "Qwen2.5-Math-PRM-7B"):
    directory = root / name
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<extra_0>"]
    byte_tokenizer(directory, special, CHATML, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    changes = {
        "architectures": ["Qwen2ForProcessRewardModel"],
        "auto_map": {"AutoModel": "modeling_qwen2_rm.Qwen2ForProcessRewardModel"},
    }
    head = {"score.0.weight": (128, 128), "score.0.bias": (128,)}
    head |= {"score.2.weight": (2, 128), "score.2.bias": (2,)}
    save_model(directory, "Qwen2", "ForCausalLM", changes, head)

    def plain(problem, steps):
        tokenizer = AutoTokenizer.from_pretrained(directory)
        system = "Please reason step by step, and put your final answer within \\boxed{}."
        messages = [
            {"role": "system", "content": system},
            {"role": "user", "content": problem},
            {"role": "assistant", "content": "<extra_0>".join(steps) + "<extra_0>"},
        ]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        weights = load_file(directory / "model.safetensors")
        h = hidden_states(directory, ids)
        inner = torch.relu(h @ weights["score.0.weight"].T + weights["score.0.bias"])
        scores = (inner @ weights["score.2.weight"].T + weights["score.2.bias"]).softmax(-1)[:, 1]
        tag = tokenizer.convert_tokens_to_ids("<extra_0>")
        return scores[torch.tensor(ids) == tag].tolist()

    return directory, plain


def qwen_prm800k(root: Path):
    return qwen_prm(root, "Qwen2.5-Math-7B-PRM800K")


def skywork(root: Path):
    directory = root / "Skywork-o1-Open-PRM-Qwen-2.5-1.5B"
    names = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    byte_tokenizer(directory, ["<|endoftext|>"], None, **names)
    head = {"v_head.summary.weight": (1, 128), "v_head.summary.bias": (1,)}
    save_model(directory, "Qwen2", "ForCausalLM", {"architectures": ["Qwen2ForPrmModel"]}, head)

    def plain(problem, steps):
        tokenizer = AutoTokenizer.from_pretrained(directory)
        encode = lambda text: tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
        ids = encode(tokenizer.bos_token + problem + "\n")
        ends = []
        for step in steps:
            ids += [*encode(step.replace("\n", " ")), encode("\n")[-1]]
            ends.append(len(ids) - 1)
        weights = load_file(directory / "model.safetensors")
        h = hidden_states(directory, ids)[ends]
        value = h @ weights["v_head.summary.weight"].T + weights["v_head.summary.bias"]
        return value.sigmoid()[:, 0].tolist()

    return directory, plain


def rlhflow(root: Path):
    directory = root / "Llama3.1-8B-PRM-Deepseek-Data"
    special = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    byte_tokenizer(directory, special, LLAMA3, **names)
    save_model(directory, "Llama", "ForCausalLM", {}, {})

    def plain(problem, steps):
        """One conversation a step, as the authors' script: the third token from its end."""
        tokenizer = AutoTokenizer.from_pretrained(directory)
        pair = [tokenizer.encode(sign, add_special_tokens=False)[-1] for sign in "+-"]
        conversation, scores = [], []
        for k, step in enumerate(steps):
            content = f"{problem} {step}" if k == 0 else step
            conversation.append({"role": "user", "content": content})
            conversation.append({"role": "assistant", "content": "+"})
            text = tokenizer.apply_chat_template(conversation, tokenize=False)
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            scores += pair_scores(directory, ids, [len(ids) - 3], pair)
        return scores

    return directory, plain


def math_shepherd(root: Path):
    directory = root / "math-shepherd-mistral-7b-prm"
    sentencepiece_tokenizer(directory)
    save_model(directory, "Mistral", "ForCausalLM", {}, {}, sliding_window=None)

    def plain(problem, steps):
        tokenizer = AutoTokenizer.from_pretrained(directory)
        pair = tokenizer.encode("+ -", add_special_tokens=False)[-2:]
        tag = tokenizer.encode("ки", add_special_tokens=False)[-1]
        text = problem + " " + "\n".join(f"{step} ки" for step in steps)
        ids = [tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)]
        ends = [i for i, token in enumerate(ids) if token == tag]
        return pair_scores(directory, ids, ends, pair)

    return directory, plain


def openrlhf(root: Path):
    directory = root / "my-openrlhf-prm"
    sentencepiece_tokenizer(directory)
    save_model(directory, "Llama", "ForCausalLM", {}, {}, tie_word_embeddings=True)

    def plain(problem, steps):
        tokenizer = AutoTokenizer.from_pretrained(directory)
        encode = lambda text: tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
        ids = encode(problem + " " + "\n".join(f"{step} ки" for step in steps))
        ends = [i for i, token in enumerate(ids) if token == encode("ки")[-1]]
        return pair_scores(directory, ids, ends, [encode("+")[-1], encode("-")[-1]])

    return directory, plain


def trl(root: Path):
    directory = root / "my-trl-prm"
    byte_tokenizer(directory, ["<|endoftext|>"], None, eos_token="<|endoftext|>")
    save_model(directory, "Qwen2", "ForTokenClassification", {}, {}, num_labels=2)

    def plain(problem, steps):
        tokenizer = AutoTokenizer.from_pretrained(directory)
        encode = lambda text: tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
        ids, ends = encode(problem), []
        for step in steps:
            ids = ids + encode(step) + encode("\n")
            ends.append(len(ids) - 1)
        model = transformers.AutoModelForTokenClassification.from_pretrained(
            directory, attn_implementation="eager"
        ).eval()
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0, ends].softmax(-1)[:, 1].tolist()

    return directory, plain


def universal(root: Path):
    directory = root / "Universal-PRM"
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    byte_tokenizer(directory, special, CHATML, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    head = {"score.weight": (1, 128)}
    save_model(directory, "Qwen2", "ForCausalLM", {"architectures": ["Qwen2ForRewardModel"]}, head)

    def plain(problem, steps):
        tokenizer = AutoTokenizer.from_pretrained(directory)
        w = load_file(directory / "model.safetensors")["score.weight"]
        reference = "The reference answer is: There is no reference answer for this question."
        messages = [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": f"{problem}\n\n###\n\n{reference}"},
        ]
        head = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        scores = []
        for k in range(1, len(steps) + 1):
            text = head + "\n\n".join(steps[:k]) + "\n\n" + tokenizer.eos_token
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            scores.append((hidden_states(directory, ids)[-1] @ w[0]).sigmoid().item())
        return scores

    return directory, plain


def outcome(root: Path):
    directory = root / "my-outcome-model"
    special = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    byte_tokenizer(directory, special, LLAMA3, **names, pad_token="<|eot_id|>")
    save_model(directory, "Llama", "ForSequenceClassification", {}, {}, num_labels=1)

    def plain(problem, steps):
        tokenizer = AutoTokenizer.from_pretrained(directory)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            directory, attn_implementation="eager"
        ).eval()
        scores = []
        for k in range(1, len(steps) + 1):
            messages = [
                {"role": "user", "content": problem},
                {"role": "assistant", "content": "".join(steps[:k])},
            ]
            text = tokenizer.apply_chat_template(messages, tokenize=False)
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                scores.append(model(torch.tensor([ids])).logits.item())
        return scores

    return directory, plain


FORMATS = {
    "qwen2.5-math-prm": qwen_prm,
    "qwen2.5-math-7b-prm800k": qwen_prm800k,
    "skywork-o1-open-prm": skywork,
    "rlhflow-llama3.1-8b-prm": rlhflow,
    "math-shepherd": math_shepherd,
    "openrlhf": openrlhf,
    "token_classification": trl,
    "universal-prm": universal,
    "outcome": outcome,
}
