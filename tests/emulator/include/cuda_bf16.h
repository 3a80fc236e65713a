// __nv_bfloat16 on the host: stored as bits, rounded to nearest even, NaN kept.
#pragma once

#include <bit>
#include <cstdint>

#include "cuda_words.h"

struct alignas(2) __nv_bfloat16 {
  uint16_t bits = 0;
  __nv_bfloat16() = default;
  explicit __nv_bfloat16(float v) { *this = from_float(v); }
  explicit operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
  static __nv_bfloat16 from_float(float v) {
    const uint32_t u = std::bit_cast<uint32_t>(v);
    __nv_bfloat16 b;
    b.bits = v != v ? 0x7fff : static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16);
    return b;
  }
};

struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

inline __nv_bfloat16 __float2bfloat16_rn(float v) { return __nv_bfloat16::from_float(v); }
inline __nv_bfloat16 __float2bfloat16(float v) { return __nv_bfloat16::from_float(v); }
inline float __bfloat162float(__nv_bfloat16 v) { return static_cast<float>(v); }
inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 v) { return v.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(uint16_t bits) {
  __nv_bfloat16 b;
  b.bits = bits;
  return b;
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {__bfloat162float(v.x), __bfloat162float(v.y)}; }
