// The micro-kernel of the CPU tree attention, and what it multiplies.
//
// A panel is its right-hand side: [steps][2 vectors], read front to back. A step is one 32-bit element of
// the contraction: one fp32, or a pair of bf16 multiplied by one instruction.
#pragma once

#include <cstdint>

#include "common/simd.h"

namespace ttc {

struct Half {
  uint16_t bits;
};
struct BFloat {
  uint16_t bits;
};

// The dot product in fp32: keys, values and probabilities are widened while packing.
template <class S>
struct DotF32 {
  using Simd = S;
  using Vec = typename S::Vec;
  using Elem = float;  // one contraction step
  static constexpr int kStep = 1;
  static TTC_INLINE Vec broadcast(const Elem* p) { return S::set1(*p); }
  static TTC_INLINE Vec madd(Vec acc, Vec a, Vec b) { return S::fma(a, b, acc); }
  static TTC_INLINE Vec load_source(const float* p) { return S::load(p); }
  static TTC_INLINE Vec load_source(const Half* p) { return S::load_half(&p->bits); }
  static TTC_INLINE Vec load_source(const BFloat* p) { return S::load_bfloat(&p->bits); }
  // Probabilities stay where the scores were.
  static TTC_INLINE void store_prob(Elem* row, int at, Vec p) { S::store(row + at, p); }
  // One step of 2W dimensions from row a (and, for pairs, row b) of V.
  template <class Src>
  static TTC_INLINE void load_values(const Src* a, const Src*, Vec& low, Vec& high) {
    low = load_source(a);
    high = load_source(a + S::kWidth);
  }
};

// W keys by W steps, transposed: lane j of r[i] is step i of key j. Keys from n on are zero and not read.
template <bool kFull, class Dot, class Src>
TTC_INLINE void load_keys(typename Dot::Vec* r, const Src* const* rows, int n, int64_t at) {
  constexpr int W = Dot::Simd::kWidth;
#pragma GCC unroll 16
  for (int j = 0; j < W; ++j) r[j] = kFull || j < n ? Dot::load_source(rows[j] + at) : Dot::Simd::zero();
  Dot::Simd::transpose(r);
}

// Stands in for values beyond the last.
template <class Src>
inline constexpr Src kZeroRow[256] = {};

// Cache lines that load_keys reads.
template <class Dot, class Src>
inline constexpr int kBlockLines = Dot::Simd::kWidth * Dot::Simd::kWidth * Dot::kStep * int(sizeof(Src)) / 64;

// C = (scale ? scale[row] * C : 0) + (product_scale ? product_scale[row] : 1) A B, with B in panels of 2 vectors, the
// last maybe of 1.
template <class Elem>
struct GemmOperands {
  const Elem* a;  // [rows][lda]
  int64_t lda;
  const Elem* b;  // [panels][steps][2 vectors]
  int64_t steps, panel_stride;
  float* c;  // [rows][ldc]
  int64_t ldc;
  const float* scale = nullptr;
  const float* product_scale = nullptr;  // only where all steps are one run
};

// Sums of more than kRun steps are made in runs of kRun, which are added up: that rounds less.
template <class Dot, int64_t kRun>
struct Micro {
  using S = typename Dot::Simd;
  using Vec = typename S::Vec;
  using Elem = typename Dot::Elem;
  using Operands = GemmOperands<Elem>;
  static constexpr int W = S::kWidth;
  static constexpr int kMaxRows = W == 16 ? 12 : (W == 8 ? 6 : 4);

  // R rows, NP panels of NV vectors side by side. Every element of C sums its steps in order, run by run,
  // whatever R and NP are.
  template <int R, int NP, int NV>
  static void run(const Operands& x) {
    const auto* b = reinterpret_cast<const float*>(x.b);
    for (int64_t k0 = 0; k0 < x.steps; k0 += kRun) {
      Vec acc[R][NP * NV];
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < NP * NV; ++v) acc[r][v] = S::zero();
      const int64_t end = k0 + kRun < x.steps ? k0 + kRun : x.steps;
      for (int64_t k = k0; k < end; ++k, b += NV * W) {
        Vec bv[NP * NV];
#pragma GCC unroll 4
        for (int v = 0; v < NP * NV; ++v) bv[v] = S::load(b + v / NV * x.panel_stride + v % NV * W);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          const Vec av = Dot::broadcast(x.a + r * x.lda + k);
#pragma GCC unroll 4
          for (int v = 0; v < NP * NV; ++v) acc[r][v] = Dot::madd(acc[r][v], av, bv[v]);
        }
      }
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < NP * NV; ++v) {
          float* c = x.c + r * x.ldc + v * W;
          if (k0 > 0)
            acc[r][v] = S::add(S::load(c), acc[r][v]);
          else if (x.product_scale)
            acc[r][v] = S::fma(acc[r][v], S::set1(x.product_scale[r]), S::mul(S::load(c), S::set1(x.scale[r])));
          else if (x.scale)
            acc[r][v] = S::fma(S::load(c), S::set1(x.scale[r]), acc[r][v]);
          S::store(c, acc[r][v]);
        }
    }
  }

  // `rows` <= kMaxRows rows against all of B. Few rows take two panels at a time, so that enough
  // independent sums are in flight. between() is called after every panel.
  template <int R = kMaxRows, class Between>
  static void block(int rows, Operands x, int columns, Between& between) {
    if constexpr (R > 1) {
      if (rows < R) return block<R - 1>(rows, x, columns, between);
    }
    const auto advance = [&](int width) {
      x.b += width / W == 4 ? 2 * x.panel_stride : x.panel_stride;
      x.c += width;
      columns -= width;
      between();
    };
    if constexpr (2 * R <= kMaxRows)
      for (; columns >= 4 * W; advance(4 * W)) run<R, 2, 2>(x);
    for (; columns >= 2 * W; advance(2 * W)) run<R, 1, 2>(x);
    if (columns >= W) run<R, 1, 1>(x);
  }

  // All rows, in blocks of equal height as far as possible.
  template <class Between>
  static void all(int rows, Operands x, int columns, Between&& between) {
    const int blocks = (rows + kMaxRows - 1) / kMaxRows, height = (rows + blocks - 1) / blocks;
    for (int left = rows; left > 0; left -= height) {
      block(left < height ? left : height, x, columns, between);
      x.a += height * x.lda;
      x.c += height * x.ldc;
      if (x.scale) x.scale += height;
      if (x.product_scale) x.product_scale += height;
    }
  }
};

}  // namespace ttc
