// Tiles of many rows: keys and values are repacked once, then multiplied with all rows.
//
//   K panel: steps = head_dim,  lanes = keys        (a transpose of the cache rows)
//   V panel: steps = keys,      lanes = head_dim    (pairs of bf16 rows interleaved)
#pragma once

#include <algorithm>

#include "tree_attention/cpu_tile.h"

namespace ttc {

template <class Dot, class Src>
class PanelTile : Tile<Dot, Src, TileLookahead<Src>> {
  using Base = Tile<Dot, Src, TileLookahead<Src>>;
  using Base::a_, Base::p_, Base::dim_, Base::group_, Base::steps_, Base::lookahead_, Base::W;
  using typename Base::Elem;
  using typename Base::S;
  using typename Base::Vec;
  using Operands = GemmOperands<Elem>;
  static constexpr int kPanel = 2 * W;
  static constexpr int kScoreRows = 48;
  static constexpr int kValueSteps = kTileKeys / Dot::kStep;

 public:
  using Base::merge;
  explicit PanelTile(const TileArgs& args)
      : Base(args),
        head_elems_(packed_head(dim_)),
        k_(reinterpret_cast<Elem*>(args.scratch.k)),
        v_(reinterpret_cast<Elem*>(args.scratch.v)) {}

  int run() {
    return Base::run([&](int64_t k, int n) {
      pack(n);
      // Calls of the micro-kernel during which the next tile is asked for.
      const int blocks = (Base::rows_ + ScoreMicro<Dot>::kMaxRows - 1) / ScoreMicro<Dot>::kMaxRows;
      lines_ = lookahead_.lines_left(a_.num_heads * blocks * (Base::padded(n) + dim_) / kPanel);
      for (int h = 0; h < a_.num_heads; ++h) {
        Base::select(h);
        step(k, n);
      }
    });
  }

 private:
  // Panels of a power of two would all begin in the same cache set: one more step keeps them apart.
  static constexpr int64_t panel_stride(int64_t steps) { return (steps + 1) * kPanel; }

  // For each KV head: K rows transposed into panels of 2W keys (the last one of W keys if that is
  // enough), V rows into panels of 2W dimensions. Missing rows are zero, and are never read.
  void pack(int n) {
    const int padded = Base::padded(n);
    for (int j0 = 0; j0 < padded; j0 += W) {
      const int panel = j0 / kPanel, width = (panel + 1) * kPanel <= padded ? 2 : 1;
      auto* dst = reinterpret_cast<float*>(k_ + panel * panel_stride(steps_) + j0 % kPanel);
      if (j0 + W <= n)
        transpose_keys<true>(j0, W, dst, width * W);
      else
        transpose_keys<false>(j0, n - j0, dst, width * W);
    }
    const Src* const* rows = lookahead_.value_rows();
    for (int j = 0; j < padded; j += Dot::kStep) {
      const Src *a = j < n ? rows[j] : kZeroRow<Src>, *b = j + 1 < n ? rows[j + 1] : kZeroRow<Src>;
      auto* dst = reinterpret_cast<float*>(v_ + int64_t(j / Dot::kStep) * kPanel);
      for (int h = 0; h < a_.num_heads; ++h, dst += head_elems_) {
        auto* panel = dst;
        for (int d = 0; d < dim_; d += kPanel, panel += panel_stride(kValueSteps)) {
          Vec low, high;
          Dot::load_values(a + d, b + d, low, high);
          S::store(panel, low);
          S::store(panel + W, high);
          if (!lookahead_.tile_asked()) lookahead_.template issue<Dot::kStep * kPanel* int(sizeof(Src)) / 64>();
        }
        if (j < n) a += p_.v_head_stride;
        if (j + 1 < n) b += p_.v_head_stride;
      }
    }
  }

  template <bool kFull>
  TTC_INLINE void transpose_keys(int j0, int n, float* dst, int64_t stride) {
    const Src* const* src = lookahead_.key_rows() + j0;
    for (int h = 0; h < a_.num_heads; ++h, dst += head_elems_)
      for (int e = 0; e < steps_; e += W) {
        Vec r[W];
        load_keys<kFull, Dot>(r, src, n, h * p_.k_head_stride + e * Dot::kStep);
        if (!lookahead_.tile_asked()) lookahead_.template issue<kBlockLines<Dot, Src>>();
#pragma GCC unroll 16
        for (int j = 0; j < W; ++j) S::store(dst + (e + j) * stride, r[j]);
      }
  }

  // Some queries at a time, so that their scores stay in a near cache.
  void step(int64_t k, int n) {
    const int padded = Base::padded(n), queries = std::max(1, kScoreRows / group_);
    const int64_t head = Base::head_ * head_elems_;
    const auto ask = [&] { lookahead_.issue(lines_); };
    Base::use_scores(0);
    for (int i = 0; i < a_.item->q_count; i += queries) {
      const int count = std::min(queries, a_.item->q_count - i), rows = count * group_;
      const int64_t row = int64_t(i) * group_;
      ScoreMicro<Dot>::all(
          rows,
          Operands{Base::q_ + row * steps_, steps_, k_ + head, steps_, panel_stride(steps_), Base::s_, kTileKeys},
          padded, ask);
      Base::softmax_rows(i, count, k, n);
      if (Base::folds_) Base::fold_factors(i * group_, rows);
      ValueMicro<Dot>::all(
          rows,
          Operands{Base::prob_, kValueSteps, v_ + head, padded / Dot::kStep, panel_stride(kValueSteps),
                   Base::output() + row * dim_, dim_, Base::alpha_ + row,
                   Base::folds_ ? Base::beta_ + row : nullptr},
          dim_, ask);
    }
  }

  const int64_t head_elems_;  // packed keys of one KV head
  Elem *const k_, *const v_;
  int lines_ = 0;  // to ask for at a time
};

}  // namespace ttc
