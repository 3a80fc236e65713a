#pragma once

#include <cuda_runtime_api.h>

#include "step_score/step_score.h"

namespace ttc {

// What score_steps_cuda and score_round_cuda want beside their parameters.
struct ScoreWorkspace {
  int64_t floats;
  int64_t ints;
};
ScoreWorkspace score_workspace(const ScoreStepsParams& params);

cudaError_t score_steps_cuda(const ScoreStepsParams& params, float* floats, int32_t* ints, cudaStream_t stream);
// The bits of score_steps_cuda, aggregate_steps_cuda and select_topk_cuda one after the other.
cudaError_t score_round_cuda(const ScoreStepsParams& score, const AggregateStepsParams& aggregate,
                             const SelectTopkParams& select, float* floats, int32_t* ints, cudaStream_t stream);
cudaError_t aggregate_steps_cuda(const AggregateStepsParams& params, cudaStream_t stream);
cudaError_t select_topk_cuda(const SelectTopkParams& params, cudaStream_t stream);

}  // namespace ttc
