// How many threads take a row, and the launch of a block for each of them.
#pragma once

#include "common/cuda_launch.cuh"
#include "verify/row_math.h"

namespace ttc {

// Two pieces for each thread, as far as a block goes.
inline unsigned row_threads(int64_t vocab_size, int64_t most) {
  const int64_t wanted = (vocab_size + 511) / 512 * 32;
  return static_cast<unsigned>(wanted < most ? wanted : most);
}

}  // namespace ttc
