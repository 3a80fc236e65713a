// Float types and 16-byte pieces of them in kernels whose arithmetic is fp32.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

namespace ttc {

// N neighbouring elements, read and written at once.
template <class T, int N>
struct alignas(sizeof(T) * N) Vector {
  T items[N];
  __device__ __forceinline__ T& operator[](int i) { return items[i]; }
  __device__ __forceinline__ const T& operator[](int i) const { return items[i]; }
};

template <class T, int N>
__device__ __forceinline__ Vector<T, N> load_vector(const T* from) {
  return *reinterpret_cast<const Vector<T, N>*>(from);
}

template <class T, int N>
__device__ __forceinline__ void store_vector(T* to, const Vector<T, N>& items) {
  *reinterpret_cast<Vector<T, N>*>(to) = items;
}

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

}  // namespace ttc
