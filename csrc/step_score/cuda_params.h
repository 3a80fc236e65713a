// What the CUDA kernels of step scores are launched with.
#pragma once

#include "step_score/step_score.h"

namespace ttc {

// Outputs of the first layer are summed up in an order that the head alone decides:
//
//   outputs   0..7  8..15 | 16..23  24..31 | ...     groups of 8
//   shares    group + group | group + group | ...     2 groups each, more if there are many outputs
//   segments  32 shares
//   score     all segments
constexpr int64_t kGroupOutputs = 8;
constexpr int64_t kSegmentShares = 32;
constexpr int64_t kMaxShares = 1024;

// What an output range contributes to a score: two sums, or the largest logit and two sums of a softmax.
constexpr int64_t kShareFloats = 3;

struct ScoreCudaParams {
  ScoreStepsParams score;
  int64_t share_groups;  // groups to a share
  int64_t num_shares;
  float* shares;      // [num_shares + segments][num_steps][kShareFloats]
  int32_t* arrivals;  // [row tiles][segments + 1], and one more; zero
  bool is_round;
  AggregateStepsParams aggregate;  // both for a round only
  SelectTopkParams select;
};

}  // namespace ttc
