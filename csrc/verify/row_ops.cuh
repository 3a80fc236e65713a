// The ops of single rows on a GPU: a block to a row.
#pragma once

#include "verify/race.cuh"

namespace ttc {

// One block to an SM: the rows in flight, 40 MB of them at 152k tokens of 16 bits, have to stay in the
// second-level cache from one pass to the next.
constexpr int kRowThreads = 768;

__global__ void __launch_bounds__(kRowThreads, 1) row_descriptor_kernel(const __grid_constant__ RowDescriptorParams p) {
  auto& s = *reinterpret_cast<SelectScratch*>(dynamic_smem());
  const int64_t r = blockIdx.x;
  const Descriptor found = describe_row(p.logits, p.filters, r, s);
  if (threadIdx.x != 0) return;
#pragma unroll
  for (int i = 0; i < kDescriptorColumns; ++i) p.descriptors[r * kDescriptorColumns + i] = found.column[i];
}

__device__ __forceinline__ int32_t sample_row(const LogitRows& logits, const float* descriptors, int64_t r,
                                              int64_t seed, int64_t position, ReduceScratch& s) {
  const RowDist d = row_dist(descriptors + r * kDescriptorColumns);
  if (d.argmax < 0) return -1;
  const PhiloxStream stream =
      philox_stream(static_cast<uint64_t>(seed), static_cast<uint64_t>(position), RandomDomain::kTarget, 0);
  return race_row(logits, r, d, stream, s);
}

__global__ void __launch_bounds__(kRowThreads, 1) sample_tokens_kernel(const __grid_constant__ SampleTokensParams p) {
  auto& s = *reinterpret_cast<ReduceScratch*>(dynamic_smem());
  const int64_t r = blockIdx.x;
  const int32_t token = sample_row(p.logits, p.descriptors, r, p.seeds[r], p.positions[r], s);
  if (threadIdx.x == 0) p.tokens[r] = token;
}

// A block to a token.
__global__ void __launch_bounds__(kRowThreads, 1) token_logprobs_kernel(const __grid_constant__ TokenLogprobsParams p) {
  auto& s = *reinterpret_cast<ReduceScratch*>(dynamic_smem());
  const int64_t i = blockIdx.x;
  const int64_t r = p.rows[i], token = p.tokens[i];
  const bool there = r >= 0 && r < p.logits.num_rows && token >= 0 && token < p.logits.vocab_size;
  float processed = 0.0f, raw = 0.0f;
  if (there) {
    const RowDist d = row_dist(p.descriptors + r * kDescriptorColumns);
    processed = d.argmax < 0 ? kLowest : log_probability(d, one_logit(p.logits, r, token), token);
    if (p.raw != nullptr) {
      RowView row = row_view(p.logits, r);
      row.bitmask = nullptr;
      const RowTop top = find_top(row, s);
      raw = kLowest;
      if (top.argmax >= 0) {
        const int64_t mass = mass_of_all(row, top.max, 1.0f, s);
        raw = (plain_logit(row, token) - top.max) - log_fp32(static_cast<float>(mass) * 0x1p-40f);
      }
    }
  }
  if (threadIdx.x != 0) return;
  p.processed[i] = processed;
  if (p.raw != nullptr) p.raw[i] = raw;
}

// What the row of every draft node gives, before the walk: nodes without a tree get anything.
__global__ void __launch_bounds__(kRowThreads, 1)
    draw_nodes_kernel(const __grid_constant__ VerifyParams p, int32_t* drawn) {
  auto& s = *reinterpret_cast<ReduceScratch*>(dynamic_smem());
  const int64_t row = blockIdx.x;
  int64_t b = 0;  // the last request that begins at or before the row
  for (int64_t end = p.num_requests; end - b > 1;) {
    const int64_t middle = (b + end) / 2;
    (p.cu_nodes[middle] <= row ? b : end) = middle;
  }
  const int64_t begin = p.cu_nodes[b];
  int64_t depth = row - begin;
  if (p.parent != nullptr) {
    depth = 0;
    for (int64_t v = row - begin, u; depth < kMaxDraftNodes; v = u, ++depth) {
      u = p.parent[begin + v];
      if (u < 0 || u >= v) break;
    }
  }
  const int32_t token = sample_row(p.logits, p.descriptors, row, p.seeds[b], p.positions[b] + depth, s);
  if (threadIdx.x == 0) drawn[row] = token;
}

}  // namespace ttc
