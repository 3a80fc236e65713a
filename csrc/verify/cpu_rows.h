// What the CPU ops share: the row loops for this machine, and one row with what is known of it.
#pragma once

#include <vector>

#include "verify/row_kernels.h"
#include "verify/verify.h"

namespace ttc {

// The loops of row_kernels.h, compiled for one instruction set.
struct RowKernels {
  RowScan (*scan_row)(const RowView&, float, float*);
  Specials (*count_specials)(const RowView&);
  int64_t (*sum_weights)(const RowView&, const RowScan&, float, const float*);
  MassBounds (*bound_weights)(const RowView&, const RowScan&, float, const float*);
  int64_t (*compact)(const float*, int64_t, int64_t, float, float*, int32_t*);
  int64_t (*compact_blocks)(const RowView&, const int32_t*, int64_t, float, float*, int32_t*);
  void (*fixed_weights)(const float*, int64_t, float, float, int64_t*);
  Winner (*race_row)(const Race&);
  int64_t (*top_scores)(const Race&, int64_t, Winner*);
  int64_t (*top_scores_with_noise)(const Race&, int64_t, Winner*);
  int64_t (*residual_mass)(const RowDist&, const RowView&, const RowDist&, const RowView&, float);
  int64_t (*entropy_mass)(const RowDist&, const RowView&);
};

const RowKernels& row_kernels();

inline RowView row_view(const LogitRows& logits, int64_t r) {
  const int32_t* mask = logits.bitmask == nullptr ? nullptr : logits.bitmask + r * logits.mask_words;
  return {logits.data + r * logits.stride, logits.dtype, logits.vocab_size, mask};
}

inline float one_logit(const LogitRows& logits, int64_t r, int64_t token) {
  if (!is_allowed(logits, r, token)) return kLowest;
  const int64_t size = dtype_bytes(logits.dtype);
  float value;
  widen(logits.dtype, logits.data + r * logits.stride + token * size, 1, &value);
  return value;
}

// Two distributions that a row's own lies between: it keeps what `strict` keeps and nothing that
// `generous` does not, and gives a token no less than `strict` and no more than `generous` gives it.
struct DistBounds {
  RowDist strict, generous;
};

// Whether bounding row r looks at the sum of its weights: of k tokens, and of those above a logit, that is
// the sum of a few candidates. n: tokens. with_mass: as for Row::bound.
bool bound_needs_sum(const RowFilters& filters, int64_t r, int64_t n, bool with_mass);

// A thread's view of one row after the other: the largest logit of each block, found when the row is
// opened, and the candidates of a cut.
class Row {
 public:
  // The tops are kept for as long as the same row is opened again. `next` is the row that is likely to be
  // opened then, or null: it is fetched from memory by all that passes over this one.
  // scale: that of the weights whose sum is to be estimated in passing, 0: none.
  void open(const LogitRows& logits, int64_t r, const char* next = nullptr, float scale = 0.0f);

  const RowView& view() const { return view_; }
  float max() const { return scan_.max; }
  // The lowest index of the largest logit; -1: the row has no distribution.
  int64_t argmax();

  void describe(const RowFilters& filters, int64_t r, float* desc);
  // What can be said of the row without the sum of its weights, which takes longer than all else. False:
  // nothing. with_mass: `strict` and `generous` also bound probabilities, not only what is kept.
  bool bound(const RowFilters& filters, int64_t r, bool with_mass, DistBounds& bounds);
  Race race(const RowDist& target) const;

  int64_t sum_weights(float inv_temperature) const {
    return row_kernels().sum_weights(view_, scan_, inv_temperature, tops_.data());
  }

 private:
  struct Kept {
    int64_t count, mass;
  };

  int64_t count_finite() const;
  void collect_within(float reach, float inv_temperature);
  void collect(float least, float inv_temperature);
  bool cut_of(const RowFilters& filters, int64_t r, float inv_temperature, int64_t total, Cut& cut);
  // The cut of a row whose weights sum to `total`, which top-p alone looks at.
  Cut find_cut(const RowFilters& filters, int64_t r, float inv_temperature, int64_t total);
  bool cut_after(bool by_mass, int64_t target, float inv_temperature, Cut& cut, Kept& kept);
  Kept kept_by(const Cut& cut, float inv_temperature);

  RowView view_;
  Ahead ahead_;
  RowScan scan_ = {};
  std::vector<float> tops_;
  // The size_ tokens with logits from least_ on, in rising order of their index.
  float least_ = 0;
  int64_t size_ = 0;
  std::vector<float> logits_;
  std::vector<int32_t> indices_, bins_;
  std::vector<int64_t> weights_;
};

}  // namespace ttc
