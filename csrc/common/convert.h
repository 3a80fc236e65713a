// How kernels that compute in fp32 read and write the float types of tensors.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/dtype.h"
#include "common/isa.h"
#include "common/simd.h"

namespace ttc {

TTC_ALWAYS_INLINE float bfloat_to_float(uint16_t value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

TTC_ALWAYS_INLINE uint16_t float_to_bfloat(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return static_cast<uint16_t>(value != value ? 0x7fc0 : rounded);
}

namespace detail {

TTC_ALWAYS_INLINE void widen_bfloat(const uint16_t* src, int64_t n, float* dst) {
  for (int64_t i = 0; i < n; ++i) dst[i] = bfloat_to_float(src[i]);
}

inline void widen_half_portable(const uint16_t* src, int64_t n, float* dst) {
  for (int64_t i = 0; i < n; ++i) dst[i] = Portable::half_to_float(src[i]);
}

#if TTC_X86
TTC_TARGET_AVX2 inline void widen_bfloat_avx2(const uint16_t* src, int64_t n, float* dst) {
  widen_bfloat(src, n, dst);
}

TTC_TARGET_AVX512 inline void widen_bfloat_avx512(const uint16_t* src, int64_t n, float* dst) {
  widen_bfloat(src, n, dst);
}

TTC_TARGET_AVX2 inline void widen_half_avx2(const uint16_t* src, int64_t n, float* dst) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(src + i));
    _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(half));
  }
  widen_half_portable(src + i, n - i, dst + i);
}
#endif

}  // namespace detail

// dst[i] = src[i] as fp32, exactly.
inline void widen(Dtype dtype, const void* src, int64_t n, float* dst) {
  const auto* halves = static_cast<const uint16_t*>(src);
  if (dtype == Dtype::kFloat32) {
    std::memcpy(dst, src, n * sizeof(float));
    return;
  }
#if TTC_X86
  if (cpu_isa() != Isa::kPortable) {
    if (dtype == Dtype::kBFloat16 && cpu_isa() == Isa::kAvx512) {
      detail::widen_bfloat_avx512(halves, n, dst);
    } else if (dtype == Dtype::kBFloat16) {
      detail::widen_bfloat_avx2(halves, n, dst);
    } else {
      detail::widen_half_avx2(halves, n, dst);
    }
    return;
  }
#endif
  if (dtype == Dtype::kBFloat16) {
    detail::widen_bfloat(halves, n, dst);
  } else {
    detail::widen_half_portable(halves, n, dst);
  }
}

// dst[i] = src[i], rounded to nearest, ties to even.
inline void narrow(Dtype dtype, const float* src, int64_t n, void* dst) {
  auto* halves = static_cast<uint16_t*>(dst);
  if (dtype == Dtype::kFloat32) {
    std::memcpy(dst, src, n * sizeof(float));
  } else if (dtype == Dtype::kBFloat16) {
    for (int64_t i = 0; i < n; ++i) halves[i] = float_to_bfloat(src[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) halves[i] = Portable::float_to_half(src[i]);
  }
}

}  // namespace ttc
