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

// The nearest float8_e4m3fn, ties to even, saturated at 448; NaN stays NaN. Numbers are compared by
// their bits, so that compilers turn loops over this into vectors.
TTC_HOST_DEVICE uint8_t float_to_e4m3(float x) {
  constexpr uint32_t kInfinity = 0x7f800000, kLargest = 0x43e00000;  // 448
  const uint32_t size = float_bits(x) & 0x7fffffff, sign = (float_bits(x) >> 24) & 0x80;
  const uint32_t saturated = size > kLargest ? kLargest : size;
  int exponent = static_cast<int>(saturated >> 23) - 127;
  exponent = exponent < -6 ? -6 : exponent;
  // Multiples of the step 2^(exponent - 3); adding 1.5 * 2^23 rounds to an integer.
  const float steps = bits_float(saturated) * bits_float(static_cast<uint32_t>(130 - exponent) << 23);
  const uint32_t rounded = float_bits(steps + 12582912.0f) - float_bits(12582912.0f);
  const uint32_t code = (static_cast<uint32_t>(exponent + 6) << 3) + rounded;  // a carry moves on
  return static_cast<uint8_t>(code | (size > kInfinity ? 1 : 0) | sign);  // of 448: 0x7e, of NaN: 0x7f
}

}  // namespace ttc
