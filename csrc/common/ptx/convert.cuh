// Packing of two 16-bit numbers, fp8 (e4m3) to 16 bits, 2^x and tanh.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace ttc::ptx {

// Rounds to nearest even; low goes to bits 0..15.
__device__ __forceinline__ uint32_t pack_half2(float low, float high) {
  uint32_t v;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
  return v;
}
__device__ __forceinline__ uint32_t pack_bf16x2(float low, float high) {
  uint32_t v;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
  return v;
}

// Two e4m3 numbers to two halves, exact.
__device__ __forceinline__ uint32_t fp8x2_e4m3_to_half2(uint16_t pair) {
  uint32_t v;
#if __CUDA_ARCH__ >= 890
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(v) : "h"(pair));
#else
  // Exponent and mantissa moved in place give the value times 2^(7 - 15); NaN (all ones) is put back.
  const uint32_t spread = (pair & 0xffu) | (static_cast<uint32_t>(pair) & 0xff00u) << 8;
  const uint32_t shifted = (spread & 0x800080u) << 8 | (spread & 0x7f007fu) << 7;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(v) : "r"(shifted), "r"(0x5c005c00u));
  const uint32_t is_nan = (((spread & 0x7f007fu) + 0x010001u) & 0x800080u) >> 7;
  v |= is_nan * 0x7fffu;
#endif
  return v;
}

// Two e4m3 numbers to two bf16, exact.
__device__ __forceinline__ uint32_t fp8x2_e4m3_to_bf16x2(uint16_t pair) {
  // As above with bias 127: times 2^120. fma with -0 is the product; sm_80 has no mul for bf16.
  const uint32_t spread = (pair & 0xffu) | (static_cast<uint32_t>(pair) & 0xff00u) << 8;
  const uint32_t shifted = (spread & 0x800080u) << 8 | (spread & 0x7f007fu) << 4;
  uint32_t v;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(v) : "r"(shifted), "r"(0x7b807b80u), "r"(0x80008000u));
  const uint32_t is_nan = (((spread & 0x7f007fu) + 0x010001u) & 0x800080u) >> 7;
  return v | is_nan * 0x7fffu;
}

// 2^x to about 2 units in the last place; results below 2^-126 are zero.
__device__ __forceinline__ float ex2_approx(float x) {
  float v;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(v) : "f"(x));
  return v;
}

}  // namespace ttc::ptx

#include "convert_common.cuh"
