// write_kv on a GPU: new tokens to their slots, as they are, or rotated and rounded on the way.
//
//   k [T][Hkv][D] any strides          cache [pages * page_size][Hkv][D]
//   token t  |h0.......|h1.......|  -> slot slots[t]  |h0.......|h1.......|
//             ^ a thread takes one piece of one head of one token; threads of a row of the block take
//               neighbouring pieces, rows of the block neighbouring tokens; blockIdx.y 0 is K, 1 is V
#pragma once

#include "common/cuda_types.cuh"
#include "common/float8.h"
#include "kv_cache/kv_cache.h"

namespace ttc {

constexpr int kWriteThreads = 128;

// Moves bytes, whatever they mean. Piece: uint4, or uint16_t where something is not aligned to 16.
template <class Piece>
__global__ void __launch_bounds__(kWriteThreads) write_kv_copy_kernel(const __grid_constant__ WriteKvParams p) {
  const int64_t token = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (token >= p.num_tokens) return;
  const int64_t slot = p.slots[token];
  if (slot < 0) return;
  const NewTokens& from = blockIdx.y == 0 ? p.k : p.v;
  char* cache = blockIdx.y == 0 ? p.k_cache : p.v_cache;
  const int64_t head_bytes = p.head_dim * dtype_bytes(p.dtype);
  const int pieces = static_cast<int>(head_bytes / sizeof(Piece));  // to a head
  const int all = static_cast<int>(p.num_kv_heads) * pieces;
  for (int i = threadIdx.x; i < all; i += blockDim.x) {
    const int head = i / pieces, piece = i % pieces;
    const char* source = from.data + token * from.token_stride + head * from.head_stride;
    char* to = cache + (slot * p.num_kv_heads + head) * head_bytes;
    reinterpret_cast<Piece*>(to)[piece] = reinterpret_cast<const Piece*>(source)[piece];
  }
}

// N elements as floats, read 16 bytes at a time, or one by one if N is 1.
template <class T, int N>
__device__ __forceinline__ void load_floats(const T* from, float (&x)[N]) {
  constexpr int kAtOnce = N * sizeof(T) < 16 ? N : 16 / sizeof(T);
#pragma unroll
  for (int i = 0; i < N; i += kAtOnce) {
    const auto part = load_vector<T, kAtOnce>(from + i);
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) x[i + j] = to_float(part[j]);
  }
}

template <class T, int N>
__device__ __forceinline__ void load_factors(const Rope& rope, int64_t at, float (&factors)[N]) {
  if (rope.dtype == Dtype::kFloat32) {
    load_floats<float, N>(static_cast<const float*>(rope.cos_sin) + at, factors);
  } else {
    load_floats<T, N>(static_cast<const T*>(rope.cos_sin) + at, factors);
  }
}

// Rotates x = head[d .. d + N) by the token's angles. Sums and products are rounded one by one, as on
// every backend. A piece lies in one half of the rotated elements, and begins at a whole pair if it has
// more than one element. A pair's elements may lie with two threads: each reads both.
template <class T, int N>
__device__ __forceinline__ void rotate(const Rope& rope, int64_t token, const T* head, int d, float (&x)[N]) {
  if (d >= rope.dim) return;
  const int half = static_cast<int>(rope.dim / 2);
  const int64_t angles = rope.positions[token] * rope.dim;
  if (rope.interleaved) {
    constexpr int kPairs = (N + 1) / 2;
    float other[N], cosines[kPairs], sines[kPairs];
    if constexpr (N == 1) {
      load_floats<T, N>(head + (d ^ 1), other);
    } else {
#pragma unroll
      for (int i = 0; i < N; ++i) other[i] = x[i ^ 1];
    }
    load_factors<T, kPairs>(rope, angles + d / 2, cosines);
    load_factors<T, kPairs>(rope, angles + half + d / 2, sines);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float mine = x[i] * cosines[i / 2], theirs = other[i] * sines[i / 2];
      x[i] = (d + i) % 2 == 0 ? mine - theirs : mine + theirs;
    }
  } else {
    const bool first = d < half;
    const int pair = first ? d : d - half;
    float other[N], cosines[N], sines[N];
    load_floats<T, N>(head + (first ? d + half : pair), other);
    load_factors<T, N>(rope, angles + pair, cosines);
    load_factors<T, N>(rope, angles + half + pair, sines);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float mine = x[i] * cosines[i], theirs = other[i] * sines[i];
      x[i] = first ? mine - theirs : mine + theirs;
    }
  }
}

// By way of fp32. T: dtype of the new tokens; kToE4m3: of the caches; N: elements to a thread.
template <class T, bool kToE4m3, int N>
__global__ void __launch_bounds__(kWriteThreads, 4) write_kv_convert_kernel(const __grid_constant__ WriteKvParams p) {
  const int64_t token = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (token >= p.num_tokens) return;
  const int64_t slot = p.slots[token];
  if (slot < 0) return;
  const bool is_k = blockIdx.y == 0;
  const NewTokens& from = is_k ? p.k : p.v;
  const KvScale& scale = is_k ? p.k_scale : p.v_scale;
  char* cache = is_k ? p.k_cache : p.v_cache;
  const int pieces = static_cast<int>(p.head_dim) / N, all = static_cast<int>(p.num_kv_heads) * pieces;
  for (int i = threadIdx.x; i < all; i += blockDim.x) {
    const int head = i / pieces, d = i % pieces * N;
    const T* source = reinterpret_cast<const T*>(from.data + token * from.token_stride + head * from.head_stride);
    const int64_t at = (slot * p.num_kv_heads + head) * p.head_dim + d;
    float x[N];
    load_floats<T, N>(source + d, x);
    if (is_k && p.rope.positions != nullptr) rotate<T, N>(p.rope, token, source, d, x);
    if constexpr (kToE4m3) {
      const float unit = scale.per_head != nullptr ? scale.per_head[head] : scale.number;
      Vector<uint8_t, N> out;
#pragma unroll
      for (int j = 0; j < N; ++j) out[j] = float_to_e4m3(x[j] / unit);
      store_vector(reinterpret_cast<uint8_t*>(cache) + at, out);
    } else {
      Vector<T, N> out;
#pragma unroll
      for (int j = 0; j < N; ++j) out[j] = from_float<T>(x[j]);
      store_vector(reinterpret_cast<T*>(cache) + at, out);
    }
  }
}

}  // namespace ttc
