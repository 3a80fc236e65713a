#pragma once

#include <cuda_runtime_api.h>

#include "verify/verify.h"

namespace ttc {

cudaError_t row_descriptor_cuda(const RowDescriptorParams& params, cudaStream_t stream);
cudaError_t sample_tokens_cuda(const SampleTokensParams& params, cudaStream_t stream);
cudaError_t sample_children_cuda(const SampleChildrenParams& params, cudaStream_t stream);
cudaError_t token_logprobs_cuda(const TokenLogprobsParams& params, cudaStream_t stream);

// drawn: null, or [num_nodes] where every row's token is to be put before the walk, for the sampled rule.
// eager: every row is described (and drawn) by a block of its own, side by side, before the walk; else
// a request's block does so with the rows that it comes to, one after the other. The results are equal.
cudaError_t verify_cuda(const VerifyParams& params, bool eager, int32_t* drawn, cudaStream_t stream);

}  // namespace ttc
