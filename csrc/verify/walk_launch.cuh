// The launch of one rule's walk; walk*.cu make the instances, in several files to be compiled side by
// side.
#pragma once

#include "verify/row_launch.cuh"
#include "verify/walk.cuh"

namespace ttc {

template <VerifyRule kRule>
cudaError_t launch_walk(const VerifyParams& p, const int32_t* drawn, cudaStream_t stream) {
  return launch_kernel(verify_kernel<kRule>, dim3(static_cast<unsigned>(p.num_requests)),
                       dim3(row_threads(p.logits.vocab_size, kWalkThreads)), sizeof(WalkBlock<WhenDescribed<kRule>>),
                       stream, p, drawn);
}

}  // namespace ttc
