// Tiles of many rows: keys and values are repacked once, then multiplied with all rows.
#pragma once

#include <algorithm>

#include "tree_attention/cpu_packed.h"
#include "tree_attention/cpu_tile.h"

namespace ttc {

template <class Dot, class Src>
class PanelTile : Tile<Dot, Src, TileLookahead<Src>> {
  using Base = Tile<Dot, Src, TileLookahead<Src>>;
  using Base::a_, Base::dim_, Base::group_, Base::steps_, Base::lookahead_, Base::W;
  static constexpr int kScoreRows = 48;

 public:
  using Base::merge;
  explicit PanelTile(const TileArgs& args) : Base(args), packed_(args) {}

  int run() {
    return Base::run([&](int64_t k, int n) {
      pack(n);
      // Calls of the micro-kernel during which the next tile is asked for.
      const int blocks = (Base::rows_ + ScoreMicro<Dot>::kMaxRows - 1) / ScoreMicro<Dot>::kMaxRows;
      lines_ = lookahead_.lines_left(a_.num_heads * blocks * (Base::padded(n) + dim_) / (2 * W));
      for (int h = 0; h < a_.num_heads; ++h) {
        Base::select(h);
        step(k, n);
      }
    });
  }

 private:
  void pack(int n) {
    const int padded = Base::padded(n);
    for (int j = 0; j < padded; j += W)
      packed_.keys(lookahead_.key_rows() + j, n - j, j, padded, [&](int, int) {
        if (!lookahead_.tile_asked()) lookahead_.template issue<kBlockLines<Dot, Src>>();
      });
    packed_.values(lookahead_.value_rows(), n, padded, [&](int, int, int) {
      if (!lookahead_.tile_asked()) lookahead_.template issue<Dot::kStep * 2 * W* int(sizeof(Src)) / 64>();
    });
  }

  // Some queries at a time, so that their scores stay in a near cache.
  void step(int64_t k, int n) {
    const int padded = Base::padded(n), queries = std::max(1, kScoreRows / group_);
    const auto ask = [&] { lookahead_.issue(lines_); };
    Base::use_scores(0);
    for (int i = 0; i < a_.item->q_count; i += queries) {
      const int count = std::min(queries, a_.item->q_count - i), rows = count * group_;
      const int64_t row = int64_t(i) * group_;
      ScoreMicro<Dot>::all(rows, packed_.scores(Base::head_, Base::q_ + row * steps_, Base::s_), padded, ask);
      Base::softmax_rows(i, count, k, n);
      if (Base::folds_) Base::fold_factors(i * group_, rows);
      auto products = packed_.products(Base::head_, Base::prob_, padded, Base::output() + row * dim_);
      products.scale = Base::alpha_ + row;
      if (Base::folds_) products.product_scale = Base::beta_ + row;
      ValueMicro<Dot>::all(rows, products, dim_, ask);
    }
  }

  Packed<Dot, Src> packed_;
  int lines_ = 0;  // to ask for at a time
};

}  // namespace ttc
