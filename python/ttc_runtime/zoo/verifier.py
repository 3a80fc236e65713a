"""The reward model before its training: arith-large, and two layers that compare.

A policy predicts the next character in its last layer, too late for the next position to compare
the prediction with what was written there. So the reward model is arith-large with two layers more,
and the first of them begins with weights that make the comparison; training does the rest.

    layer 5, attention   head 0 looks one position back and copies what arith-large predicted there;
                         head 2 looks at its own position and copies which character stands there
    layer 5, MLP         character times prediction: large where the two agree
    layer 6              from scratch: gathers disagreements, in this line and before it
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM, LlamaForTokenClassification

from . import arith, path, specs

_SHARPNESS = 10.5  # of the position heads: attention to the wrong place is below 1e-6
_PREDICTION, _CHARACTER, _AGREEMENT = 1.0, 8.0, 0.2  # sizes of what layer 5 writes


@torch.no_grad()
def untrained_verifier() -> LlamaForTokenClassification:
    """arith-large's layers, two more with the comparison laid in, and a fresh two-label head.

    The old layers are the same function with their residual stream scaled to about 1, so that the
    new layers, whose weights begin at ordinary sizes, can be heard beside them.

    >>> untrained_verifier().config.num_hidden_layers  # doctest: +SKIP
    6
    """
    policy: Any = LlamaForCausalLM.from_pretrained(path("arith-large"), dtype=torch.float32)
    unembedding = policy.lm_head.weight.clone()
    config = specs.config("arith-prm")
    model: Any = LlamaForTokenClassification(config)
    state = {k: v for k, v in policy.model.state_dict().items() if k != "norm.weight"}
    model.model.load_state_dict(state, strict=False)
    for name, bias in model.named_parameters():
        if name.endswith("proj.bias"):
            bias.zero_()
    old = len(policy.model.layers)
    scale = 1 / _residual_size(policy)
    model.model.embed_tokens.weight.mul_(scale)
    for layer in model.model.layers[:old]:
        layer.self_attn.o_proj.weight.mul_(scale)
        layer.mlp.down_proj.weight.mul_(scale)
    _lay_in_comparison(model.model.layers[old], policy, unembedding)
    return model


def _lay_in_comparison(layer: Any, policy: Any, unembedding: torch.Tensor) -> None:
    vocab, size = unembedding.shape
    # Three groups of random orthogonal directions of the residual stream to write to.
    basis = torch.linalg.qr(torch.randn(size, size))[0]
    prediction, character = basis[:, :vocab], basis[:, vocab : 2 * vocab]
    agreement = basis[:, 2 * vocab : 2 * vocab + 1]
    head = layer.self_attn.head_dim
    half = head // 2
    turn = 1e4 ** (-torch.arange(half) / half)  # rotary angle of one position, per pair

    attention = layer.self_attn
    layer.input_layernorm.weight.copy_(policy.model.norm.weight)  # so that values are logits
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight.normal_(std=0.01)
    attention.v_proj.weight.zero_()
    attention.o_proj.weight.zero_()
    q, k = attention.q_proj.bias, attention.k_proj.bias
    # Biases alone make a head look at a fixed distance: a key turned one position further meets
    # the query of the next position.
    q[:half] = _SHARPNESS
    k[:half], k[half:head] = _SHARPNESS * turn.cos(), _SHARPNESS * turn.sin()
    q[2 * head : 2 * head + half] = _SHARPNESS
    k[head : head + half] = _SHARPNESS
    attention.v_proj.weight[:vocab] = unembedding
    attention.v_proj.weight[head : head + vocab] = _character_probe(policy)
    attention.o_proj.weight[:, :vocab] = _PREDICTION * prediction
    attention.o_proj.weight[:, 2 * head : 2 * head + vocab] = _CHARACTER * character

    mlp = layer.mlp
    mlp.down_proj.weight.normal_(std=0.002)
    mlp.gate_proj.weight[:vocab] = 1.5 * character.T
    mlp.up_proj.weight[:vocab] = prediction.T
    mlp.down_proj.weight[:, :vocab] = _AGREEMENT * agreement


def _solutions(per_length: int = 60) -> list[torch.Tensor]:
    return [
        torch.tensor([specs.encode(p.text + "".join(p.steps))])
        for n in range(1, arith.MAX_OPS + 1)
        for p in itertools.islice(arith.generate("train", n, 12), per_length)
    ]


def _final_hidden(policy: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised last hidden states of right solutions, and the characters they stand at."""
    texts = _solutions()
    hidden = [policy.model(input_ids=ids).last_hidden_state[0] for ids in texts]
    return torch.cat(hidden), torch.cat([ids[0] for ids in texts])


def _character_probe(policy: Any) -> torch.Tensor:
    """[vocab, hidden]: least squares from a hidden state to the character at its own position."""
    hidden, characters = _final_hidden(policy)
    target = F.one_hot(characters, policy.config.vocab_size).float()
    return torch.linalg.lstsq(hidden, target).solution.T


def _residual_size(policy: Any) -> float:
    """Root mean square of the residual stream behind the last layer."""
    last: list[torch.Tensor] = []
    hook = policy.model.norm.register_forward_pre_hook(lambda _, inputs: last.append(inputs[0]))
    policy.model(input_ids=_solutions(1)[-1])
    hook.remove()
    return last[0].square().mean().sqrt().item()
