"""Filtered distributions over the vocabulary from logits, and tokens drawn from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from . import _verify_gpu  # noqa: F401  (registers the ops)
from ._check import require_dtype

__all__ = [
    "DESCRIPTOR_COLUMNS",
    "RowFilters",
    "row_descriptor",
    "sample_children",
    "sample_tokens",
    "token_logprobs",
]

DESCRIPTOR_COLUMNS = (
    "temperature",
    "pivot",
    "tie_end",
    "log_z",
    "argmax",
    "max",
    "num_kept",
    "log_z_all",
    "z",
)
"""The columns of a row descriptor; `row_descriptor` says what they mean."""

_PerRow = float | int | np.ndarray | torch.Tensor


@dataclass(frozen=True)
class RowFilters:
    """The parameters of `row_descriptor`, for ops that describe only the rows that they come to.

    >>> RowFilters(0.7, top_p=0.95).top_k is None
    True
    """

    temperature: _PerRow
    top_k: _PerRow | None = None
    top_p: _PerRow | None = None
    min_p: _PerRow | None = None

    def columns(self, op: str, logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """One dense tensor for each parameter, a value for every row; to be read only."""
        # Those of plain numbers are kept: after the pass of a model even a few lookups take long.
        n, kept = logits.shape[0], self.__dict__.get("_kept")
        if kept is not None and kept[0] == n and logits.is_cpu and type(logits) is torch.Tensor:
            return kept[1]
        values = (
            ("temperature", self.temperature, torch.float32),
            ("top_k", 0 if self.top_k is None else self.top_k, torch.int32),
            ("top_p", 1.0 if self.top_p is None else self.top_p, torch.float32),
            ("min_p", 0.0 if self.min_p is None else self.min_p, torch.float32),
        )
        made = tuple(_per_row(op, name, value, dtype, logits) for name, value, dtype in values)
        if _may_keep(logits) and all(isinstance(value, int | float) for _, value, _ in values):
            object.__setattr__(self, "_kept", (n, made))
        return made


def row_descriptor(
    logits: torch.Tensor,
    temperature: _PerRow,
    top_k: _PerRow | None = None,
    top_p: _PerRow | None = None,
    min_p: _PerRow | None = None,
    bitmask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Temperature and filters of every row, boiled down to a few floats.

    The filters apply in the order temperature, top_k, top_p (the shortest list of most probable
    tokens that has at least this share of what top_k left), min_p (relative to the largest
    probability). Each keeps the larger logits; among equal ones top_k and top_p keep those of lower
    index. Sums are exact integers, so that the cut is the same on every machine.

    Args:
        logits: ``[N, V]`` float32, float16 or bfloat16, a dense last dimension, ``V <= 2**24``.
        temperature: one number or ``[N]``; 0 is greedy: the largest logit, lowest index on a tie.
        top_k: one number or ``[N]``, ``>= 0``; 0 or None is off.
        top_p: one number or ``[N]`` in ``(0, 1]``; 1 or None is off.
        min_p: one number or ``[N]`` in ``[0, 1]``; 0 or None is off.
        bitmask: int32 ``[N, ceil(V / 32)]``: token ``i`` is allowed if bit ``i % 32`` of word
            ``i // 32`` is set, as xgrammar packs it; others count as -inf. The ops that use the
            descriptor take the same bitmask.

    Returns:
        float32 ``[N, 9]``, columns as `DESCRIPTOR_COLUMNS`: token ``i`` with logit ``l`` is kept if
        ``l > pivot``, or ``l == pivot`` and ``i < tie_end``; its probability is then
        ``exp((l - max) / temperature) / z``. ``num_kept`` counts the kept tokens, ``log_z`` is the
        log of ``z``, ``log_z_all`` that without filters. A row with a NaN, a +inf, or nothing above
        -inf has no distribution: its ``argmax`` is -1 and nothing is kept.

    Raises:
        TypeError: for a wrong dtype. ValueError: for a wrong shape, device or parameter; parameters
            in a tensor on a GPU are not looked at, that would wait for the GPU.

    >>> desc = row_descriptor(torch.tensor([[1.0, 3.0, 2.0]]), temperature=1.0, top_k=2)
    >>> dict(zip(DESCRIPTOR_COLUMNS, desc[0].tolist()))["pivot"]
    2.0
    """
    op = "row_descriptor"
    _check_logits(op, logits)
    columns = RowFilters(temperature, top_k, top_p, min_p).columns(op, logits)
    return torch.ops.ttc_kernels.row_descriptor(logits, *columns, bitmask)


def sample_tokens(
    logits: torch.Tensor,
    desc: torch.Tensor,
    seeds: _PerRow,
    positions: _PerRow,
    bitmask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Draws one token per row: the kept token with the largest ``(l - max) / temperature + noise``.

    The Gumbel noise of a token is a function of (seed, position, token) alone, from Philox4x32-10
    in its domain for target tokens, by a formula that has the same bits on every machine: equal
    logits give equal tokens whatever the batch, the order of rows or the padding.

    Args:
        logits: ``[N, V]``, the logits that ``desc`` was made from.
        desc: float32 ``[N, 9]`` from `row_descriptor`.
        seeds: one number or int64 ``[N]``, the seed of each row's request.
        positions: one number or int64 ``[N]`` in ``[0, 2**56)``: the absolute position of the token
            to be drawn. No two draws of a request may share one.
        bitmask: the one that ``desc`` was made with.

    Returns:
        int32 ``[N]``; -1 for a row without a distribution.

    Raises:
        TypeError: for a wrong dtype. ValueError: for a wrong shape, device or position; a tensor on
            a GPU is not looked at, that would wait for the GPU.

    >>> logits = torch.tensor([[1.0, 3.0, 2.0]])
    >>> sample_tokens(logits, row_descriptor(logits, temperature=0.0), seeds=0, positions=7).item()
    1
    """
    op = "sample_tokens"
    _check_logits(op, logits)
    require_dtype(op, "desc", desc, (torch.float32,))
    return torch.ops.ttc_kernels.sample_tokens(
        logits,
        desc,
        _per_row(op, "seeds", seeds, torch.int64, logits),
        _per_row(op, "positions", positions, torch.int64, logits),
        bitmask,
    )


def sample_children(
    logits: torch.Tensor,
    desc: torch.Tensor,
    k: int,
    mode: str = "topk",
    *,
    seeds: _PerRow = 0,
    positions: _PerRow = 0,
    streams: _PerRow = 0,
    noise: str = "draft",
    bitmask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Chooses or draws the children of draft nodes, in the order in which they are to be verified.

    The distribution of ``desc`` is the one drawn from, so it is the one to give to `verify_tree`.

    Args:
        logits: ``[N, V]`` of the draft model. desc: float32 ``[N, 9]`` of them.
        k: children of each row, at most 256.
        mode: ``topk``, the likeliest, the lower index on a tie (to be verified as one-hot);
            ``iid``, independent draws, which may repeat; ``without_replacement``, the k largest of
            log-probability + Gumbel noise, in that order, which is the order of drawing (Kool et
            al., 1903.06059).
        seeds, positions: as for `sample_tokens`; a position should be the first of the pass, so
            that no draw that a rejection told about is made again.
        streams: one number or int32 ``[N]`` in ``[0, 2**24)``, different for rows of one request
            and position.
        noise: ``draft``, or with ``without_replacement`` also ``target``: the noise that
            `sample_tokens` uses at that position. Such children are guesses at the target's own
            draw, for `verify_sampled` alone; every other rule would be biased.
        bitmask: the one that ``desc`` was made with.

    Returns:
        tokens int32 ``[N, k]``, -1 where a row keeps no more tokens; logprobs float32 ``[N, k]``,
        each token's own log-probability, -inf for none; scores float32 ``[N, k]``, what the order
        is by.

    Raises:
        TypeError: for a wrong dtype. ValueError: for a wrong shape, device or value.

    >>> logits = torch.tensor([[1.0, 3.0, 2.0]])
    >>> sample_children(logits, row_descriptor(logits, 1.0), 2)[0].tolist()
    [[1, 2]]
    """
    op = "sample_children"
    _check_logits(op, logits)
    require_dtype(op, "desc", desc, (torch.float32,))
    if noise not in ("draft", "target") or (noise == "target" and mode != "without_replacement"):
        raise ValueError(
            f"{op}: noise must be 'draft', or 'target' with mode 'without_replacement', got "
            f"{noise!r} with {mode!r}"
        )
    return torch.ops.ttc_kernels.sample_children(
        logits, desc, k, mode, noise == "target",
        _per_row(op, "seeds", seeds, torch.int64, logits),
        _per_row(op, "positions", positions, torch.int64, logits),
        _per_row(op, "streams", streams, torch.int32, logits),
        bitmask,
    )  # fmt: skip


def token_logprobs(
    logits: torch.Tensor,
    desc: torch.Tensor,
    rows: torch.Tensor,
    tokens: torch.Tensor,
    *,
    raw: bool = True,
    bitmask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of tokens: in the filtered distribution, and in the logits as they are.

    Args:
        logits: ``[N, V]``. desc: float32 ``[N, 9]`` of them.
        rows: int32 ``[M]``, the row of each token, -1 for none.
        tokens: int32 ``[M]``, -1 for none.
        raw: whether the second is wanted; it reads each row once.
        bitmask: the one that ``desc`` was made with; raw log-probabilities leave it aside.

    Returns:
        ``(processed, raw)``, float32 ``[M]`` each, the latter empty if not wanted; -inf for a token
        that the filters drop, 0 where there is no row or token.

    Raises:
        TypeError: for a wrong dtype. ValueError: for a wrong shape or value.

    >>> logits = torch.zeros(1, 4)
    >>> one = torch.tensor([0]).int()
    >>> processed, raw = token_logprobs(logits, row_descriptor(logits, 1.0, top_k=2), one, one)
    >>> round(processed.exp().item(), 6), round(raw.exp().item(), 6)
    (0.5, 0.25)
    """
    op = "token_logprobs"
    _check_logits(op, logits)
    require_dtype(op, "desc", desc, (torch.float32,))
    require_dtype(op, "rows", rows, (torch.int32,))
    require_dtype(op, "tokens", tokens, (torch.int32,))
    return torch.ops.ttc_kernels.token_logprobs(logits, desc, rows, tokens, raw, bitmask)


def _check_logits(op: str, logits: torch.Tensor) -> None:
    require_dtype(op, "logits", logits)
    if logits.dim() != 2:
        raise ValueError(f"{op}: logits must be [N, V], got {list(logits.shape)}")


# Where each parameter may lie; the op says it again for the CPU.
_RANGES: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "temperature": (
        lambda t: (t == 0) | ((t >= torch.finfo(torch.float32).tiny) & (t < float("inf"))),
        "0 (greedy) or positive and finite",
    ),
    "top_k": (lambda k: k >= 0, ">= 0 (0 = off)"),
    "top_p": (lambda p: (p > 0) & (p <= 1), "in (0, 1] (1 = off)"),
    "min_p": (lambda p: (p >= 0) & (p <= 1), "in [0, 1] (0 = off)"),
    "positions": (lambda p: (p >= 0) & (p < 2**56), "in [0, 2^56)"),
}


def _may_keep(logits: torch.Tensor) -> bool:
    """Whether what is made for these logits can serve later calls; a compiler's cannot."""
    return logits.is_cpu and type(logits) is torch.Tensor and not torch.compiler.is_compiling()


_FILLED: dict[tuple, torch.Tensor] = {}


def _fill(value: float, n: int, dtype: torch.dtype) -> torch.Tensor:
    """`n` times one number on the CPU."""
    return torch.full((n,), value, dtype=dtype, device="cpu")


def _filled(value: float, n: int, dtype: torch.dtype) -> torch.Tensor:
    """The same, to be read only; the next call gets the same tensor."""
    key = value, n, dtype
    found = _FILLED.get(key)
    if found is None:
        if len(_FILLED) == 64:
            _FILLED.clear()
        found = _FILLED[key] = _fill(value, n, dtype)
    return found


def _per_row(
    op: str,
    name: str,
    value: _PerRow,
    dtype: torch.dtype,
    logits: torch.Tensor,
    n: int | None = None,
) -> torch.Tensor:
    """One number, or one for each of `n` (default: rows), as a dense tensor of the op's dtype."""
    n = logits.shape[0] if n is None else n
    if isinstance(value, torch.Tensor):  # as an engine has them, often with nothing to be done
        there = value.dtype == dtype and value.device == logits.device
        if there and value.shape == (n,) and value.is_contiguous():
            return value
    # Of a plain number one tensor is made, without others on the way; the op checks its range.
    if isinstance(value, (int, float)) and logits.is_cpu:
        fits = not isinstance(value, bool) and abs(value) < 2**31
        if fits and (dtype.is_floating_point or isinstance(value, int)):
            make = _filled if _may_keep(logits) else _fill
            return make(value, n, dtype)
    try:
        given = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = ValueError if isinstance(value, int) else TypeError  # an int beyond int64
        raise kind(f"{op}: {name} must be {dtype}, got {value!r}") from error
    if given.dtype == torch.bool or (given.dtype.is_floating_point and not dtype.is_floating_point):
        raise TypeError(f"{op}: {name} must be {dtype}, got {given.dtype}")
    if given.dim() > 1 or given.numel() not in (1, n):
        raise ValueError(f"{op}: {name} must be one number or [{n}], got {list(given.shape)}")
    # Clamped, or a large top_k from a config would wrap around to a negative one.
    if dtype == torch.int32:
        given = given.clamp(-1, 2**31 - 1)
    if name in _RANGES and given.device.type == "cpu" and logits.device.type != "cpu":
        in_range, expected = _RANGES[name]
        bad = (~in_range(given.reshape(-1).to(dtype))).nonzero()
        if len(bad):
            at = int(bad[0])
            raise ValueError(f"{op}: {name}[{at}] must be {expected}, got {given.reshape(-1)[at]}")
    if given.numel() == 1 and given.device.type == "cpu":  # a fill needs no copy to a GPU
        return torch.full((n,), given.item(), dtype=dtype, device=logits.device)
    given = given.to(device=logits.device, dtype=dtype, non_blocking=True)
    return given.expand(n).contiguous()


@torch.library.register_fake("ttc_kernels::row_descriptor")
def _row_descriptor_fake(logits, temperature, top_k, top_p, min_p, bitmask=None):
    return logits.new_empty((logits.shape[0], len(DESCRIPTOR_COLUMNS)), dtype=torch.float32)


@torch.library.register_fake("ttc_kernels::sample_tokens")
def _sample_tokens_fake(logits, desc, seeds, positions, bitmask=None):
    return logits.new_empty((logits.shape[0],), dtype=torch.int32)


@torch.library.register_fake("ttc_kernels::sample_children")
def _sample_children_fake(
    logits, desc, k, mode, target_noise, seeds, positions, streams, bitmask=None
):
    shape = (logits.shape[0], k)
    tokens = logits.new_empty(shape, dtype=torch.int32)
    return tokens, *(logits.new_empty(shape, dtype=torch.float32) for _ in range(2))


@torch.library.register_fake("ttc_kernels::token_logprobs")
def _token_logprobs_fake(logits, desc, rows, tokens, raw, bitmask=None):
    sizes = (rows.shape[0], rows.shape[0] if raw else 0)
    return tuple(logits.new_empty((size,), dtype=torch.float32) for size in sizes)
