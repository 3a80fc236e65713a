// What every way of computing a tile shares: bounds, softmax, partial results, merging.
//
// A tile is a work item for some KV heads on one core. Its rows are queries x group (the GQA heads of one KV
// head, packed), for each of its KV heads. Flash attention over kTileKeys keys at a time:
//
//   S = Q K^T                       cpu_few_rows.h or cpu_panels.h
//   P, m, l = online softmax of S   here, row by row, in registers
//   O = alpha O + P V               cpu_few_rows.h or cpu_panels.h
//
// A row's bits never depend on the rows beside it, on how many there are, or on which file does the
// products: tiles of keys begin at fixed distances from the item's first key, masked keys add exact zeros,
// sums keep their order.
#pragma once

#include <cstdint>
#include <utility>

#include "tree_attention/cpu_kernels.h"
#include "tree_attention/cpu_lookahead.h"
#include "tree_attention/cpu_micro.h"

namespace ttc {

// Products with values are one run, so that a chunk's factor can be applied as they are stored.
template <class Dot>
constexpr int64_t kScoreRun = Dot::kStep == 1 ? 32 : 64;
template <class Dot>
using ScoreMicro = Micro<Dot, kScoreRun<Dot>>;
template <class Dot>
using ValueMicro = Micro<Dot, kTileKeys / Dot::kStep>;

template <class Dot, class Src, class Lookahead>
class Tile {
 protected:
  using Look = Lookahead;
  using S = typename Dot::Simd;
  using Vec = typename S::Vec;
  using Elem = typename Dot::Elem;
  static constexpr int W = S::kWidth;
  static constexpr float kLog2e = 1.4426950408889634f;
  static constexpr double kLn2 = 0.69314718055994530942;

 public:
  // computed_rows: of an item, or of a sibling, per KV head; the products compute so many if it has fewer.
  explicit Tile(const TileArgs& args, int computed_rows = 0)
      : a_(args),
        p_(*args.params),
        h_(*args.plan->header),
        lookahead_(args),
        stretch_(args.scratch.stretch),
        row_(args.scratch.row) {
    group_ = h_.num_q_heads / h_.num_kv_heads;
    dim_ = h_.head_dim;
    rows_ = args.item->q_count * group_;
    sibling_rows_ = rows_ / args.num_siblings;
    padded_rows_ = rows_ + (computed_rows > sibling_rows_ ? computed_rows - sibling_rows_ : 0);
    steps_ = dim_ / Dot::kStep;
    select(0);
  }

  // Merges one planned query's partials, in path order, for all heads.
  void merge(int64_t index) {
    const PlanView& plan = *a_.plan;
    const int64_t token = plan.q_token[plan.merge_query[index]];
    const int64_t begin = plan.merge_ptr[index], end = plan.merge_ptr[index + 1];
    for (int64_t head = 0; head < h_.num_q_heads; head += W) {
      const int heads = h_.num_q_heads - head < W ? int(h_.num_q_heads - head) : W;
      if (begin == end) clear(stretch_, heads);
      bool several = false;
      for (int64_t i = begin; i < end; ++i) {
        const int32_t entry = plan.merge_slot[i];
        const RowStates more = partial(entry < 0 ? ~entry : entry, head);
        if (entry < 0 && i > begin) end_stretch(heads, !several), several = true;
        if (entry < 0 || i == begin)
          copy(stretch_, more, heads);
        else
          fold(stretch_, more, heads);
      }
      if (several) end_stretch(heads, false);
      for (int h = 0; h < heads; ++h) finish(token, head + h, several ? row_ : stretch_, h);
    }
  }

 protected:
  // Runs the item: tile(first key, number of keys) for each tile of keys, then the results are written.
  // Returns how many rows of the next unit the caches were asked for.
  template <class Function>
  int run(Function&& tile) {
    find_bounds();
    for (int h = 0; h < a_.num_heads; ++h) {
      select(h);
      pack_queries();
    }
    const int rows = a_.num_heads * padded_rows_;
    clear(a_.scratch.item, rows);
    const int64_t end = a_.item->k_end < max_hi_ ? a_.item->k_end : max_hi_;
    int64_t k = a_.item->k_begin;
    while (k + kTileKeys <= min_lo_) k += kTileKeys;  // whole tiles below every window
    const int64_t begin = a_.item->k_begin;
    folds_ = h_.chunk == kTileKeys && begin % kStretchTokens == 0 && end > begin + kTileKeys;
    const bool several = folds_ && end > begin + kStretchTokens;
    if (folds_) clear(stretch_, rows);
    for (bool is_first = true; k < end; k += kTileKeys) {
      lookahead_.begin_tile(k, end);
      tile(k, lookahead_.keys());
      lookahead_.end_tile();
      if (several && ((k + kTileKeys) % kStretchTokens == 0 || k + kTileKeys >= end)) {
        end_stretch(rows, is_first);
        clear(stretch_, rows);
        is_first = false;
      }
    }
    for (int h = 0; h < a_.num_heads; ++h) {
      select(h);
      write(several ? row_ : folds_ ? stretch_ : a_.scratch.item);
    }
    if (a_.stream_partials) S::end_stream();
    return lookahead_.asked();
  }

  // In a deterministic plan chunks, each of them a tile, are folded within their stretch, and stretches
  // within the row, both from left to right. What begins a stretch can be folded here, the rest is left to
  // merge(): that changes nothing, for the formula is the same.

  // Where the selected head's products go: where chunks are folded, to the stretch's output at once.
  float* output() const { return folds_ ? stretch_.o + int64_t(head_) * padded_rows_ * dim_ : o_; }

  // Folds the present chunk's maxima and sums of the selected head's rows [first, first + count) into the
  // stretch; its products follow with the factors alpha of the output so far and beta of theirs.
  void fold_factors(int first, int count) {
    const int64_t row = int64_t(head_) * padded_rows_;
    for (int r = first; r < first + count; r += W) {
      const int n = first + count - r < W ? first + count - r : W;
      float old[W], add[W];
      fold_sums(stretch_.m + row + r, stretch_.l + row + r, m_ + r, l_ + r, n, old, add);
      __builtin_memcpy(alpha_ + r, old, size_t(n) * sizeof(float));
      __builtin_memcpy(beta_ + r, add, size_t(n) * sizeof(float));
      for (int i = r; i < r + n; ++i) m_[i] = -__builtin_inff(), l_[i] = 0;
    }
  }

  // Folds the stretch into the rows, of which nothing is known before the first one.
  void end_stretch(int rows, bool is_first) {
    if (is_first)
      std::swap(row_, stretch_);
    else
      fold(row_, stretch_, rows);
  }

  void copy(const RowStates& to, const RowStates& from, int rows) const {
    __builtin_memcpy(to.o, from.o, size_t(rows) * dim_ * sizeof(float));
    __builtin_memcpy(to.m, from.m, size_t(rows) * sizeof(float));
    __builtin_memcpy(to.l, from.l, size_t(rows) * sizeof(float));
  }

  // Takes the states of more keys into others; into an empty state they come bit for bit.
  void fold(const RowStates& into, const RowStates& more, int rows) const {
    for (int r0 = 0; r0 < rows; r0 += W) {
      const int n = rows - r0 < W ? rows - r0 : W;
      float old[W], add[W];
      fold_sums(into.m + r0, into.l + r0, more.m + r0, more.l + r0, n, old, add);
      for (int r = 0; r < n; ++r) {
        float *const o = into.o + int64_t(r0 + r) * dim_, *const from = more.o + int64_t(r0 + r) * dim_;
        const Vec vold = S::set1(old[r]), vadd = S::set1(add[r]);
        for (int d = 0; d < dim_; d += W)
          S::store(o + d, S::fma(S::load(from + d), vadd, S::mul(S::load(o + d), vold)));
      }
    }
  }

  // The same for up to W rows' maxima and sums; gives the factors of the outputs.
  static TTC_INLINE void fold_sums(float* m, float* l, const float* more_m, const float* more_l, int n, float* old,
                                   float* add) {
    for (int r = 0; r < W; ++r) old[r] = add[r] = 0;
    for (int r = 0; r < n; ++r) {
      const float more = more_m[r], before = m[r], top = more > before || more != more ? more : before;
      const bool empty = more_l[r] == 0;
      old[r] = empty ? 0 : before - top;
      add[r] = empty ? -__builtin_inff() : more - top;
      if (!empty) m[r] = top;
    }
    S::store(old, S::exp2(S::load(old)));
    S::store(add, S::exp2(S::load(add)));
    for (int r = 0; r < n; ++r) l[r] = __builtin_fmaf(more_l[r], add[r], l[r] * old[r]);
  }

  void clear(const RowStates& states, int rows) const {
    for (int r = 0; r < rows; ++r) states.m[r] = -__builtin_inff(), states.l[r] = 0;
    __builtin_memset(states.o, 0, size_t(rows) * dim_ * sizeof(float));
  }

  // Points the state at the unit's h-th KV head, at its rows from `first` on.
  void select(int h, int first = 0) {
    head_ = h;
    const int64_t row = int64_t(h) * padded_rows_ + first;
    q_ = reinterpret_cast<Elem*>(a_.scratch.q) + row * steps_;
    use_scores(row);
    o_ = a_.scratch.item.o + row * dim_;
    m_ = a_.scratch.item.m + row;
    l_ = a_.scratch.item.l + row;
    alpha_ = a_.scratch.alpha + row;
    beta_ = a_.scratch.beta + row;
  }

  // Scores and probabilities stand in the scratch from its given row on; in fp32 they share a place.
  void use_scores(int64_t row) {
    s_ = a_.scratch.s + row * kTileKeys;
    prob_ = Dot::kStep == 1 ? reinterpret_cast<Elem*>(s_)
                            : reinterpret_cast<Elem*>(a_.scratch.p) + row * (kTileKeys / Dot::kStep);
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
    __builtin_memset(q_ + int64_t(rows_) * steps_, 0, size_t(padded_rows_ - rows_) * steps_ * sizeof(Elem));
  }

  static int padded(int n) { return (n + W - 1) / W * W; }

  // Scores of `count` queries to probabilities, and the factors that their outputs so far shrink by.
  // The scores of query `first` stand at s_. Several rows at a time, so that they need not wait for each
  // other's sums.
  void softmax_rows(int first, int count, int64_t k, int n) {
    for (int i = first; a_.item->has_draft && i < first + count; ++i)
      if (const DraftNode* d = draft(a_.item->q_begin + i)) mask_draft(i, (i - first) * group_, *d, k, n);
    const int rows = count * group_;
    int r = 0;
    for (; r + 4 <= rows; r += 4) softmax<4>(first, r, k, n);
    for (; r < rows; ++r) softmax<1>(first, r, k, n);
  }

 private:
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

  // In the row's own draft block a query sees its ancestors and itself, and the window counts depths.
  // The scores of query i stand at `row`.
  void mask_draft(int i, int row, const DraftNode& node, int64_t k, int n) {
    const int64_t q = a_.item->q_begin + i;
    const int64_t prefix = a_.scratch.hi[i] - 1 - (q - node.row_begin);
    for (int64_t key = prefix > k ? prefix : k; key < k + n && key < a_.scratch.hi[i]; ++key) {
      const DraftNode& other = a_.plan->draft[node.row_begin + (key - prefix)];
      const bool ancestor = other.in <= node.in && node.in < other.out;
      const bool inside = h_.window_left < 0 || node.depth - other.depth <= h_.window_left;
      if (ancestor && inside) continue;
      for (int g = 0; g < group_; ++g) s_[(row + g) * kTileKeys + (key - k)] = -__builtin_inff();
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

  // Rows [row, row + N) of the scores at hand, which begin with query `first`.
  template <int N>
  void softmax(int first, int row, int64_t k, int n) {
    float* s = s_ + row * kTileKeys;
    Elem* p = prob_ + row * (kTileKeys / Dot::kStep);
    const int padded = Tile::padded(n), state = first * group_ + row;
    int begin[N], end[N];
    bool masked = false;
    for (int r = 0; r < N; ++r) {
      const int i = (state + r) / group_;
      const int64_t lo = a_.scratch.lo[i] - k, hi = a_.scratch.hi[i] - k;
      begin[r] = lo < 0 ? 0 : (lo > n ? n : int(lo));
      end[r] = hi > n ? n : (hi < 0 ? 0 : int(hi));
      masked |= begin[r] > 0 || end[r] < padded;
    }
    const bool capped = p_.logits_soft_cap != 0;
    const float to_log2 = capped ? 1 : p_.sm_scale * kLog2e;  // the soft cap scales by itself
    Vec top[N];
    for (int r = 0; r < N; ++r) top[r] = S::set1(-__builtin_inff());
    for (int j = 0; j < padded; j += W)
#pragma GCC unroll 4
      for (int r = 0; r < N; ++r) {
        float* at = s + r * kTileKeys + j;
        Vec x = S::load(at);
        if (capped) x = soft_cap(x);
        if (masked) x = S::keep_range(x, j, begin[r], end[r]);
        if (capped || masked) S::store(at, x);
        top[r] = S::max(top[r], x);
      }
    Vec shift[N], sum[N];
    float change[W] = {};
    for (int r = 0; r < N; ++r) {
      const float before = m_[state + r], tile_max = S::reduce_max(top[r]) * to_log2;
      const float m = tile_max > before ? tile_max : before;
      // Nothing visible so far: any finite shift gives zeros, and lets a NaN through.
      const float finite_m = m == -__builtin_inff() ? 0 : m;
      m_[state + r] = m;
      change[r] = before - finite_m;
      shift[r] = S::set1(-finite_m);
      sum[r] = S::zero();
    }
    const Vec scale = S::set1(to_log2);
    for (int j = 0; j < padded; j += W)
#pragma GCC unroll 4
      for (int r = 0; r < N; ++r) {
        const Vec e = S::exp2(S::fma(S::load(s + r * kTileKeys + j), scale, shift[r]));
        sum[r] = S::add(sum[r], e);
        Dot::store_prob(p + r * (kTileKeys / Dot::kStep), j, e);
      }
    float alpha[W];
    S::store(alpha, S::exp2(S::load(change)));
    for (int r = 0; r < N; ++r) {
      alpha_[state + r] = alpha[r];
      l_[state + r] = __builtin_fmaf(l_[state + r], alpha[r], S::reduce_add(sum[r]));
    }
  }

  static TTC_INLINE float first_lane(Vec v) {
    float x[W];
    S::store(x, v);
    return x[0];
  }

  // Where the partials of a slot stand, from a head on.
  RowStates partial(int64_t slot, int64_t head) const {
    const int64_t row = slot * h_.num_q_heads + head;
    return {a_.partials.o + row * dim_, a_.partials.m + row, a_.partials.l + row};
  }

  // Of the i-th query's partial; -1: there is none.
  int64_t slot_of(int i) const {
    const int queries = a_.sibling_queries(), sibling = i / queries;
    const int64_t base = (a_.num_siblings == 1 ? a_.item : a_.siblings + sibling)->partial_base;
    return base < 0 ? -1 : base + (i - sibling * queries);
  }

  // The selected head's states.
  void write(const RowStates& states) {
    for (int i = 0; i < a_.item->q_count; ++i) {
      const int64_t slot = slot_of(i);
      for (int g = 0; g < group_; ++g) {
        const int64_t r = int64_t(head_) * padded_rows_ + i * group_ + g;
        const float* o = states.o + r * dim_;
        const int64_t head = (a_.kv_head + int64_t(head_)) * group_ + g;
        if (slot >= 0) {
          const RowStates to = partial(slot, head);
          if (a_.stream_partials)
            for (int d = 0; d < dim_; d += W) S::stream(to.o + d, S::load(o + d));
          else
            __builtin_memcpy(to.o, o, size_t(dim_) * sizeof(float));
          *to.m = states.m[r];
          *to.l = states.l[r];
        } else {
          finish(a_.plan->q_token[a_.item->q_begin + i], head, states, r);
        }
      }
    }
  }

  // out = O / l and lse = ln(sum exp) of row r; the empty state is (0, -inf).
  void finish(int64_t token, int64_t head, const RowStates& states, int64_t r) const {
    const float *const o = states.o + r * dim_, m = states.m[r], l = states.l[r];
    const float inverse = l == 0 ? 0 : 1 / l;
    Src* out = static_cast<Src*>(p_.out) + token * p_.out_token_stride + head * p_.out_head_stride;
    for (int d = 0; d < dim_; d += W) store_output(out + d, S::mul(S::load(o + d), S::set1(inverse)));
    p_.lse[token * h_.num_q_heads + head] =
        l == 0 ? -__builtin_inff() : float((double(m) + __builtin_log2(double(l))) * kLn2);
  }
  static TTC_INLINE void store_output(float* p, Vec v) { S::store(p, v); }
  static TTC_INLINE void store_output(Half* p, Vec v) { S::store_half(&p->bits, v); }
  static TTC_INLINE void store_output(BFloat* p, Vec v) { S::store_bfloat(&p->bits, v); }

 protected:
  const TileArgs& a_;
  const TreeAttentionParams& p_;
  const PlanHeader& h_;
  Lookahead lookahead_;
  int group_, dim_, rows_, sibling_rows_, padded_rows_, steps_;
  int head_;  // the unit's KV head that the pointers below belong to
  Elem *q_, *prob_;
  float *s_, *o_, *m_, *l_, *alpha_, *beta_;
  bool folds_ = false;
  RowStates stretch_, row_;  // of the unit's KV heads one after the other, padded_rows_ each

 private:
  int64_t min_lo_, max_hi_;
};

}  // namespace ttc
