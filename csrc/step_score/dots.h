// Dot products of rows with weight rows, in an order of summation that is part of the result.
//
// Elements are taken in chunks of 512. A chunk's products go to 16 interleaved partial sums, which are
// added pairwise; the sums of the chunks are added in their order. Every block shape below follows this, so
// a row's bits do not depend on which rows are scored beside it, nor on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>

#include "common/convert.h"
#include "common/isa.h"

namespace ttc {

constexpr int64_t kLanes = 16;
constexpr int64_t kChunk = 512;
constexpr int64_t kBlock = 4;  // rows, and weight rows, that are read together

inline int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// Rows of fp32, uninitialised, in the order in which blocks read them: a chunk of every row, then the next.
//
//              row 0            row 1                       row 0
//   at(0, 0)-> [ 0 .. 511 ]     [ 0 .. 511 ]  ..  at(0, 512)-> [ 512 .. 1023 ]  ..
//
// Four rows, the four after them and four weight rows of a chunk then share a level-1 cache evenly.
struct Rows {
  Rows(int64_t num_rows, int64_t width) : count(num_rows), stride(std::min(kChunk, padded(width))) {
    const int64_t size = std::max<int64_t>(kLanes, (width + kChunk - 1) / kChunk * count * stride);
    values.reset(static_cast<float*>(std::aligned_alloc(64, size * sizeof(float))));
    if (values == nullptr) throw std::bad_alloc();
  }
  float* at(int64_t row, int64_t col = 0) const {
    return values.get() + (col / kChunk * count + row) * stride + col % kChunk;
  }
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  int64_t count;
  int64_t stride;
  std::unique_ptr<float, Free> values;
};

// Weight: float, or uint16_t for bfloat16 that is widened on its way into the products. That is for one row of x,
// whose weights come from memory and are used once: line by line those of `ahead` are asked for meanwhile.
template <typename Weight = float>
struct DotsArgs {
  const float* x;  // [num_rows, n]
  int64_t num_rows;
  int64_t x_stride;
  const Weight* weights;  // [num_weights, n]
  int64_t num_weights;
  int64_t weight_stride;
  int64_t n;        // a multiple of kLanes, at most kChunk
  bool first;       // y is written, not added to
  float* y;         // y[r * y_stride + w] += x[r] . weights[w]
  int64_t y_stride;
  const Weight* ahead = nullptr;  // of uint16_t: weights used next, as many and as far apart
};

TTC_ALWAYS_INLINE float as_float(float weight) { return weight; }
TTC_ALWAYS_INLINE float as_float(uint16_t weight) { return bfloat_to_float(weight); }

using Lanes4 = float __attribute__((vector_size(16)));
using Lanes8 = float __attribute__((vector_size(32)));

// 16 sums added up to 4: each with the one 8 places on, then with the one 4 places on.
TTC_ALWAYS_INLINE Lanes4 quarter_of(const float* sums) {
  Lanes8 low, high;
  std::memcpy(&low, sums, sizeof(low));
  std::memcpy(&high, sums + 8, sizeof(high));
  const Lanes8 half = low + high;
  return __builtin_shufflevector(half, half, 0, 1, 2, 3) + __builtin_shufflevector(half, half, 4, 5, 6, 7);
}

// a0 + a2, b0 + b2, a1 + a3, b1 + b3
TTC_ALWAYS_INLINE Lanes4 sum_in_pairs(Lanes4 a, Lanes4 b) {
  return __builtin_shufflevector(a, b, 0, 4, 1, 5) + __builtin_shufflevector(a, b, 2, 6, 3, 7);
}

// R rows and W weight rows, read together.
template <int R, int W, bool kFma, typename Weight>
TTC_ALWAYS_INLINE void dot_block(const DotsArgs<Weight>& a, int64_t row, int64_t weight) {
  constexpr bool kFromMemory = !std::is_same_v<Weight, float>;
  const float* x = a.x + row * a.x_stride;
  const Weight* w = a.weights + weight * a.weight_stride;
  float sums[R][W][kLanes];
  for (int r = 0; r < R; ++r) {
    for (int j = 0; j < W; ++j) {
      for (int64_t l = 0; l < kLanes; ++l) sums[r][j][l] = 0.0f;
    }
  }
  const float* next = row + 2 * R <= a.num_rows ? x + R * a.x_stride : x;
  for (int64_t i = 0; i < a.n; i += kLanes) {
    if (kFromMemory && i * sizeof(Weight) % 64 == 0) {
#pragma GCC unroll 4
      for (int j = 0; j < W; ++j) __builtin_prefetch(a.ahead + (weight + j) * a.weight_stride + i);
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      if (!kFromMemory) __builtin_prefetch(next + r * a.x_stride + i);
#pragma GCC unroll 4
      for (int j = 0; j < W; ++j) {
        for (int64_t l = 0; l < kLanes; ++l) {
          const float u = x[r * a.x_stride + i + l], v = as_float(w[j * a.weight_stride + i + l]);
          sums[r][j][l] = kFma ? __builtin_fmaf(u, v, sums[r][j][l]) : sums[r][j][l] + u * v;
        }
      }
    }
  }
  float lanes[R][W][kLanes];  // a copy, so that the sums can stay in registers
  for (int r = 0; r < R; ++r) {
    for (int j = 0; j < W; ++j) std::copy(sums[r][j], sums[r][j] + kLanes, lanes[r][j]);
  }
  for (int r = 0; r < R; ++r) {
    Lanes4 quarters[W];
    for (int j = 0; j < W; ++j) quarters[j] = quarter_of(lanes[r][j]);
    float* y = a.y + (row + r) * a.y_stride + weight;
    if constexpr (W == 4) {
      const Lanes4 b = sum_in_pairs(quarters[0], quarters[1]), c = sum_in_pairs(quarters[2], quarters[3]);
      Lanes4 before = {}, out = __builtin_shufflevector(b, c, 0, 1, 4, 5) + __builtin_shufflevector(b, c, 2, 3, 6, 7);
      if (!a.first) std::memcpy(&before, y, sizeof(before));
      out = a.first ? out : before + out;
      std::memcpy(y, &out, sizeof(out));
    } else {
      for (int j = 0; j < W; ++j) {
        const float sum = (quarters[j][0] + quarters[j][2]) + (quarters[j][1] + quarters[j][3]);
        y[j] = a.first ? sum : y[j] + sum;
      }
    }
  }
}

template <int R, int W, bool kFma, typename Weight>
TTC_ALWAYS_INLINE void dot_weights(const DotsArgs<Weight>& a, int64_t row) {
  int64_t w = 0;
  for (; w + W <= a.num_weights; w += W) dot_block<R, W, kFma>(a, row, w);
  for (; w + 2 <= a.num_weights; w += 2) dot_block<R, 2, kFma>(a, row, w);
  for (; w < a.num_weights; ++w) dot_block<R, 1, kFma>(a, row, w);
}

// As many at a time as the registers hold.
template <int R, int W, bool kFma, typename Weight>
TTC_ALWAYS_INLINE void dots(const DotsArgs<Weight>& a) {
  int64_t r = 0;
  for (; r + R <= a.num_rows; r += R) dot_weights<R, W, kFma>(a, r);
  for (; r < a.num_rows; ++r) dot_weights<1, W, kFma>(a, r);
}

#if TTC_X86
template <typename Weight>
TTC_TARGET_AVX2 void dots_avx2(const DotsArgs<Weight>& args) {
  dots<2, 2, true>(args);
}
template <typename Weight>
TTC_TARGET_AVX512 void dots_avx512(const DotsArgs<Weight>& args) {
  dots<kBlock, kBlock, true>(args);
}
#endif

// One chunk of num_rows x num_weights dot products.
template <typename Weight = float>
void dots_of_chunk(const DotsArgs<Weight>& args) {
#if TTC_X86
  if (cpu_isa() == Isa::kAvx512) return dots_avx512(args);
  if (cpu_isa() == Isa::kAvx2) return dots_avx2(args);
#endif
  dots<1, 1, false>(args);
}

}  // namespace ttc
