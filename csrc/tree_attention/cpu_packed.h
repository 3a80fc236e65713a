// Keys and values of a tile, repacked for the micro-kernel, for each of the unit's KV heads.
//
//   K panel: steps = head_dim,  lanes = keys        (a transpose of the cache rows)
//   V panel: steps = keys,      lanes = head_dim    (pairs of bf16 rows interleaved)
#pragma once

#include "tree_attention/cpu_kernels.h"
#include "tree_attention/cpu_micro.h"

namespace ttc {

template <class Dot, class Src>
class Packed {
  using S = typename Dot::Simd;
  using Vec = typename S::Vec;
  using Elem = typename Dot::Elem;
  static constexpr int W = S::kWidth, kPanel = 2 * W;

 public:
  using Operands = GemmOperands<Elem>;
  static constexpr int kValueSteps = kTileKeys / Dot::kStep;

  explicit Packed(const TileArgs& args)
      : heads_(args.num_heads),
        dim_(args.plan->header->head_dim),
        steps_(dim_ / Dot::kStep),
        k_head_stride_(args.params->k_head_stride),
        v_head_stride_(args.params->v_head_stride),
        head_elems_(packed_head(dim_)),
        k_(static_cast<Elem*>(args.scratch.k)),
        v_(static_cast<Elem*>(args.scratch.v)) {}

  // The n cache rows of the W keys from j0 on, of a tile of `padded` keys, into panels of 2W keys (the last
  // one of W keys if that is enough). Missing rows are zero, and are never read. ask(head, element) is called
  // for every W elements of all keys.
  template <class Ask>
  TTC_INLINE void keys(const Src* const* rows, int n, int j0, int padded, Ask&& ask) {
    if (n >= W)
      keys<true>(rows, W, j0, padded, ask);
    else
      keys<false>(rows, n, j0, padded, ask);
  }

  // The n cache rows of a tile's values into panels of 2W dimensions; the same for `padded` - n missing ones.
  // ask(key, head, element) is called for every 2W elements of a step.
  template <class Ask>
  TTC_INLINE void values(const Src* const* rows, int n, int padded, Ask&& ask) {
    for (int j = 0; j < padded; j += Dot::kStep) {
      const Src *a = j < n ? rows[j] : kZeroRow<Src>, *b = j + 1 < n ? rows[j + 1] : kZeroRow<Src>;
      auto* dst = reinterpret_cast<float*>(v_ + int64_t(j / Dot::kStep) * kPanel);
      for (int h = 0; h < heads_; ++h, dst += head_elems_) {
        auto* panel = dst;
        for (int d = 0; d < dim_; d += kPanel, panel += panel_stride(kValueSteps)) {
          Vec low, high;
          Dot::load_values(a + d, b + d, low, high);
          S::store(panel, low);
          S::store(panel + W, high);
          ask(j, h, d);
        }
        if (j < n) a += v_head_stride_;
        if (j + 1 < n) b += v_head_stride_;
      }
    }
  }

  // What the micro-kernel multiplies for a head: queries [rows][dim] by the keys, ...
  Operands scores(int head, const Elem* q, float* out) const {
    return {q, steps_, k_ + head * head_elems_, steps_, panel_stride(steps_), out, kTileKeys};
  }
  // ... probabilities [rows][kTileKeys] by the first `keys` values.
  Operands products(int head, const Elem* prob, int keys, float* out) const {
    return {prob, kValueSteps, v_ + head * head_elems_, keys / Dot::kStep, panel_stride(kValueSteps), out, dim_};
  }

 private:
  // Panels of a power of two would all begin in the same cache set: one more step keeps them apart.
  static constexpr int64_t panel_stride(int64_t steps) { return (steps + 1) * kPanel; }

  template <bool kFull, class Ask>
  TTC_INLINE void keys(const Src* const* rows, int n, int j0, int padded, Ask& ask) {
    const int panel = j0 / kPanel, width = (panel + 1) * kPanel <= padded ? kPanel : W;
    auto* dst = reinterpret_cast<float*>(k_ + panel * panel_stride(steps_) + j0 % kPanel);
    for (int h = 0; h < heads_; ++h, dst += head_elems_)
      for (int e = 0; e < steps_; e += W) {
        Vec r[W];
        load_keys<kFull, Dot>(r, rows, n, h * k_head_stride_ + e * Dot::kStep);
        ask(h, e * Dot::kStep);
#pragma GCC unroll 16
        for (int j = 0; j < W; ++j) S::store(dst + (e + j) * int64_t(width), r[j]);
      }
  }

  const int heads_, dim_, steps_;
  const int64_t k_head_stride_, v_head_stride_;
  const int64_t head_elems_;  // packed keys of one KV head
  Elem *const k_, *const v_;
};

}  // namespace ttc
