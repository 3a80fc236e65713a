// sample_children on a GPU: a block chooses the children of a row.
//
//   pass 1   every thread finds its own first place; the k-th of them bounds the k-th of all
//   pass 2   what lies before the bound is collected, a little more than k tokens, and ranked
//
// Should that be more tokens than there is room for (ties), or when children are drawn independently, the
// row is raced once for each child.
#pragma once

#include "verify/race.cuh"

namespace ttc {

constexpr int kChildThreads = 384;

struct ChildScratch : ReduceScratch {  // shared
  uint64_t found[kCandidates];
  uint64_t bound;
  uint32_t count;
};

class ChildWriter {
 public:
  __device__ ChildWriter(const SampleChildrenParams& p, int64_t r, const RowDist& d) : p_(p), r_(r), d_(d) {}

  __device__ __forceinline__ void write(int64_t i, int32_t token, float score) const {
    const int64_t at = r_ * p_.k + i;
    p_.tokens[at] = token;
    p_.logprobs[at] = token < 0 ? kLowest : log_probability(d_, one_logit(p_.logits, r_, token), token);
    p_.scores[at] = token < 0 ? kLowest : score;
  }

  __device__ __forceinline__ void write(int64_t i, uint64_t place) const {
    if (place == kNoPlace) {
      write(i, -1, kLowest);
    } else {
      write(i, index_at(place), value_at(place));
    }
  }

 private:
  const SampleChildrenParams& p_;
  const int64_t r_;
  const RowDist& d_;
};

// How many of the places come before this one.
__device__ __forceinline__ int64_t rank_of(uint64_t place, const uint64_t* places, int count) {
  int64_t rank = 0;
  for (int j = 0; j < count; ++j) rank += places[j] < place;
  return rank;
}

// The first k places, written; false if there was no room.
template <bool kNoise>
__device__ __forceinline__ bool choose_first(const RowView& row, const RowDist& d, const PhiloxStream& stream,
                                             int64_t k, const ChildWriter& out, ChildScratch& s) {
  const auto scaled_logit = [](int, float, float scaled) { return scaled; };
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  uint64_t mine = kNoPlace;
  float to_beat = kLowest;
  for_scores<kNoise>(row, d, stream, to_beat, scaled_logit, [&](uint64_t place) {
    if (place < mine) mine = place, to_beat = value_at(place);
  });
  s.found[thread] = mine;
  if (thread == 0) s.bound = kNoPlace, s.count = 0;
  __syncthreads();
  if (mine != kNoPlace && rank_of(mine, s.found, threads) == k - 1) s.bound = mine;
  __syncthreads();
  const uint64_t bound = s.bound;
  const float least = bound == kNoPlace ? kLowest : value_at(bound);
  for_scores<kNoise>(row, d, stream, least, scaled_logit, [&](uint64_t place) {
    if (place > bound) return;
    const uint32_t slot = atomicAdd(&s.count, 1u);
    if (slot < kCandidates) s.found[slot] = place;
  });
  __syncthreads();
  if (s.count > kCandidates) return false;
  const int count = static_cast<int>(s.count);
  for (int i = thread; i < count; i += threads) {
    const int64_t rank = rank_of(s.found[i], s.found, count);
    if (rank < k) out.write(rank, s.found[i]);
  }
  for (int64_t i = count + thread; i < k; i += threads) out.write(i, kNoPlace);
  return true;
}

__global__ void __launch_bounds__(kChildThreads, 2)
    sample_children_kernel(const __grid_constant__ SampleChildrenParams p) {
  auto& s = *reinterpret_cast<ChildScratch*>(dynamic_smem());
  const int64_t r = blockIdx.x;
  const RowDist d = row_dist(p.descriptors + r * kDescriptorColumns);
  const RowView row = row_view(p.logits, r);
  const ChildWriter out(p, r, d);
  const bool iid = p.mode == ChildMode::kIid, noise = p.mode != ChildMode::kTopK;
  if (d.argmax < 0 || d.inv_temperature == 0.0f) {  // no token, or one only
    for (int64_t i = threadIdx.x; i < p.k; i += blockDim.x) out.write(i, i == 0 || iid ? d.argmax : -1, 0.0f);
    return;
  }
  const auto stream = [&](uint32_t child) {
    const auto seed = static_cast<uint64_t>(p.seeds[r]), position = static_cast<uint64_t>(p.positions[r]);
    if (p.target_noise) return philox_stream(seed, position, RandomDomain::kTarget, 0);
    const uint32_t sub_index = static_cast<uint32_t>(p.streams[r]) << 8 | child;
    return philox_stream(seed, position, RandomDomain::kDraft, sub_index);
  };
  if (!iid) {
    const bool done = noise ? choose_first<true>(row, d, stream(0), p.k, out, s)
                            : choose_first<false>(row, d, stream(0), p.k, out, s);
    if (done) return;
    __syncthreads();
  }
  uint64_t last = 0;
  bool any = false;  // chosen already, all of which are behind
#pragma unroll 1
  for (int64_t i = 0; i < p.k; ++i) {
    uint64_t best = kNoPlace;
    float to_beat = kLowest;
    const auto take = [&](uint64_t place) {
      if (!iid && any && place <= last) return;
      if (place < best) best = place, to_beat = value_at(place);
    };
    const auto scaled_logit = [](int, float, float scaled) { return scaled; };
    if (noise) {
      for_scores<true>(row, d, stream(iid ? static_cast<uint32_t>(i) : 0), to_beat, scaled_logit, take);
    } else {
      for_scores<false>(row, d, stream(0), to_beat, scaled_logit, take);
    }
    best = block_reduce<Min>(best, s.places);
    last = best;
    any = true;
    if (threadIdx.x == 0) out.write(i, best);
    if (best == kNoPlace) {
      for (int64_t j = i + 1 + threadIdx.x; j < p.k; j += blockDim.x) out.write(j, kNoPlace);
      return;
    }
  }
}

}  // namespace ttc
