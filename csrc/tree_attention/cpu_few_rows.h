// Tiles of few rows: reading keys and values costs more than multiplying them, so they are multiplied as
// they arrive, a few at a time, in the order in which they stand in memory.
//
//   for a few W keys, each KV head:   S = Q K^T     K transposed into panels in the first-level cache
//   softmax
//   for each W keys, each KV head:    PV += P V     V from registers, PV in the first-level cache
//
// The sums run over the same steps in the same order as those of tiles of many rows.
#pragma once

#include "tree_attention/cpu_tile.h"

namespace ttc {

// R: rows per KV head, the last ones maybe zero.
template <class Dot, class Src, int R>
class FewRowsTile : Tile<Dot, Src> {
  using Base = Tile<Dot, Src>;
  using Base::a_, Base::p_, Base::dim_, Base::steps_, Base::lookahead_, Base::W;
  using typename Base::Elem;
  using typename Base::S;
  using typename Base::Vec;
  static constexpr int kPanel = 2 * W;
  // Keys and dimensions at a time: as many sums as half of the registers hold.
  static constexpr int kMaxSums = W == 16 ? 16 : 8;
  static constexpr int kScorePanels = 4 * R <= kMaxSums ? 2 : 1;
  static constexpr int kPanels = 2 * R < kMaxSums ? kMaxSums / (2 * R) : 1;

 public:
  explicit FewRowsTile(const TileArgs& args)
      : Base(args, R), panels_(static_cast<float*>(args.scratch.k)), products_(static_cast<float*>(args.scratch.v)) {}

  int run() {
    return Base::run([&](int64_t k, int n) {
      int j = 0;
      for (; j + (kScorePanels * 2 - 1) * W < n; j += kScorePanels * 2 * W) scores<kScorePanels, 2>(j, n);
      for (; j + W < n; j += 2 * W) scores<1, 2>(j, n);
      if (j < n) scores<1, 1>(j, n);
      for (int h = 0; h < a_.num_heads; ++h) {
        Base::select(h);
        Base::softmax_rows(0, a_.item->q_count, k, n);
      }
      for (j = 0; j + W <= n; j += W) values<true>(j, n);
      if (j < n) values<false>(j, n);
      for (int h = 0; Base::folds_ && h < a_.num_heads; ++h) {
        Base::select(h);
        Base::fold_chunk();
      }
    });
  }

 private:
  // NP x NV x W keys from j0 on, of a tile of n, through panels that stay in the first-level cache.
  template <int NP, int NV>
  void scores(int j0, int n) {
    const int64_t stride = int64_t(steps_ + 1) * NV * W;
    for (int h = 0; h < a_.num_heads; ++h) {
      Base::select(h);
      for (int v = 0; v < NP * NV; ++v) {
        const Src* const* rows = lookahead_.key_rows() + j0 + v * W;
        float* const dst = panels_ + v / NV * stride + v % NV * W;
        if (const int left = n - j0 - v * W; left >= W)
          transpose<true, NV>(rows, W, h, dst);
        else
          transpose<false, NV>(rows, left, h, dst);
      }
      Micro<Dot>::template run<R, NP, NV>(
          {Base::q_, steps_, reinterpret_cast<Elem*>(panels_), steps_, stride, Base::s_ + j0, kTileKeys, nullptr});
    }
  }

  template <bool kFull, int NV>
  TTC_INLINE void transpose(const Src* const* rows, int n, int h, float* dst) {
    for (int e = 0; e < steps_; e += W) {
      Vec key[W];
      load_keys<kFull, Dot>(key, rows, n, h * p_.k_head_stride + e * Dot::kStep);
      lookahead_.template issue<kBlockLines<Dot, Src>>();
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) S::store(dst + (e + i) * NV * W, key[i]);
    }
  }

  // The W keys from j0 on, of a tile of n.
  template <bool kFull>
  void values(int j0, int n) {
    for (int h = 0; h < a_.num_heads; ++h) {
      Base::select(h);
      int d = 0;
      for (; d + kPanels * kPanel <= dim_; d += kPanels * kPanel) values<kFull, kPanels>(j0, n, d);
      for (; d < dim_; d += kPanel) values<kFull, 1>(j0, n, d);
    }
  }

  template <bool kFull, int NP>
  TTC_INLINE void values(int j0, int n, int d) {
    constexpr int64_t kRun = Micro<Dot>::kRun * Dot::kStep;  // in keys
    const Src* const* rows = lookahead_.value_rows();
    const int64_t head = Base::head_ * p_.v_head_stride + d;
    float* products = products_ + int64_t(Base::head_) * R * dim_ + d;
    Vec acc[R][2 * NP];
    const bool begins = j0 % kRun == 0;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < 2 * NP; ++v) acc[r][v] = begins ? S::zero() : S::load(products + r * dim_ + v * W);
    for (int j = j0; j < j0 + W; j += Dot::kStep) {
      const Src* a = kFull || j < n ? rows[j] + head : nullptr;
      const Src* b = Dot::kStep == 1 ? nullptr : kFull || j + 1 < n ? rows[j + 1] + head : nullptr;
      Vec value[2 * NP];
#pragma GCC unroll 8
      for (int v = 0; v < NP; ++v)
        Dot::load_values(kFull || a ? a + v * kPanel : nullptr,
                         (kFull && Dot::kStep == 2) || b ? b + v * kPanel : nullptr, value[2 * v], value[2 * v + 1]);
      lookahead_.template issue<Dot::kStep * NP * kPanel* int(sizeof(Src)) / 64>();
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Vec p = Dot::broadcast(Base::prob_ + r * (kTileKeys / Dot::kStep) + j / Dot::kStep);
#pragma GCC unroll 8
        for (int v = 0; v < 2 * NP; ++v) acc[r][v] = Dot::madd(acc[r][v], p, value[v]);
      }
    }
    const bool ends = (j0 + W) % kRun == 0 || j0 + W >= n;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < 2 * NP; ++v) {
        float* o = Base::o_ + r * dim_ + d + v * W;
        if (!ends)
          S::store(products + r * dim_ + v * W, acc[r][v]);
        else if (j0 < kRun)
          S::store(o, S::fma(S::load(o), S::set1(Base::alpha_[r]), acc[r][v]));
        else
          S::store(o, S::add(S::load(o), acc[r][v]));
      }
  }

  float* const panels_;    // [panels][steps + 1][2 vectors]
  float* const products_;  // [heads][R][dim]: the run's sums so far
};

}  // namespace ttc
