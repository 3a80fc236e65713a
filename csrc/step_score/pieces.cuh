// Numbers of any float type as sums of bf16 numbers, which tensor cores multiply exactly: 8 bits of mantissa
// in each piece, so one for a bf16 number, two for fp16, three for fp32 and for products of two bf16.
#pragma once

#include "common/cuda_types.cuh"
#include "common/dtype.h"
#include "common/ptx.cuh"

namespace ttc {

constexpr int kMaxPieces = 3;

// The type of a tensor that is known when the kernel runs, whatever its alignment.
struct AnyFloat {};

struct RowFormat {
  Dtype dtype;
  bool aligned;  // rows begin at multiples of 16 bytes and hold a multiple of 8 numbers
};

// Eight neighbouring numbers of a row as a lane loads them.
template <class T>
struct Eight {
  uint4 bits;
};
template <>
struct Eight<AnyFloat> {
  float v[8];
};

template <class T>
inline constexpr int kPieces = 2;
template <>
inline constexpr int kPieces<__nv_bfloat16> = 1;
template <>
inline constexpr int kPieces<AnyFloat> = 3;

__device__ __forceinline__ void to_floats(const Eight<__nv_bfloat16>& from, float (&v)[8]) {
  const uint32_t words[4] = {from.bits.x, from.bits.y, from.bits.z, from.bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    v[2 * i] = __uint_as_float(words[i] << 16);
    v[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}

__device__ __forceinline__ void to_floats(const Eight<__half>& from, float (&v)[8]) {
  const uint32_t words[4] = {from.bits.x, from.bits.y, from.bits.z, from.bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    v[2 * i] = __half2float(__ushort_as_half(static_cast<uint16_t>(words[i])));
    v[2 * i + 1] = __half2float(__ushort_as_half(static_cast<uint16_t>(words[i] >> 16)));
  }
}

__device__ __forceinline__ void to_floats(const Eight<AnyFloat>& from, float (&v)[8]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] = from.v[i];
}

__device__ __forceinline__ float load_float(Dtype dtype, const void* data, int64_t i) {
  if (dtype == Dtype::kFloat32) return static_cast<const float*>(data)[i];
  if (dtype == Dtype::kFloat16) return to_float(static_cast<const __half*>(data)[i]);
  return to_float(static_cast<const __nv_bfloat16*>(data)[i]);
}

// Numbers k .. k + 7 of a row of `width`, zeros outside. row: null for a row of zeros.
template <class T>
__device__ __forceinline__ Eight<T> load_eight(const char* row, int k, int width, RowFormat) {
  Eight<T> eight = {};
  if (row != nullptr && k < width) eight.bits = ptx::load_global_16(row + 2 * static_cast<int64_t>(k));
  return eight;
}

template <>
__device__ __forceinline__ Eight<AnyFloat> load_eight<AnyFloat>(const char* row, int k, int width, RowFormat format) {
  Eight<AnyFloat> eight = {};
  if (row == nullptr || k >= width) return eight;
  if (!format.aligned) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (k + i < width) eight.v[i] = load_float(format.dtype, row, k + i);
    }
  } else if (format.dtype == Dtype::kFloat32) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint4 bits = ptx::load_global_16(row + 4 * static_cast<int64_t>(k + 4 * half));
      eight.v[4 * half] = __uint_as_float(bits.x);
      eight.v[4 * half + 1] = __uint_as_float(bits.y);
      eight.v[4 * half + 2] = __uint_as_float(bits.z);
      eight.v[4 * half + 3] = __uint_as_float(bits.w);
    }
  } else if (format.dtype == Dtype::kFloat16) {
    to_floats(Eight<__half>{ptx::load_global_16(row + 2 * static_cast<int64_t>(k))}, eight.v);
  } else {
    to_floats(Eight<__nv_bfloat16>{ptx::load_global_16(row + 2 * static_cast<int64_t>(k))}, eight.v);
  }
  return eight;
}

// pieces[i]: the i-th pieces of the eight numbers, two to a register. Every piece is the rest, rounded.
template <int kCount>
__device__ __forceinline__ void split(const float (&v)[8], uint32_t (&pieces)[kCount][4]) {
#pragma unroll
  for (int pair = 0; pair < 4; ++pair) {
    float low = v[2 * pair], high = v[2 * pair + 1];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const uint32_t both = ptx::pack_bf16x2(low, high);
      pieces[i][pair] = both;
      low -= __uint_as_float(both << 16);
      high -= __uint_as_float(both & 0xffff0000u);
    }
  }
}

template <class T>
__device__ __forceinline__ void split(const Eight<T>& eight, uint32_t (&pieces)[kPieces<T>][4]) {
  if constexpr (kPieces<T> == 1) {
    pieces[0][0] = eight.bits.x;
    pieces[0][1] = eight.bits.y;
    pieces[0][2] = eight.bits.z;
    pieces[0][3] = eight.bits.w;
  } else {
    float v[8];
    to_floats(eight, v);
    split(v, pieces);
  }
}

}  // namespace ttc
