"""Row descriptors by sorting, and the sampler with its random numbers, in numpy."""

from __future__ import annotations

import numpy as np
import torch

TARGET, ACCEPT, RESIDUAL, DRAFT = 1, 2, 3, 4
"""Domains of the random numbers: the top byte of the last counter word."""


def philox4x32(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Philox4x32-10 (Salmon et al., 2011).

    Args:
        counter: uint32 ``[..., 4]``. key: two 32-bit words.

    Returns:
        uint32 ``[..., 4]``.

    >>> [hex(word) for word in philox4x32(np.zeros(4, np.uint32), (0, 0))]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint64) for i in range(4))
    k0, k1 = key
    low = np.uint64(0xFFFFFFFF)
    shift = np.uint64(32)
    for _ in range(10):
        product0 = np.uint64(0xD2511F53) * c0
        product1 = np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (
            (product1 >> shift) ^ c1 ^ np.uint64(k0),
            product1 & low,
            (product0 >> shift) ^ c3 ^ np.uint64(k1),
            product0 & low,
        )
        k0 = (k0 + 0x9E3779B9) & 0xFFFFFFFF
        k1 = (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def random_words(seed: int, position: int, domain: int, sub_index: int, n: int) -> np.ndarray:
    """uint32 ``[n]``: the random word of each vocabulary index at one place of one request.

    Word ``i % 4`` of the counter ``(i // 4, sub_index, position's low 32 bits, domain << 24 |
    position's high bits)`` under the key ``seed`` belongs to index ``i``.

    >>> random_words(seed=1, position=2, domain=TARGET, sub_index=0, n=3).shape
    (3,)
    """
    blocks = -(-n // 4)
    counter = np.empty((blocks, 4), np.uint32)
    counter[:, 0] = np.arange(blocks)
    counter[:, 1] = sub_index
    counter[:, 2] = position & 0xFFFFFFFF
    counter[:, 3] = domain << 24 | position >> 32
    return philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)).reshape(-1)[:n]


NOISE_BLOCK = 256
"""Tokens whose noise is bounded by one pair of random words."""

_BLOCK_COUNTER = 1 << 31


def token_noise(seed: int, position: int, domain: int, sub_index: int, n: int) -> np.ndarray:
    """Standard Gumbel noise of each vocabulary index at one place of one request, fp32 ``[n]``.

    The noise is -log of independent exponential clocks. Of the 256 clocks of a block the first
    rings at Exp(1) / 256, in a uniform place; clocks have no memory, so the others ring at that
    time plus Exp(1) each. The block's two numbers are words 0 and 1 of the counter ``2**31 +
    block``; a token's is its own of `random_words`.

    >>> token_noise(seed=1, position=2, domain=TARGET, sub_index=0, n=3).dtype
    dtype('float32')
    """
    blocks = -(-n // NOISE_BLOCK)
    counter = np.empty((blocks, 4), np.uint32)
    counter[:, 0] = _BLOCK_COUNTER + np.arange(blocks)
    counter[:, 1] = sub_index
    counter[:, 2] = position & 0xFFFFFFFF
    counter[:, 3] = domain << 24 | position >> 32
    first = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF))
    return noise_of_words(random_words(seed, position, domain, sub_index, n), first)


def noise_of_words(random: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The noise made of random words, with the very bits that the kernels compute.

    Every operation is one fp32 addition or multiplication, in the order of the kernels.

    Args:
        random: uint32 ``[..., n]``, a word for each token. first: uint32 ``[..., ceil(n / 256),
            >= 2]``, of each block.

    Returns:
        float32 ``[..., n]``.

    >>> noise_of_words(np.zeros(1, np.uint32), np.zeros((1, 2), np.uint32)) < 28.5
    array([ True])
    """
    index = np.arange(random.shape[-1])
    least = (_exponential(first[..., 0]) * np.float32(1 / NOISE_BLOCK))[..., index // NOISE_BLOCK]
    place = (first[..., 1] >> np.uint32(24))[..., index // NOISE_BLOCK]
    later = least + _exponential(random)
    k, m = _split(np.where(index % NOISE_BLOCK == place, least, later))
    return -_log_of_parts(k, m - np.float32(1))


def _exponential(random: np.ndarray) -> np.ndarray:
    """Exponential variables of random words, fp32."""
    f32 = np.float32
    w = np.minimum(random.astype(f32) + f32(0.5), f32(4294967040.0)) * f32(2.0**-32)
    k, m = _split(f32(1) - w)
    return -_log_of_parts(k, np.where(k == 0, -w, m - f32(1)))


def _split(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x = 2**k * m with m in [sqrt(1/2), sqrt(2))."""
    shifted = x.view(np.uint32) + np.uint32(0x3F800000 - 0x3F3504F3)
    k = ((shifted >> np.uint32(23)).astype(np.int32) - 127).astype(np.float32)
    m = ((shifted & np.uint32(0x007FFFFF)) + np.uint32(0x3F3504F3)).view(np.float32)
    return k, m


_LOG_COEFFICIENTS = (
    -0.07634429633617401, 0.12761549651622772, -0.131601944565773, 0.14201761782169342,
    -0.16623356938362122, 0.20001226663589478, -0.250008225440979, 0.3333333134651184,
)  # fmt: skip


def _log_of_parts(k: np.ndarray, f: np.ndarray) -> np.ndarray:
    """log(2**k * (1 + f)), fp32."""
    f32 = np.float32
    z = f * f
    p = np.full_like(f, _LOG_COEFFICIENTS[0])
    for coefficient in _LOG_COEFFICIENTS[1:]:
        p = p * f + f32(coefficient)
    y = p * f * z
    y = y + k * f32(-2.12194440e-4)
    y = y - f32(0.5) * z
    return (f + y) + k * f32(0.693359375)


def row_descriptor(
    logits: torch.Tensor,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> torch.Tensor:
    """As `ttc_kernels.row_descriptor` with one set of parameters for all rows, by sorting, in fp64.

    >>> row_descriptor(torch.tensor([[1.0, 3.0, 2.0]]), 1.0, top_k=2)[0, 1].item()
    2.0
    """
    rows = [_describe(row, temperature, top_k, top_p, min_p) for row in logits.double()]
    return torch.stack(rows) if rows else torch.empty(0, 9, dtype=torch.float64)


def _describe(
    row: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float
) -> torch.Tensor:
    inf, nan = float("inf"), float("nan")
    max_logit = row.max().item()
    if not -inf < max_logit < inf:
        columns = [temperature, inf, 0, nan, -1, nan, 0, nan, 0]
        return torch.tensor(columns, dtype=torch.float64)
    argmax = int((row == max_logit).nonzero()[0])
    if temperature == 0:
        columns = [0, max_logit, argmax + 1, 0, argmax, max_logit, 1, 0, 1]
        return torch.tensor(columns, dtype=torch.float64)

    weights = torch.exp((row - max_logit) / temperature)
    order = torch.argsort(row, descending=True, stable=True)
    mass = weights[order].cumsum(0)
    num_kept = int((row > -inf).sum())
    if top_k > 0:
        num_kept = min(num_kept, top_k)
    if top_p < 1:
        share = mass / mass[num_kept - 1]
        num_kept = min(num_kept, int((share < top_p).sum()) + 1)
    if min_p > 0:
        num_kept = min(num_kept, int((weights >= min_p).sum()))
    last = int(order[num_kept - 1])
    log_z, log_z_all = mass[num_kept - 1].log().item(), mass[-1].log().item()
    columns = [temperature, row[last].item(), last + 1, log_z, argmax, max_logit, num_kept]
    columns += [log_z_all, mass[num_kept - 1].item()]
    return torch.tensor(columns, dtype=torch.float64)


def sample_tokens(
    logits: torch.Tensor, desc: torch.Tensor, seeds: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """As `ttc_kernels.sample_tokens`, bit for bit: scores and noise are fp32 here as well.

    >>> logits = torch.zeros(1, 4)
    >>> desc, seeds = row_descriptor(logits, 1.0), torch.tensor([0])
    >>> sample_tokens(logits, desc, seeds, positions=torch.tensor([7])).item() in range(4)
    True
    """
    tokens = []
    for row, columns, seed, position in zip(
        logits.float().numpy(), desc.numpy(), seeds.tolist(), positions.tolist(), strict=True
    ):
        temperature, pivot, tie_end, _, argmax, max_logit = columns[:6].astype(np.float32)
        if argmax < 0 or temperature == 0:
            tokens.append(int(argmax))
            continue
        kept = (row > pivot) | ((row == pivot) & (np.arange(len(row)) < tie_end))
        noise = token_noise(seed, position, TARGET, 0, len(row))
        with np.errstate(invalid="ignore"):
            scores = (row - max_logit) * (np.float32(1) / temperature) + noise
        tokens.append(int(np.argmax(np.where(kept, scores, -np.inf))))
    return torch.tensor(tokens, dtype=torch.int32)
