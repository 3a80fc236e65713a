// One work item for some KV heads on one core: flash attention over a tile of packed rows.
//
//   rows of the tile       M = queries x group (GQA heads of one KV head, packed), per KV head
//   for each 128 keys:     repack K and V of the pages     (paged, strided -> panels of 2 vectors)
//                          S = Q K^T                       micro-kernel, A = Q, B = K panels
//                          P, m, l = online softmax of S   row by row, in registers
//                          O = alpha O + P V               the same micro-kernel, A = P, B = V panels
//
// A panel is the micro-kernel's right-hand side: [steps][2 vectors], read front to back. A step is one
// 32-bit element of the contraction: one fp32, or a pair of bf16 multiplied by one instruction.
//
//   K panel: steps = head_dim,  lanes = keys        (a transpose of the cache rows)
//   V panel: steps = keys,      lanes = head_dim    (pairs of bf16 rows interleaved)
//
// A row's arithmetic never depends on the rows beside it or on how many there are: tiles of keys begin
// at fixed distances from the item's first key, masked keys add exact zeros, sums keep their order.
#pragma once

#include <cstdint>

#include "common/simd.h"
#include "tree_attention/cpu_kernels.h"

namespace ttc {

struct Half { uint16_t bits; };
struct BFloat { uint16_t bits; };

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
  // Rows a (and, for pairs, b) of V into steps of panels 2 vectors wide; b is unused here.
  template <class Src>
  static TTC_INLINE void pack_values(const Src* a, const Src*, int dim, float* panels, int64_t panel_size) {
    constexpr int W = S::kWidth;
    for (int d = 0; d < dim; d += 2 * W, panels += panel_size) {
      S::store(panels, a ? load_source(a + d) : S::zero());
      S::store(panels + W, a ? load_source(a + d + W) : S::zero());
    }
  }
};

// C = (scale ? scale[row] * C : 0) + A B, with B in panels of 2 vectors, the last maybe of 1.
template <class Elem>
struct GemmOperands {
  const Elem* a;  // [rows][lda]
  int64_t lda;
  const Elem* b;  // [panels][steps][2 vectors]
  int64_t steps, panel_stride;
  float* c;  // [rows][ldc]
  int64_t ldc;
  const float* scale;
};

template <class Dot>
struct Micro {
  using S = typename Dot::Simd;
  using Vec = typename S::Vec;
  using Elem = typename Dot::Elem;
  using Operands = GemmOperands<Elem>;
  static constexpr int W = S::kWidth;
  static constexpr int kMaxRows = W == 16 ? 12 : (W == 8 ? 6 : 4);

  // R rows, NP panels of NV vectors side by side. Every element of C sums its steps in order, in runs
  // of kRun that are added up (shorter sums round less), whatever R and NP are.
  static constexpr int64_t kRun = Dot::kStep == 1 ? 32 : 64;
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
          else if (x.scale)
            acc[r][v] = S::fma(S::load(c), S::set1(x.scale[r]), acc[r][v]);
          S::store(c, acc[r][v]);
        }
    }
  }

  // `rows` <= kMaxRows rows against all of B. Few rows take two panels at a time, so that enough
  // independent sums are in flight.
  template <int R = kMaxRows>
  static void block(int rows, Operands x, int columns) {
    if constexpr (R > 1) {
      if (rows < R) return block<R - 1>(rows, x, columns);
    }
    const auto advance = [&](int width) {
      x.b += width / W == 4 ? 2 * x.panel_stride : x.panel_stride;
      x.c += width;
      columns -= width;
    };
    if constexpr (2 * R <= kMaxRows)
      for (; columns >= 4 * W; advance(4 * W)) run<R, 2, 2>(x);
    for (; columns >= 2 * W; advance(2 * W)) run<R, 1, 2>(x);
    if (columns >= W) run<R, 1, 1>(x);
  }

  // All rows, in blocks of equal height as far as possible.
  static void all(int rows, Operands x, int columns) {
    const int blocks = (rows + kMaxRows - 1) / kMaxRows, height = (rows + blocks - 1) / blocks;
    for (int left = rows; left > 0; left -= height) {
      block(left < height ? left : height, x, columns);
      x.a += height * x.lda;
      x.c += height * x.ldc;
      if (x.scale) x.scale += height;
    }
  }
};

template <class Dot, class Src>
class Tile {
  using S = typename Dot::Simd;
  using Vec = typename S::Vec;
  using Elem = typename Dot::Elem;
  using Operands = GemmOperands<Elem>;
  static constexpr int W = S::kWidth;
  static constexpr int kPanel = 2 * W;
  static constexpr float kLog2e = 1.4426950408889634f;
  static constexpr double kLn2 = 0.69314718055994530942;

 public:
  Tile(const TileArgs& args) : a_(args), p_(*args.params), h_(*args.plan->header) {
    group_ = h_.num_q_heads / h_.num_kv_heads;
    dim_ = h_.head_dim;
    rows_ = args.item->q_count * group_;
    steps_ = dim_ / Dot::kStep;
    head_elems_ = packed_head(dim_);
    k_ = reinterpret_cast<Elem*>(args.scratch.k);
    v_ = reinterpret_cast<Elem*>(args.scratch.v);
    s_ = args.scratch.s;
    prob_ = Dot::kStep == 1 ? reinterpret_cast<Elem*>(s_) : reinterpret_cast<Elem*>(args.scratch.p);
    select(0);
  }

  // Asks for the first keys of this unit, which some worker is about to need.
  void prefetch() const {
    Rows rows;
    const int64_t count = a_.item->k_end - a_.item->k_begin;
    locate(a_.item->k_begin, int(count < kAhead ? count : kAhead), rows);
    for (int j = 0; j < rows.count; ++j) {
      prefetch(rows.key[j], p_.k_head_stride);
      prefetch(rows.value[j], p_.v_head_stride);
    }
  }

  void run() {
    find_bounds();
    for (int h = 0; h < a_.num_heads; ++h) {
      select(h);
      pack_queries();
      for (int r = 0; r < rows_; ++r) m_[r] = -__builtin_inff(), l_[r] = 0;
      __builtin_memset(o_, 0, size_t(rows_) * dim_ * sizeof(float));
    }
    const int64_t end = a_.item->k_end < max_hi_ ? a_.item->k_end : max_hi_;
    int64_t k = a_.item->k_begin;
    while (k + kTileKeys <= min_lo_) k += kTileKeys;  // whole tiles below every window
    const auto size = [&](int64_t at) { return at >= end ? 0 : int(end - at < kTileKeys ? end - at : kTileKeys); };
    Rows rows;
    for (; k < end; k += kTileKeys) {
      const int n = size(k);
      locate(k, int(end - k < 2 * kTileKeys ? end - k : 2 * kTileKeys), rows);
      pack_tile(rows, n, (n + W - 1) / W * W);
      for (int h = 0; h < a_.num_heads; ++h) {
        select(h);
        prefetch_share(rows, h);
        step(k, n);
      }
    }
    for (int h = 0; h < a_.num_heads; ++h) {
      select(h);
      write();
    }
  }

 private:
  // Panels of a power of two would all begin in the same cache set: one more step keeps them apart.
  static constexpr int64_t panel_stride(int64_t steps) { return (steps + 1) * kPanel; }

  // Points the state at the unit's h-th KV head.
  void select(int h) {
    head_ = h;
    q_ = reinterpret_cast<Elem*>(a_.scratch.q) + int64_t(h) * rows_ * steps_;
    o_ = a_.scratch.o + int64_t(h) * rows_ * dim_;
    m_ = a_.scratch.m + int64_t(h) * rows_;
    l_ = a_.scratch.l + int64_t(h) * rows_;
  }

  // Keys visible to each query of the tile: [lo, hi), draft trees are thinned out later.
  void find_bounds() {
    min_lo_ = INT64_MAX;
    max_hi_ = 0;
    for (int i = 0; i < a_.item->q_count; ++i) {
      const int64_t q = a_.item->q_begin + i;
      const int64_t position = int64_t(a_.plan->kv_lens[a_.plan->q_row[q]]) - 1 - a_.plan->q_back[q];
      int64_t logical = position;
      if (const DraftNode* d = draft(q)) logical = position - (q - d->row_begin) + d->depth;
      const int64_t lo = h_.window_left < 0 || logical < h_.window_left ? 0 : logical - h_.window_left;
      a_.scratch.lo[i] = lo;
      a_.scratch.hi[i] = position + 1;
      min_lo_ = lo < min_lo_ ? lo : min_lo_;
      max_hi_ = position + 1 > max_hi_ ? position + 1 : max_hi_;
    }
  }

  const DraftNode* draft(int64_t q) const {
    return a_.item->has_draft && a_.plan->draft[q].row_begin >= 0 ? a_.plan->draft + q : nullptr;
  }

  void pack_queries() {
    for (int i = 0; i < a_.item->q_count; ++i) {
      const Src* src = static_cast<const Src*>(p_.q) + a_.plan->q_token[a_.item->q_begin + i] * p_.q_token_stride +
                       (a_.kv_head + int64_t(head_)) * group_ * p_.q_head_stride;
      for (int g = 0; g < group_; ++g, src += p_.q_head_stride) {
        auto* dst = reinterpret_cast<float*>(q_ + (int64_t(i) * group_ + g) * steps_);
        for (int e = 0; e < steps_; e += W) S::store(dst + e, Dot::load_source(src + e * Dot::kStep));
      }
    }
  }

  // Where the keys and values of a tile and of the next one stand in the caches (for the unit's first
  // KV head). Packing is too slow per line for the hardware to look ahead far enough, so it asks for
  // the line kAhead tokens further on with every line it uses; what is left of the next tile is asked
  // for while this one is multiplied.
  static constexpr int kAhead = 32;
  struct Rows {
    const Src* key[2 * kTileKeys];
    const Src* value[2 * kTileKeys];
    int count;
  };

  void prefetch_share(const Rows& rows, int h) const {
    constexpr int kLeft = kTileKeys - kAhead;
    const int begin = kTileKeys + kAhead + kLeft * h / a_.num_heads;
    const int end = kTileKeys + kAhead + kLeft * (h + 1) / a_.num_heads;
    for (int j = begin; j < end && j < rows.count; ++j) {
      prefetch(rows.key[j], p_.k_head_stride);
      prefetch(rows.value[j], p_.v_head_stride);
    }
  }

  void locate(int64_t k, int n, Rows& rows) const {
    const int64_t page_size = h_.page_size;
    const int32_t* page = a_.plan->pages + a_.item->page_offset + (k / page_size - a_.item->k_begin / page_size);
    int64_t offset = k % page_size;
    rows.count = n;
    for (int j = 0; j < n; ++page, offset = 0) {
      const Src* key = static_cast<const Src*>(p_.k_cache) + *page * p_.k_page_stride + a_.kv_head * p_.k_head_stride;
      const Src* value = static_cast<const Src*>(p_.v_cache) + *page * p_.v_page_stride + a_.kv_head * p_.v_head_stride;
      for (; offset < page_size && j < n; ++offset, ++j) {
        rows.key[j] = key + offset * p_.k_token_stride;
        rows.value[j] = value + offset * p_.v_token_stride;
      }
    }
  }

  // For each KV head: K rows transposed into panels of 2W keys (the last one of W keys if that is
  // enough), V rows into panels of 2W dimensions. Missing rows are zero, and are never read. The heads
  // of a token stand side by side in the cache, so memory is read in order.
  void pack_tile(const Rows& rows, int n, int padded) {
    for (int j0 = 0; j0 < padded; j0 += W) {
      const int panel = j0 / kPanel, width = (panel + 1) * kPanel <= padded ? 2 : 1;
      auto* dst = reinterpret_cast<float*>(k_ + panel * panel_stride(steps_) + j0 % kPanel);
      if (j0 + W <= n)
        transpose_keys<true>(rows, j0, W, dst, width * W);
      else
        transpose_keys<false>(rows, j0, n - j0, dst, width * W);
    }
    for (int j = 0; j < padded; j += Dot::kStep) {
      const Src *a = j < n ? rows.value[j] : nullptr, *b = j + 1 < n ? rows.value[j + 1] : nullptr;
      auto* dst = reinterpret_cast<float*>(v_ + int64_t(j / Dot::kStep) * kPanel);
      for (int i = j + kAhead; i < j + kAhead + Dot::kStep && i < rows.count; ++i) prefetch(rows.value[i], p_.v_head_stride);
      for (int h = 0; h < a_.num_heads; ++h, dst += head_elems_) {
        Dot::pack_values(a, b, dim_, dst, panel_stride(kTileKeys / Dot::kStep));
        if (a) a += p_.v_head_stride;
        if (b) b += p_.v_head_stride;
      }
    }
  }

  // Asks for one token's rows of all the unit's KV heads.
  TTC_INLINE void prefetch(const Src* row, int64_t head_stride) const {
    for (int h = 0; h < a_.num_heads; ++h, row += head_stride)
      for (int d = 0; d < dim_; d += 64 / int(sizeof(Src))) __builtin_prefetch(row + d, 0, 2);
  }

  template <bool kFull>
  TTC_INLINE void transpose_keys(const Rows& rows, int j0, int n, float* dst, int64_t stride) {
    const Src* const* src = rows.key + j0;
    const bool ahead = j0 + kAhead + W <= rows.count;
    for (int h = 0; h < a_.num_heads; ++h, dst += head_elems_)
      for (int e = 0; e < steps_; e += W) {
        const int64_t at = h * p_.k_head_stride + e * Dot::kStep;
        Vec r[W];
#pragma GCC unroll 16
        for (int j = 0; j < W; ++j) r[j] = kFull || j < n ? Dot::load_source(src[j] + at) : S::zero();
        if (ahead)
          for (int j = 0; j < W; ++j) __builtin_prefetch(src[j + kAhead] + at, 0, 2);
        S::transpose(r);
#pragma GCC unroll 16
        for (int j = 0; j < W; ++j) S::store(dst + (e + j) * stride, r[j]);
      }
  }

  void step(int64_t k, int n) {
    const int padded = (n + W - 1) / W * W;
    Micro<Dot>::all(rows_, Operands{q_, steps_, k_ + head_ * head_elems_, steps_, panel_stride(steps_), s_, kTileKeys, nullptr}, padded);
    for (int i = 0; i < a_.item->q_count; ++i) {
      const DraftNode* d = draft(a_.item->q_begin + i);
      if (d) mask_draft(i, *d, k, n);
      const int64_t lo = a_.scratch.lo[i] - k, hi = a_.scratch.hi[i] - k;
      const int begin = lo < 0 ? 0 : (lo > n ? n : int(lo)), stop = hi > n ? n : (hi < 0 ? 0 : int(hi));
      for (int g = 0; g < group_; ++g) softmax(i * group_ + g, padded, begin, stop);
    }
    Micro<Dot>::all(rows_,
                    Operands{prob_, kTileKeys / Dot::kStep, v_ + head_ * head_elems_, padded / Dot::kStep,
                             panel_stride(kTileKeys / Dot::kStep), o_, dim_, a_.scratch.alpha},
                    dim_);
  }

  // In the row's own draft block a query sees its ancestors and itself, and the window counts depths.
  void mask_draft(int i, const DraftNode& node, int64_t k, int n) {
    const int64_t q = a_.item->q_begin + i;
    const int64_t prefix = a_.scratch.hi[i] - 1 - (q - node.row_begin);
    for (int64_t key = prefix > k ? prefix : k; key < k + n && key < a_.scratch.hi[i]; ++key) {
      const DraftNode& other = a_.plan->draft[node.row_begin + (key - prefix)];
      const bool ancestor = other.in <= node.in && node.in < other.out;
      const bool inside = h_.window_left < 0 || node.depth - other.depth <= h_.window_left;
      if (ancestor && inside) continue;
      for (int g = 0; g < group_; ++g) s_[(int64_t(i) * group_ + g) * kTileKeys + (key - k)] = -__builtin_inff();
    }
  }

  // cap * tanh(x / cap), in units of log2.
  TTC_INLINE Vec soft_cap(Vec x) const {
    const float cap = p_.logits_soft_cap;
    const Vec y = S::mul(x, S::set1(p_.sm_scale / cap)), y2 = S::mul(y, y);
    const Vec e = S::exp2(S::mul(y, S::set1(2 * kLog2e)));
    const Vec far = S::sub(S::set1(1), S::div(S::set1(2), S::add(S::set1(1), e)));
    Vec near = S::set1(62.f / 2835);
    for (const float c : {-17.f / 315, 2.f / 15, -1.f / 3, 1.f}) near = S::fma(near, y2, S::set1(c));
    return S::mul(S::choose(y, 0.25f, S::mul(near, y), far), S::set1(cap * kLog2e));
  }

  void softmax(int r, int padded, int begin, int end) {
    float* s = s_ + int64_t(r) * kTileKeys;
    Elem* p = prob_ + int64_t(r) * (kTileKeys / Dot::kStep);
    const bool capped = p_.logits_soft_cap != 0, masked = begin > 0 || end < padded;
    const float to_log2 = capped ? 1 : p_.sm_scale * kLog2e;  // the soft cap scales by itself
    Vec top = S::set1(-__builtin_inff());
    for (int j = 0; j < padded; j += W) {
      Vec x = S::load(s + j);
      if (capped) x = soft_cap(x);
      if (masked) x = S::keep_range(x, j, begin, end);
      if (capped || masked) S::store(s + j, x);
      top = S::max(top, x);
    }
    const float before = m_[r], tile_max = S::reduce_max(top) * to_log2;
    const float m = tile_max > before ? tile_max : before;
    // Nothing visible so far: any finite shift gives zeros, and lets a NaN through.
    const float finite_m = m == -__builtin_inff() ? 0 : m;
    Vec sum = S::zero();
    const Vec scale = S::set1(to_log2), shift = S::set1(-finite_m);
    for (int j = 0; j < padded; j += W) {
      const Vec e = S::exp2(S::fma(S::load(s + j), scale, shift));
      sum = S::add(sum, e);
      Dot::store_prob(p, j, e);
    }
    const float alpha = first_lane(S::exp2(S::set1(before - finite_m)));
    a_.scratch.alpha[r] = alpha;
    l_[r] = __builtin_fmaf(l_[r], alpha, S::reduce_add(sum));
    m_[r] = m;
  }

  static TTC_INLINE float first_lane(Vec v) {
    float x[W];
    S::store(x, v);
    return x[0];
  }

  void write() {
    for (int i = 0; i < a_.item->q_count; ++i)
      for (int g = 0; g < group_; ++g) {
        const int r = i * group_ + g;
        const float* o = o_ + int64_t(r) * dim_;
        const int64_t head = (a_.kv_head + int64_t(head_)) * group_ + g;
        if (a_.item->partial_base >= 0) {
          const int64_t slot = (a_.item->partial_base + int64_t(i)) * h_.num_q_heads + head;
          __builtin_memcpy(a_.partial_out + slot * dim_, o, size_t(dim_) * sizeof(float));
          a_.partial_ml[2 * slot] = m_[r];
          a_.partial_ml[2 * slot + 1] = l_[r];
        } else {
          finish(a_.plan->q_token[a_.item->q_begin + i], head, o, m_[r], l_[r]);
        }
      }
  }

  // out = O / l and lse = ln(sum exp) of one row; the empty state is (0, -inf).
  void finish(int64_t token, int64_t head, const float* o, float m, float l) const {
    const float inverse = l == 0 ? 0 : 1 / l;
    Src* out = static_cast<Src*>(p_.out) + token * p_.out_token_stride + head * p_.out_head_stride;
    for (int d = 0; d < dim_; d += W) store_output(out + d, S::mul(S::load(o + d), S::set1(inverse)));
    p_.lse[token * h_.num_q_heads + head] =
        l == 0 ? -__builtin_inff() : float((double(m) + __builtin_log2(double(l))) * kLn2);
  }
  static TTC_INLINE void store_output(float* p, Vec v) { S::store(p, v); }
  static TTC_INLINE void store_output(Half* p, Vec v) { S::store_half(&p->bits, v); }
  static TTC_INLINE void store_output(BFloat* p, Vec v) { S::store_bfloat(&p->bits, v); }

 public:
  // Merges one planned query's partials, in path order, for all heads.
  void merge(int64_t index) {
    const PlanView& plan = *a_.plan;
    const int64_t token = plan.q_token[plan.merge_query[index]];
    const int64_t begin = plan.merge_ptr[index], end = plan.merge_ptr[index + 1];
    for (int64_t head = 0; head < h_.num_q_heads; ++head) {
      float m = -__builtin_inff(), l = 0;
      const auto slot = [&](int64_t i) { return int64_t(plan.merge_slot[i]) * h_.num_q_heads + head; };
      for (int64_t i = begin; i < end; ++i) {
        const float mi = a_.partial_ml[2 * slot(i)];
        m = mi > m || mi != mi ? mi : m;
      }
      __builtin_memset(o_, 0, size_t(dim_) * sizeof(float));
      for (int64_t i = begin; i < end; ++i) {
        const float mi = a_.partial_ml[2 * slot(i)], li = a_.partial_ml[2 * slot(i) + 1];
        if (li == 0) continue;  // an empty partial
        const float weight = first_lane(S::exp2(S::set1(mi - m)));
        const Vec w = S::set1(weight);
        const float* part = a_.partial_out + slot(i) * dim_;
        for (int d = 0; d < dim_; d += W) S::store(o_ + d, S::fma(S::load(part + d), w, S::load(o_ + d)));
        l = __builtin_fmaf(li, weight, l);
      }
      finish(token, head, o_, m, l);
    }
  }

 private:
  const TileArgs& a_;
  const TreeAttentionParams& p_;
  const PlanHeader& h_;
  int group_, dim_, rows_, steps_;
  int head_;             // the unit's KV head that q_, o_, m_ and l_ belong to
  int64_t head_elems_;   // packed keys of one KV head
  Elem *q_, *k_, *v_, *prob_;
  float *s_, *o_, *m_, *l_;
  int64_t min_lo_, max_hi_;
};

// The entry points of an instruction set file.
template <class Dot, class Src>
void run_tile(const TileArgs& args) {
  Tile<Dot, Src>(args).run();
}
template <class Dot, class Src>
void prefetch_tile(const TileArgs& args) {
  Tile<Dot, Src>(args).prefetch();
}
template <class Dot, class Src>
void merge_query(const TileArgs& args, int64_t index) {
  Tile<Dot, Src>(args).merge(index);
}

}  // namespace ttc
