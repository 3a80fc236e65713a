// e4m3 on the host: 1 sign, 4 exponent, 3 mantissa bits, bias 7, no infinity, NaN = 0x7f.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

using __nv_fp8_storage_t = uint8_t;
enum __nv_saturation_t { __NV_NOSAT, __NV_SATFINITE };
enum __nv_fp8_interpretation_t { __NV_E4M3, __NV_E5M2 };

namespace emu {

inline float e4m3_to_float(uint8_t v) {
  const int exponent = v >> 3 & 15, mantissa = v & 7;
  const float sign = v & 0x80 ? -1.0f : 1.0f;
  if ((v & 0x7f) == 0x7f) return std::bit_cast<float>(0x7fffffffu);
  return sign * (exponent ? std::ldexp(8.0f + static_cast<float>(mantissa), exponent - 10)
                          : std::ldexp(static_cast<float>(mantissa), -9));
}

// Rounds to nearest even; beyond 448 (infinity too) the result is 448, as with SATFINITE.
inline uint8_t float_to_e4m3(float v) {
  const uint8_t sign = std::signbit(v) ? 0x80 : 0;
  const float magnitude = std::fabs(v);
  if (v != v) return sign | 0x7f;
  if (magnitude >= 448.0f) return sign | 0x7e;
  const int exponent = magnitude < 0x1p-6f ? -6 : std::ilogb(magnitude);
  const float steps = std::nearbyint(std::ldexp(magnitude, 3 - exponent));  // in units of 2^(exponent - 3)
  if (exponent == -6 && steps < 8.0f) return sign | static_cast<uint8_t>(steps);
  // 16 steps carry into the next exponent by themselves: (exponent + 7) * 8 + 16 - 8.
  return sign | static_cast<uint8_t>((exponent + 7) * 8 + static_cast<int>(steps) - 8);
}

}  // namespace emu

struct __nv_fp8_e4m3 {
  __nv_fp8_storage_t __x = 0;
  __nv_fp8_e4m3() = default;
  explicit __nv_fp8_e4m3(float v) : __x(emu::float_to_e4m3(v)) {}
  explicit operator float() const { return emu::e4m3_to_float(__x); }
};

inline __nv_fp8_storage_t __nv_cvt_float_to_fp8(float v, __nv_saturation_t, __nv_fp8_interpretation_t) {
  return emu::float_to_e4m3(v);
}
