"""Batched sampling for the zoo's own training and evaluation: plain transformers, KV cached."""

from __future__ import annotations

import torch
from transformers import DynamicCache, LlamaForCausalLM

from . import specs

_BATCH = 1024


@torch.inference_mode()
def complete(
    model: LlamaForCausalLM,
    prompts: list[str],
    *,
    greedy: bool,
    generator: torch.Generator | None = None,
    max_tokens: int = 160,
) -> list[str]:
    """Continue every prompt until the end-of-text token and return the continuations.

    prompts: texts of the zoo's characters. greedy: take the likeliest token; otherwise sample at
    temperature 1 with ``generator``. max_tokens: limit per continuation. Prompts run sorted by
    length, which keeps the left padding of a batch short.

    >>> complete(model, ["417+5=\\n"], greedy=True)  # doctest: +SKIP
    ['417+5=422\\n#422\\n']
    """
    out = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), _BATCH):
        rows = order[start : start + _BATCH]
        batch = [specs.encode(prompts[i]) for i in rows]
        for i, text in zip(rows, _run(model, batch, greedy, generator, max_tokens), strict=True):
            out[i] = text
    return out


def _run(
    model: LlamaForCausalLM,
    batch: list[list[int]],
    greedy: bool,
    generator: torch.Generator | None,
    max_tokens: int,
) -> list[str]:
    width = max(map(len, batch))
    ids = torch.tensor([[specs.PAD_ID] * (width - len(row)) + row for row in batch])
    mask = (ids != specs.PAD_ID).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    alive = torch.arange(len(batch))  # rows still running; finished ones leave the batch
    sampled = torch.full((len(batch), max_tokens), specs.PAD_ID)
    for t in range(max_tokens):
        logits = (
            model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            .logits[:, -1]
            .float()
        )
        if greedy:
            token = logits.argmax(-1)
        else:
            token = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
        sampled[alive, t] = token
        keep = (token != specs.EOS_ID).nonzero()[:, 0]
        if keep.numel() == 0:
            break
        if keep.numel() < 0.75 * alive.numel():
            cache.batch_select_indices(keep)
            alive, token, mask, positions = alive[keep], token[keep], mask[keep], positions[keep]
        ids = token[:, None]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        positions = positions[:, -1:] + 1
    return [_text(row) for row in sampled.tolist()]


def _text(ids: list[int]) -> str:
    end = ids.index(specs.EOS_ID) if specs.EOS_ID in ids else len(ids)
    return "".join(specs.VOCAB[i] for i in ids[:end] if i != specs.PAD_ID)


def split_steps(text: str) -> list[str]:
    """Cut a solution into its lines, newlines kept; an unfinished last line counts as a step.

    >>> split_steps("1+2=3\\n#3\\n")
    ['1+2=3\\n', '#3\\n']
    """
    return text.splitlines(keepends=True)


@torch.inference_mode()
def score_steps(model: torch.nn.Module, problem: str, solutions: list[str]) -> list[list[float]]:
    """Process reward of every step: ``softmax(logits)[1]`` at the step's closing newline.

    model: LlamaForTokenClassification with two labels. problem: the prompt. solutions: texts of
    closed lines; the scores come back one list a solution, one number a line.

    >>> score_steps(prm, "417+5=\\n", ["417+5=422\\n#422\\n"])  # doctest: +SKIP
    [[0.98, 0.99]]
    """
    rows = [specs.encode(problem + text) for text in solutions]
    width = max(map(len, rows))
    ids = torch.tensor([row + [specs.PAD_ID] * (width - len(row)) for row in rows])
    good = model(input_ids=ids, use_cache=False).logits.float().softmax(-1)[..., 1]
    is_end = ids == specs.NEWLINE_ID
    is_end[:, : len(problem)] = False
    return [good[i][is_end[i]].tolist() for i in range(len(rows))]
