// The words of CUDA C++ that are no C++: qualifiers, built-in variables, vector types, and the
// intrinsics that act on one thread alone.
#pragma once

#include <algorithm>
#include <bit>
#include <cassert>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__ static  // one copy: right while blocks run one at a time
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

#define EMU_VECTOR2(T, NAME, ALIGN) \
  struct alignas(ALIGN) NAME {      \
    T x, y;                         \
  };                                \
  inline NAME make_##NAME(T x, T y) { return {x, y}; }
#define EMU_VECTOR4(T, NAME, ALIGN) \
  struct alignas(ALIGN) NAME {      \
    T x, y, z, w;                   \
  };                                \
  inline NAME make_##NAME(T x, T y, T z, T w) { return {x, y, z, w}; }
EMU_VECTOR2(float, float2, 8)
EMU_VECTOR2(int, int2, 8)
EMU_VECTOR2(unsigned, uint2, 8)
EMU_VECTOR2(unsigned short, ushort2, 4)
EMU_VECTOR2(double, double2, 16)
EMU_VECTOR2(long long, longlong2, 16)
EMU_VECTOR4(float, float4, 16)
EMU_VECTOR4(int, int4, 16)
EMU_VECTOR4(unsigned, uint4, 16)
EMU_VECTOR4(unsigned short, ushort4, 8)
EMU_VECTOR4(unsigned char, uchar4, 4)
#undef EMU_VECTOR2
#undef EMU_VECTOR4

using std::max;
using std::min;

template <class T>
inline T __ldg(const T* address) {
  return *address;
}

inline uint32_t __float_as_uint(float v) { return std::bit_cast<uint32_t>(v); }
inline int32_t __float_as_int(float v) { return std::bit_cast<int32_t>(v); }
inline float __uint_as_float(uint32_t v) { return std::bit_cast<float>(v); }
inline float __int_as_float(int32_t v) { return std::bit_cast<float>(v); }

inline int __popc(uint32_t v) { return std::popcount(v); }
inline int __popcll(uint64_t v) { return std::popcount(v); }
inline int __clz(uint32_t v) { return std::countl_zero(v); }
inline int __clzll(uint64_t v) { return std::countl_zero(v); }
inline int __ffs(uint32_t v) { return v ? std::countr_zero(v) + 1 : 0; }
inline int __ffsll(uint64_t v) { return v ? std::countr_zero(v) + 1 : 0; }
inline uint32_t __brev(uint32_t v) {
  uint32_t r = 0;
  for (int i = 0; i < 32; ++i) r |= (v >> i & 1) << (31 - i);
  return r;
}
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return static_cast<uint32_t>(static_cast<uint64_t>(a) * b >> 32); }
inline uint32_t __funnelshift_l(uint32_t low, uint32_t high, uint32_t shift) {
  return static_cast<uint32_t>(((static_cast<uint64_t>(high) << 32 | low) << (shift & 31)) >> 32);
}
inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t shift) {
  return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}
// Byte i of the result is byte selector[4i + 2 : 4i] of {b, a}; bit 4i + 3 spreads its sign instead.
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t r = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t pick = selector >> (4 * i);
    uint32_t byte = static_cast<uint32_t>(bytes >> (8 * (pick & 7))) & 0xff;
    if (pick & 8) byte = byte & 0x80 ? 0xff : 0;
    r |= byte << (8 * i);
  }
  return r;
}

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fmaf(a, b, c); }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __expf(float a) { return std::exp(a); }
inline float __logf(float a) { return std::log(a); }
inline float __log2f(float a) { return std::log2(a); }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float a) { return 1.0f / std::sqrt(a); }
inline int __float2int_rn(float v) { return static_cast<int>(std::nearbyint(v)); }
inline int __float2int_rd(float v) { return static_cast<int>(std::floor(v)); }
