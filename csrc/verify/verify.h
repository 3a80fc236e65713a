// Filtered distributions over the vocabulary, described in a few floats, and tokens drawn from
// them.
#pragma once

#include <cstdint>

#include "common/convert.h"
#include "common/parallel.h"

namespace ttc {

// Columns of a row descriptor, fp32. With it, for token i of a row with logit l:
//   kept      l > pivot, or l == pivot and i < tie_end
//   p(i)      exp((l - max) / temperature - log_z) if kept, else 0
// temperature 0 is greedy: only argmax is kept. A row without a distribution (a NaN, a +inf, or
// nothing above -inf) has argmax -1 and keeps nothing.
enum DescriptorColumn {
  kTemperature,
  kPivot,
  kTieEnd,    // the tie quota, as an index: where the kept logits equal to pivot end
  kLogZ,      // log of the sum of exp((l - max) / temperature) over the kept tokens
  kArgmax,    // lower index first
  kMax,
  kNumKept,
  kLogZAll,   // kLogZ before the filters
  kDescriptorColumns,
};

// Logits [num_rows, vocab_size], dense last dimension.
struct LogitRows {
  const char* data;
  int64_t stride;  // bytes between rows
  Dtype dtype;
  int64_t num_rows;
  int64_t vocab_size;  // at most 2^24: indices are kept in fp32
};

struct RowDescriptorParams {
  LogitRows logits;
  const float* temperature;  // all [num_rows]
  const int32_t* top_k;      // 0 = off
  const float* top_p;        // 1 = off
  const float* min_p;        // 0 = off
  float* descriptors;        // [num_rows, kDescriptorColumns]
};

void row_descriptor(const RowDescriptorParams& params, ParallelFor parallel_for);

struct SampleTokensParams {
  LogitRows logits;
  const float* descriptors;
  const int64_t* seeds;      // [num_rows], any bits
  const int64_t* positions;  // [num_rows], in [0, 2^56)
  int32_t* tokens;           // [num_rows], -1 for a row without a distribution
};

void sample_tokens(const SampleTokensParams& params, ParallelFor parallel_for);

}  // namespace ttc
