// Step scores of a process reward model, their aggregates along paths, and the choice of survivors.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/parallel.h"

namespace ttc {

// A dense row-major matrix of any of the three float types.
struct Matrix {
  const void* data;
  Dtype dtype;
  int64_t rows;
  int64_t cols;
};

enum class HeadKind { kTwoLogit, kValue, kRaw, kTokenPair, kSoftmax };

struct ScoreStepsParams {
  const char* hidden;        // [num_tokens, width], dense last dimension
  int64_t hidden_stride;     // bytes between tokens
  int64_t num_tokens;
  Dtype hidden_dtype;
  const int32_t* rows;       // [num_steps], all in range
  int64_t num_steps;
  int64_t width;
  HeadKind kind;
  Matrix layers[2];          // kTwoLogit: [inner, width], [2, inner]; else one of [outputs, width]
  const float* biases[2];    // [layers[i].rows] or null
  const float* good;         // kSoftmax: [outputs], 1 where the output counts as good, else 0
  const float* norm_weight;  // [width], null for no norm
  float norm_eps;
  float* scores;             // [num_steps]
};

// What is kept of a path of steps. Sums are integers (score_math.h), so the order of adding is free.
struct PathStats {
  float* stats;    // [4, count]: min, prod, mean, last
  int64_t* state;  // [3, count]: sum of logarithms, sum of scores, number of steps
  int64_t count;
};

struct AggregateStepsParams {
  const float* scores;        // [out.count]
  const int32_t* parent;      // [out.count]: -1, an entry of carry, or carry.count + an earlier step
  const float* carry_stats;   // [4, carry_count], null if carry_count is 0
  const int64_t* carry_state;  // [3, carry_count]
  int64_t carry_count;
  PathStats out;
};

struct SelectTopkParams {
  const float* scores;          // [num_scores]
  int64_t num_scores;
  const int32_t* group_indptr;  // [num_groups + 1]
  int64_t num_groups;
  int64_t k;
  int32_t* selected;            // [num_groups, k]
};

void score_steps(const ScoreStepsParams& params, ParallelFor parallel_for);
void aggregate_steps(const AggregateStepsParams& params);
void select_topk(const SelectTopkParams& params, ParallelFor parallel_for);

}  // namespace ttc
