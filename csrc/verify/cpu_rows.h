// What the CPU ops share: the row loops for this machine, and rows as fp32.
#pragma once

#include <cmath>
#include <vector>

#include "common/convert.h"
#include "verify/row_kernels.h"
#include "verify/verify.h"

namespace ttc {

// The loops of row_kernels.h, compiled for one instruction set.
struct RowKernels {
  RowMax (*find_max)(const float*, int64_t);
  void (*fixed_weights)(const float*, int64_t, float, float, int64_t*);
  void (*assign_bins)(const float*, int64_t, float, float, int32_t, int32_t*);
  KeptSums (*sum_kept)(const float*, int64_t, float, float, float, int32_t);
  Winner (*race_row)(const Race&, const float*, int64_t);
  int64_t (*top_scores)(const Race&, const float*, int64_t, int64_t, Winner*);
  int64_t (*top_scores_with_noise)(const Race&, const float*, int64_t, int64_t, Winner*);
  int64_t (*residual_mass)(const RowDist&, const float*, const RowDist&, const float*, int64_t,
                           float);
  int64_t (*entropy_mass)(const RowDist&, const float*, int64_t);
};

const RowKernels& row_kernels();

// The row as fp32: itself, or widened into `buffer`; what the bitmask forbids is -inf.
const float* fp32_row(const LogitRows& logits, int64_t r, std::vector<float>& buffer);

void describe_row(const LogitRows& logits, const RowFilters& filters, int64_t r, const float* row,
                  float* desc);

inline float one_logit(const LogitRows& logits, int64_t r, int64_t token) {
  if (!is_allowed(logits, r, token)) return -std::numeric_limits<float>::infinity();
  const int64_t size = dtype_bytes(logits.dtype);
  float value;
  widen(logits.dtype, logits.data + r * logits.stride + token * size, 1, &value);
  return value;
}

}  // namespace ttc
