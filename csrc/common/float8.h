// Rounding to float8_e4m3fn, the same bits on every backend: ttc_kernels/triton/kv_cache.py has it too.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define TTC_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define TTC_HOST_DEVICE inline
#endif

namespace ttc {

TTC_HOST_DEVICE uint32_t float_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

TTC_HOST_DEVICE float bits_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

// The nearest float8_e4m3fn, ties to even, saturated at 448; NaN stays NaN.
TTC_HOST_DEVICE uint8_t float_to_e4m3(float x) {
  const uint32_t bits = float_bits(x), sign = (bits >> 24) & 0x80;
  if (x != x) return static_cast<uint8_t>(sign | 0x7f);
  const float size = bits_float(bits & 0x7fffffff) > 448.0f ? 448.0f : bits_float(bits & 0x7fffffff);
  int exponent = static_cast<int>(float_bits(size) >> 23) - 127;
  exponent = exponent < -6 ? -6 : exponent;
  // Multiples of the step 2^(exponent - 3); adding 1.5 * 2^23 rounds to an integer.
  const float steps = size * bits_float(static_cast<uint32_t>(130 - exponent) << 23);
  const uint32_t rounded = float_bits(steps + 12582912.0f) - float_bits(12582912.0f);
  return static_cast<uint8_t>(sign | ((static_cast<uint32_t>(exponent + 6) << 3) + rounded));  // a carry moves on
}

}  // namespace ttc
