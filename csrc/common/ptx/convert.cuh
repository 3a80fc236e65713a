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

// Bytes 0 and 2, two e4m3 numbers, to two halves, exact, for GPUs without the instruction. Bytes 1 and 3
// are not looked at.
__device__ __forceinline__ uint32_t e4m3_bytes_to_half2(uint32_t bytes) {
  // Exponent and mantissa moved in place give the value times 2^(7 - 15); NaN (all ones) is put back.
  const uint32_t shifted = (bytes & 0x800080u) << 8 | (bytes & 0x7f007fu) << 7;
  uint32_t v;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(v) : "r"(shifted), "r"(0x5c005c00u));
  const uint32_t is_nan = (((bytes & 0x7f007fu) + 0x010001u) & 0x800080u) >> 7;
  return v | is_nan * 0x7fffu;
}

// The same to two bf16.
__device__ __forceinline__ uint32_t e4m3_bytes_to_bf16x2(uint32_t bytes) {
  // As above with bias 127: times 2^120. fma with -0 is the product; sm_80 has no mul for bf16.
  const uint32_t shifted = (bytes & 0x800080u) << 8 | (bytes & 0x7f007fu) << 4;
  uint32_t v;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(v) : "r"(shifted), "r"(0x7b807b80u), "r"(0x80008000u));
  const uint32_t is_nan = (((bytes & 0x7f007fu) + 0x010001u) & 0x800080u) >> 7;
  return v | is_nan * 0x7fffu;
}

// Two e4m3 numbers side by side to two halves, exact.
__device__ __forceinline__ uint32_t fp8x2_e4m3_to_half2(uint16_t pair) {
#if __CUDA_ARCH__ >= 890
  uint32_t v;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(v) : "h"(pair));
  return v;
#else
  return e4m3_bytes_to_half2((pair & 0xffu) | (static_cast<uint32_t>(pair) & 0xff00u) << 8);
#endif
}

// Two e4m3 numbers side by side to two bf16, exact.
__device__ __forceinline__ uint32_t fp8x2_e4m3_to_bf16x2(uint16_t pair) {
  return e4m3_bytes_to_bf16x2((pair & 0xffu) | (static_cast<uint32_t>(pair) & 0xff00u) << 8);
}

// 2^x to about 2 units in the last place; results below 2^-126 are zero.
__device__ __forceinline__ float ex2_approx(float x) {
  float v;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(v) : "f"(x));
  return v;
}

}  // namespace ttc::ptx

#include "convert_common.cuh"
