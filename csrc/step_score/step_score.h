// Step scores of a process reward model from gathered hidden states.
#pragma once

#include <cstdint>

#include "common/convert.h"
#include "common/parallel.h"

namespace ttc {

// A dense row-major matrix of any of the three float types.
struct Matrix {
  const void* data;
  Dtype dtype;
  int64_t rows;
  int64_t cols;
};

enum class HeadKind { kTwoLogit, kValue, kTokenPair };

struct ScoreStepsParams {
  const char* hidden;        // [num_tokens, width], dense last dimension
  int64_t hidden_stride;     // bytes between tokens
  Dtype hidden_dtype;
  const int32_t* rows;       // [num_steps], all in range
  int64_t num_steps;
  int64_t width;
  HeadKind kind;
  Matrix layers[2];          // kTwoLogit: [inner, width], [2, inner]; else one of [1 or 2, width]
  const float* biases[2];    // [layers[i].rows] or null
  const float* norm_weight;  // [width], null for no norm
  float norm_eps;
  float* scores;             // [num_steps]
};

void score_steps(const ScoreStepsParams& params, ParallelFor parallel_for);

}  // namespace ttc
