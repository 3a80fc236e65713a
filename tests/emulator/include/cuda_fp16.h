// __half on the host: stored as bits, converted through float with one rounding.
#pragma once

#include <cstdint>
#include <cstring>

#include "cuda_words.h"

struct alignas(2) __half {
  uint16_t bits = 0;
  __half() = default;
  explicit __half(float v) { *this = from_float(v); }
  explicit operator float() const {
    _Float16 v;
    std::memcpy(&v, &bits, 2);
    return static_cast<float>(v);
  }
  static __half from_float(float v) {
    const _Float16 rounded = static_cast<_Float16>(v);
    __half h;
    std::memcpy(&h.bits, &rounded, 2);
    return h;
  }
};
using half = __half;

struct alignas(4) __half2 {
  __half x, y;
};
using half2 = __half2;

inline __half __float2half_rn(float v) { return __half::from_float(v); }
inline __half __float2half(float v) { return __half::from_float(v); }
inline float __half2float(__half v) { return static_cast<float>(v); }
inline uint16_t __half_as_ushort(__half v) { return v.bits; }
inline __half __ushort_as_half(uint16_t bits) {
  __half h;
  h.bits = bits;
  return h;
}
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline float2 __half22float2(__half2 v) { return {__half2float(v.x), __half2float(v.y)}; }
inline float __low2float(__half2 v) { return __half2float(v.x); }
inline float __high2float(__half2 v) { return __half2float(v.y); }
