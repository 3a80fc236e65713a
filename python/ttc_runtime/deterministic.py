"""Row-independent model code: a row's bits must not depend on the rows beside it.

A matrix product picks its blocking, and with it its order of summation, from the number of rows. So
every linear layer runs in blocks of one fixed number of rows, the last one padded: a block's shape
never changes, and inside a block rows do not touch each other. Elementwise functions have a similar
trap: torch computes the last few elements of each thread's range with other code than the rest. On
a GPU elementwise functions are safe, but torch's reductions, which the norms use, pick their order
from the number of rows as well.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_GRAIN = 32768  # elements below which torch runs an elementwise operation on one thread
_VECTOR = 64  # a multiple of every vector width torch uses, in elements


def make_row_independent(model: nn.Module, row_block: int) -> None:
    """Patch a model in place so that rows of a forward pass do not influence each other's bits.

    model: a transformers decoder whose inputs are ``[1, T]`` with T a multiple of ``row_block``.
    row_block: rows to each matrix product; a multiple of 16.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            _replace_forward(module, functools.partial(_blocked_linear, module, row_block))
        activation = getattr(module, "act_fn", None)
        if isinstance(activation, nn.Module) and "forward" not in vars(activation):
            wrapped = functools.partial(_aligned_elementwise, activation.forward)
            _replace_forward(activation, wrapped)
        if type(module).__name__.endswith("RotaryEmbedding"):
            wrapped = functools.partial(_blocked_rotary, module.forward, row_block)
            _replace_forward(module, wrapped)
        if type(module).__name__.endswith("Norm"):
            _replace_forward(module, functools.partial(_blocked_norm, module.forward, row_block))


def _replace_forward(module: nn.Module, forward: Callable) -> None:
    vars(module)["forward"] = forward


def _blocked_linear(module: nn.Linear, row_block: int, x: Tensor) -> Tensor:
    rows = x.numel() // x.shape[-1]
    if rows == row_block and x.device.type == "cpu":
        return F.linear(x, module.weight, module.bias)
    flat = x.reshape(rows, x.shape[-1])
    if rows % row_block:
        raise RuntimeError(f"deterministic linear: {rows} rows are no multiple of {row_block}")
    out = flat.new_empty(rows, module.out_features)
    weight = module.weight.t()
    for start in range(0, rows, row_block):
        block = slice(start, start + row_block)
        if module.bias is None:
            torch.mm(flat[block], weight, out=out[block])
        else:
            torch.addmm(module.bias, flat[block], weight, out=out[block])
    return out.view(*x.shape[:-1], module.out_features)


def _aligned_elementwise(function, x: Tensor) -> Tensor:
    """Apply an elementwise function so that no thread's range ends inside a vector."""
    numel = x.numel()
    ranges = min(torch.get_num_threads(), -(-numel // _GRAIN)) if x.device.type == "cpu" else 1
    if ranges <= 1 or -(-numel // ranges) % _VECTOR == 0:
        return function(x)
    pieces = [function(piece) for piece in x.reshape(-1).split(_GRAIN)]
    return torch.cat(pieces).view_as(x)


def _blocked_rotary(function, row_block: int, x: Tensor, position_ids: Tensor, *args, **kwargs):
    """Cosines and sines of one row block at a time: few enough elements to stay on one thread."""
    if position_ids.shape[-1] <= row_block or x.device.type != "cpu":
        return function(x, position_ids, *args, **kwargs)
    parts = [function(x, p, *args, **kwargs) for p in position_ids.split(row_block, dim=-1)]
    return tuple(torch.cat(column, dim=-2) for column in zip(*parts, strict=True))


def _blocked_norm(function, row_block: int, x: Tensor) -> Tensor:
    """The norm of ``[1, T, ...]``, on a GPU of one row block at a time."""
    if x.device.type == "cpu" or x.shape[1] <= row_block:
        return function(x)
    return torch.cat([function(part) for part in x.split(row_block, dim=1)], dim=1)
