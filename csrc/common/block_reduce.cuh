// Sums and maxima over the threads of a block, of integers: the result does not depend on an order.
//
//   warp 0   v v v ... v  --shuffles-->  one value --> scratch[0]
//   warp 1   v v v ... v  --shuffles-->  one value --> scratch[1]   barrier; every thread then goes
//   ...                                                             through the warps' values in order
//
// Blocks have a multiple of 32 threads, at most 1024; all of them call.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/ptx.cuh"

namespace ttc {

constexpr int kMaxWarps = 32;

struct Sum {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};

struct Max {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};

struct Min {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a < b ? a : b;
  }
};

// scratch: shared, kMaxWarps values, free again when the call returns.
template <class Op, class T>
__device__ __forceinline__ T block_reduce(std::type_identity_t<T> value, T* scratch, Op op = {}) {
  for (int distance = 16; distance > 0; distance /= 2) value = op(value, __shfl_xor_sync(~0u, value, distance));
  const int warps = static_cast<int>(blockDim.x) / 32;
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  T result = scratch[0];
  for (int w = 1; w < warps; ++w) result = op(result, scratch[w]);
  __syncthreads();
  return result;
}

// The sum over the threads before this one.
template <class T>
__device__ __forceinline__ T block_sum_before(std::type_identity_t<T> value, T* scratch) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  T sum = value;
  for (int distance = 1; distance < 32; distance *= 2) {
    const T other = __shfl_up_sync(~0u, sum, distance);
    if (lane >= distance) sum += other;
  }
  if (lane == 31) scratch[warp] = sum;
  __syncthreads();
  T before = sum - value;
  for (int w = 0; w < warp; ++w) before += scratch[w];
  __syncthreads();
  return before;
}

}  // namespace ttc
