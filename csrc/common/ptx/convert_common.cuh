// What the conversions of both sides share: plain C++ on top of them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace ttc::ptx {

// T: __half or __nv_bfloat16.
template <class T>
__device__ __forceinline__ uint32_t pack2(float low, float high) {
  if constexpr (std::is_same_v<T, __half>)
    return pack_half2(low, high);
  else
    return pack_bf16x2(low, high);
}

template <class T>
__device__ __forceinline__ uint32_t fp8x2_e4m3_to(uint16_t pair) {
  if constexpr (std::is_same_v<T, __half>)
    return fp8x2_e4m3_to_half2(pair);
  else
    return fp8x2_e4m3_to_bf16x2(pair);
}

// Bytes 0 and 2, without the instruction of sm_89.
template <class T>
__device__ __forceinline__ uint32_t e4m3_bytes_to(uint32_t bytes) {
  if constexpr (std::is_same_v<T, __half>)
    return e4m3_bytes_to_half2(bytes);
  else
    return e4m3_bytes_to_bf16x2(bytes);
}

// tanh(x) = 1 - 2 / (1 + e^(2x)): absolute error below 3e-7, and right at both infinities. Used for
// the logits soft cap, whose argument is of order 1.
__device__ __forceinline__ float tanh_ex2(float x) { return 1.0f - 2.0f / (1.0f + ex2_approx(x * 2.885390081777927f)); }

}  // namespace ttc::ptx
