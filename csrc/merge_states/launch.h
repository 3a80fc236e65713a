#pragma once

#include <cuda_runtime_api.h>

#include "merge_states/merge_states.h"

namespace ttc {

cudaError_t merge_states_cuda(const MergeStatesParams& params, cudaStream_t stream);

}  // namespace ttc
