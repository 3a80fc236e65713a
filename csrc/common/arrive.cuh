// How blocks of one launch find out who finishes what they have all contributed to: whoever arrives last.
#pragma once

#include "common/ptx.cuh"

namespace ttc {

// Counts a block in; all of its threads call it. True in the block that is the last of `expected`: it sees
// what the others wrote before their call, if it reads past L1 (ptx::load_l2_*). counter: zero before the
// launch. flag: an int of shared memory that nothing else uses.
__device__ __forceinline__ bool last_to_arrive(int32_t* counter, int32_t expected, int32_t* flag) {
  ptx::threadfence();
  __syncthreads();
  if (threadIdx.x == 0) *flag = expected == 1 || ptx::atomic_add_acq_rel(counter, 1) == expected - 1;
  __syncthreads();
  return *flag != 0;
}

}  // namespace ttc
