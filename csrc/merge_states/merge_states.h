// Combines attention states over disjoint sets of keys.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/parallel.h"

namespace ttc {

struct MergeStatesParams {
  const void* outs;   // [num_states, num_rows, head_dim]
  const float* lses;  // [num_states, num_rows], natural log, -inf for an empty state
  void* out;          // [num_rows, head_dim]
  float* lse;         // [num_rows]
  Dtype dtype;        // of outs and out
  int64_t num_states;
  int64_t num_rows;
  int64_t head_dim;
};

void merge_states(const MergeStatesParams& params, ParallelFor parallel_for);

}  // namespace ttc
