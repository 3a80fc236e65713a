"""exp, log and Gumbel noise from single fp32 operations: csrc/verify/fp32_math.h.

Each operation is IEEE and in the order of the C++ code, so the bits are those of the CPU. Kernels
that use these functions must be launched with ``enable_fp_fusion=False``: with more fused than the
multiply-adds written here, they would round differently.
"""

from __future__ import annotations

import triton
import triton.language as tl

NO_FUSION = {"enable_fp_fusion": False}
"""Launch options of every kernel that uses this module."""

NOISE_BLOCK = tl.constexpr(256)


@triton.jit
def _log_of_parts(k, f):
    z = f * f
    p = f * -0.07634429633617401 + 0.12761549651622772
    p = p * f + -0.131601944565773
    p = p * f + 0.14201761782169342
    p = p * f + -0.16623356938362122
    p = p * f + 0.20001226663589478
    p = p * f + -0.250008225440979
    p = p * f + 0.3333333134651184
    y = p * f * z
    y = y + k * -2.12194440e-4
    y = y - z * 0.5
    return (f + y) + k * 0.693359375


@triton.jit
def _split(x):
    """x = 2**k * m with m in [sqrt(1/2), sqrt(2)): k, m."""
    shifted = x.to(tl.int32, bitcast=True) + (0x3F800000 - 0x3F3504F3)
    k = ((shifted >> 23) - 127).to(tl.float32)
    m = ((shifted & 0x007FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True)
    return k, m


@triton.jit
def log_fp32(x):
    """log(x) for normal x > 0."""
    k, m = _split(x)
    return _log_of_parts(k, m - 1.0)


@triton.jit
def exp_fp32(x):
    """exp(x) for x <= 0; exp(-80) below -80 and for NaN."""
    x = tl.where(x > -80.0, x, -80.0)
    k = (x * 1.44269504 + 12582912.0) - 12582912.0
    r = (x - k * 0.693359375) - k * -2.12194440e-4
    p = r * 0.001381446490995586 + 0.008368780836462975
    p = p * r + 0.04166839271783829
    p = p * r + 0.1666651964187622
    p = p * r + 0.4999999403953552
    y = (p * (r * r) + r) + 1.0
    return y * ((k.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def exp2_fp32(y):
    """2**y for y <= 0; 2**-120 below -120 and for NaN."""
    y = tl.where(y > -120.0, y, -120.0)
    shifted = y + 12582912.0
    r = y - (shifted - 12582912.0)
    p = tl.fma(r, 0.001326472731307149, 0.009671512991189957)
    p = tl.fma(p, r, 0.05550733581185341)
    p = tl.fma(p, r, 0.24022242426872253)
    p = tl.fma(p, r, 0.6931470036506653)
    p = tl.fma(p, r, 1.0)
    bits = p.to(tl.int32, bitcast=True) + (shifted.to(tl.int32, bitcast=True) << 23)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def to_fixed(w):
    """int64: w >= 0 in units of 2**-40, to the nearest, ties to even."""
    w = w * 1099511627776.0
    # Adding and subtracting 2^23 rounds what is below it; from there on floats are integers.
    return tl.where(w < 8388608.0, (w + 8388608.0) - 8388608.0, w).to(tl.int64)


@triton.jit
def from_fixed(mass):
    return mass.to(tl.float32) * 9.094947017729282e-13


@triton.jit
def fixed_weight(logit, max_logit, inv_temperature):
    """exp((logit - max) / T) as `to_fixed`."""
    return to_fixed(exp2_fp32((logit - max_logit) * (inv_temperature * 1.44269504)))


@triton.jit
def _exponential(random):
    """An exponential variable from uint32 random bits."""
    w = random.to(tl.float32) + 0.5
    w = tl.where(w < 4294967040.0, w, 4294967040.0) * 2.3283064365386963e-10
    k, m = _split(1.0 - w)
    return -_log_of_parts(k, tl.where(k == 0.0, -w, m - 1.0))


@triton.jit
def noise_block(word0, word1):
    """The earliest clock of a block of tokens and whose it is, from the block's random words."""
    return _exponential(word0) * (1.0 / NOISE_BLOCK), (word1 >> 24).to(tl.int32)


@triton.jit
def noise_bound(least):
    """No less than the noise of any token of the block."""
    return -log_fp32(least) + 1e-3


@triton.jit
def token_noise(least, place, index, random):
    """Standard Gumbel noise of tokens: their block's two numbers, their index and random word."""
    later = least + _exponential(random)
    return -log_fp32(tl.where(index % NOISE_BLOCK == place, least, later))


@triton.jit
def is_kept(logit, index, pivot, tie_end):
    """Whether a descriptor's filters keep a token."""
    return (logit > pivot) | ((logit == pivot) & (index < tie_end))
