// Tiles of few rows: reading keys and values costs more than multiplying them, so they are multiplied as
// they arrive, a few at a time, in the order in which they stand in memory.
//
//   for each W keys, each KV head:    S = Q K^T     K transposed in registers
//   softmax
//   for each W keys, each KV head:    PV += P V     V from registers, PV in the first-level cache
//
// The sums run over the same steps in the same order as those of tiles of many rows.
//
// Siblings share the first keys of such a tile, as children of one node do where a chunk crosses the fork. What
// they share is repacked once and multiplied with the rows of all; each goes on with its own keys:
//
//              shared         own
//   row 0-3   [ S, PV    ][ S, PV ]
//   row 4-7   [ for all  ][ S, PV ]     softmax of a row over both, in between
//   ..        [ at once  ][ ..    ]
#pragma once

#include "tree_attention/cpu_packed.h"
#include "tree_attention/cpu_tile.h"

namespace ttc {

// R: rows per KV head, the last ones maybe zero.
template <class Dot, class Src, int R>
class FewRowsTile : Tile<Dot, Src, BlockLookahead<Src, Dot::Simd::kWidth>> {
  using Base = Tile<Dot, Src, BlockLookahead<Src, Dot::Simd::kWidth>>;
  using Base::a_, Base::p_, Base::dim_, Base::steps_, Base::lookahead_, Base::W;
  using typename Base::Elem;
  using typename Base::S;
  using typename Base::Vec;
  static constexpr int kPanel = 2 * W;
  // So many sums hide the latency of a product; registers hold as many again.
  static constexpr int kSums = W == 16 ? 8 : 4;
  static constexpr int kAtOnce = R < kSums ? kSums / R : 1;  // heads of scores, panels of values

 public:
  explicit FewRowsTile(const TileArgs& args)
      : Base(args, R),
        packed_(args),
        products_(args.num_siblings == 1 ? static_cast<float*>(args.scratch.v) : args.scratch.stretch.o) {}

  int run() {
    return Base::run([&](int64_t k, int n) {
      if (a_.num_siblings == 1) return tile(k, &n, 1);
      int keys[kMaxSiblingRows];
      for (int i = 0; i < a_.num_siblings; ++i) keys[i] = sibling_keys(a_, i);
      tile(k, keys, a_.num_siblings);
    });
  }

 private:
  // keys: of each sibling.
  void tile(int64_t k, const int* keys, int count) {
    if (a_.shared > 0) shared_scores();
    const auto each = [&](auto&& body) {
      row_ = at_ = 0;
      for (int i = 0; i < count; row_ += Base::sibling_rows_, at_ += Base::padded(keys[i++] - a_.shared)) body(i);
    };
    each([&](int i) {
      int j = a_.shared;
      for (; j + W <= keys[i]; j += W) scores<true>(j, keys[i]);
      if (j < keys[i]) scores<false>(j, keys[i]);
    });
    const int queries = a_.sibling_queries();
    for (int h = 0; h < a_.num_heads; ++h) {
      Base::select(h);
      for (int i = 0; i < count; ++i) {
        Base::use_scores(int64_t(h) * Base::padded_rows_ + i * Base::sibling_rows_);
        Base::softmax_rows(i * queries, queries, k, keys[i]);
      }
      if (Base::folds_) Base::fold_factors(0, Base::rows_);
    }
    if (a_.shared > 0) shared_products();
    each([&](int i) {
      int j = a_.shared;
      for (; j + W <= keys[i]; j += W) values<true>(j, keys[i]);
      if (j < keys[i]) values<false>(j, keys[i]);
    });
  }

  void shared_scores() {
    for (int j = 0; j < a_.shared; j += W) {
      typename Base::Look::Block next;
      packed_.keys(lookahead_.key_rows() + j, W, j, a_.shared, [&](int h, int at) {
        if (at == 0) next = lookahead_.after_keys(j, h);
        if (at * int64_t(sizeof(Src)) % 64 == 0)
#pragma GCC unroll 16
          for (int i = 0; i < W; ++i) next.ask(i, at);
      });
    }
    for (int h = 0; h < a_.num_heads; ++h) {
      Base::select(h);
      ScoreMicro<Dot>::all(Base::rows_, packed_.scores(h, Base::q_, Base::s_), a_.shared, [] {});
    }
  }

  void shared_products() {
    packed_.values(lookahead_.value_rows(), a_.shared, a_.shared, [&](int j, int h, int d) {
      const auto next = lookahead_.after_values(j, h);
      for (int i = j % W; i < j % W + Dot::kStep; ++i) next.ask(i, d);
    });
    for (int h = 0; h < a_.num_heads; ++h) {
      Base::select(h);
      float* const products = products_ + int64_t(h) * Base::padded_rows_ * dim_;
      ValueMicro<Dot>::all(Base::rows_, packed_.products(h, Base::prob_, a_.shared, products), dim_, [] {});
    }
  }

  // The W keys from j0 on of the sibling at hand, which has n.
  template <bool kFull>
  void scores(int j0, int n) {
    int h = 0;
    for (; h + kAtOnce <= a_.num_heads; h += kAtOnce) scores<kFull, kAtOnce>(j0, n, h);
    for (; h < a_.num_heads; ++h) scores<kFull, 1>(j0, n, h);
  }

  // For the NH heads from h0 on.
  template <bool kFull, int NH>
  TTC_INLINE void scores(int j0, int n, int h0) {
    Base::select(h0, row_);
    const Src* const* rows = lookahead_.key_rows() + at_ + j0;
    typename Base::Look::Block next[NH];
    for (int h = 0; h < NH; ++h) next[h] = lookahead_.after_keys(at_ + j0, h0 + h);
    const Elem* const q = Base::q_;
    float* const s = Base::s_ + j0;
    const int steps = steps_, head_rows = Base::padded_rows_;
    Vec acc[NH][R];
    for (int e = 0; e < steps; e += W) {
      const int64_t at = e * Dot::kStep;
      const bool begins = e % kScoreRun<Dot> == 0, ends = (e + W) % kScoreRun<Dot> == 0 || e + W >= steps;
#pragma GCC unroll 8
      for (int h = 0; h < NH; ++h) {
        Vec key[W];
        load_keys<kFull, Dot>(key, rows, n - j0, (h0 + h) * p_.k_head_stride + at);
        if (at * int64_t(sizeof(Src)) % 64 == 0)
#pragma GCC unroll 16
          for (int j = 0; j < W; ++j) next[h].ask(j, at);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
          if (begins) acc[h][r] = S::zero();
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i)
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r)
            acc[h][r] = Dot::madd(acc[h][r], Dot::broadcast(q + (h * head_rows + r) * steps + e + i), key[i]);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
          if (float* c = s + (h * head_rows + r) * kTileKeys; ends)
            S::store(c, e < kScoreRun<Dot> ? acc[h][r] : S::add(S::load(c), acc[h][r]));
      }
    }
  }

  template <bool kFull>
  void values(int j0, int n) {
    for (int h = 0; h < a_.num_heads; ++h) {
      Base::select(h, row_);
      const auto next = lookahead_.after_values(at_ + j0, h);
      int d = 0;
      for (; d + kAtOnce * kPanel <= dim_; d += kAtOnce * kPanel) values<kFull, kAtOnce>(j0, n, d, next);
      for (; d < dim_; d += kPanel) values<kFull, 1>(j0, n, d, next);
    }
  }

  // For NP panels of dimensions from d on.
  template <bool kFull, int NP>
  TTC_INLINE void values(int j0, int n, int d, const typename Base::Look::Block& next) {
    const Src* const* rows = lookahead_.value_rows() + at_ + j0;
    const int64_t head = Base::head_ * p_.v_head_stride + d;
    const int dim = dim_;
    float* const products = products_ + (int64_t(Base::head_) * Base::padded_rows_ + row_) * dim + d;
    const Elem* const prob = Base::prob_ + j0 / Dot::kStep;
    Vec acc[R][2 * NP];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int v = 0; v < 2 * NP; ++v) acc[r][v] = j0 == 0 ? S::zero() : S::load(products + r * dim + v * W);
    for (int j = 0; j < W; j += Dot::kStep) {
      const int last = j + Dot::kStep - 1;
      const Src* a = kFull || j0 + j < n ? rows[j] + head : kZeroRow<Src>;
      const Src* b = kFull || j0 + last < n ? rows[last] + head : kZeroRow<Src>;
      Vec value[2 * NP];
#pragma GCC unroll 8
      for (int v = 0; v < NP; ++v) {
        Dot::load_values(a + v * kPanel, b + v * kPanel, value[2 * v], value[2 * v + 1]);
        for (int i = j; i <= last; ++i) next.ask(i, d + v * kPanel);
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Vec p = Dot::broadcast(prob + r * (kTileKeys / Dot::kStep) + unsigned(j) / Dot::kStep);
#pragma GCC unroll 16
        for (int v = 0; v < 2 * NP; ++v) acc[r][v] = Dot::madd(acc[r][v], p, value[v]);
      }
    }
    const bool ends = j0 + W >= n;
    float* const output = Base::output() + d;
    // The row behind a sibling's last is the next one's first.
#pragma GCC unroll 8
    for (int r = 0; r < R && r < Base::sibling_rows_; ++r)
#pragma GCC unroll 16
      for (int v = 0; v < 2 * NP; ++v) {
        float* o = output + r * dim + v * W;
        if (!ends)
          S::store(products + r * dim + v * W, acc[r][v]);
        else if (Base::folds_)
          S::store(o, S::fma(acc[r][v], S::set1(Base::beta_[r]), S::mul(S::load(o), S::set1(Base::alpha_[r]))));
        else
          S::store(o, S::fma(S::load(o), S::set1(Base::alpha_[r]), acc[r][v]));
      }
  }

  Packed<Dot, Src> packed_;  // the keys and values that siblings share
  float* const products_;    // [heads][rows][dim]: the tile's sums so far
  int row_ = 0, at_ = 0;     // the first row of the sibling at hand, and how far its keys stand behind the tile's
};

}  // namespace ttc
