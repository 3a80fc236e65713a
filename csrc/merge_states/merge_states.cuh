// merge_states on a GPU. Neighbouring threads take the 16-byte pieces of a row; each adds up the
// states in their order, so that a result depends on nothing but its own row.
//
//   outs [n][rows][D]      state 0   |t0|t1|..|t15|      one row of 128 halves: 16 threads
//                          state 1   |t0|t1|..|t15|      each thread reads its piece of every state
//                          ...
//   lses [n][rows]         read by all threads of a row: one transaction
#pragma once

#include <cmath>

#include "common/cuda_types.cuh"
#include "merge_states/merge_states.h"

namespace ttc {

constexpr int kMergeThreads = 128;

// T: the dtype of outs. kPiece: elements that a thread reads at once.
template <class T, int kPiece>
__global__ void __launch_bounds__(kMergeThreads) merge_states_kernel(const __grid_constant__ MergeStatesParams p) {
  const int pieces = static_cast<int>(p.head_dim) / kPiece;  // to a row
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kMergeThreads + threadIdx.x;
  const int64_t row = index / pieces;
  const int piece = static_cast<int>(index - row * pieces);
  if (row >= p.num_rows) return;

  float max = -INFINITY;
  for (int64_t s = 0; s < p.num_states; ++s) max = fmaxf(max, p.lses[s * p.num_rows + row]);
  float sum[kPiece] = {};
  float total = 0.0f;
  for (int64_t s = 0; s < p.num_states; ++s) {
    const float lse = p.lses[s * p.num_rows + row];
    if (lse == -INFINITY) continue;  // its output is not read: it need not be a number
    const float weight = expf(lse - max);
    const int64_t at = (s * p.num_rows + row) * p.head_dim + piece * kPiece;
    const auto part = load_vector<T, kPiece>(static_cast<const T*>(p.outs) + at);
    for (int i = 0; i < kPiece; ++i) sum[i] += weight * to_float(part[i]);
    total += weight;
  }
  const float scale = total == 0.0f ? 0.0f : 1.0f / total;
  Vector<T, kPiece> out;
  for (int i = 0; i < kPiece; ++i) out[i] = from_float<T>(sum[i] * scale);
  store_vector(static_cast<T*>(p.out) + row * p.head_dim + piece * kPiece, out);
  if (piece == 0) p.lse[row] = total == 0.0f ? -INFINITY : max + logf(total);
}

}  // namespace ttc
