// Where a prefix of a row's tokens ends, in order of falling value: exact, without sorting the row.
//
//   value   max ----------------------------------------------> lowest
//   bins    | 0 | 1 | 2 | ... | b | ...                       2047 |     mass and number of the tokens
//                              ^ the bin in which the target is reached; its tokens are collected in
//                                shared memory and ranked there
//
// Should the bin hold more tokens than that, it is cut in 256 by place (value, then index) until it does
// not. All sums are integers: no order of threads or blocks changes anything.
#pragma once

#include "verify/row_view.cuh"

namespace ttc {

constexpr int kBins = 2048, kFineBins = 256, kCandidates = 512;
constexpr float kBinsPerUnit = 32.0f;

template <int N>
struct Histogram {
  uint32_t low[N], high[N];  // of the mass, in two words: there are atomic additions of 32 bits
  uint32_t count[N];

  __device__ __forceinline__ void clear() {
    for (int b = static_cast<int>(threadIdx.x); b < N; b += static_cast<int>(blockDim.x))
      low[b] = high[b] = count[b] = 0;
  }

  __device__ __forceinline__ void add(int bin, int64_t mass) {
    const auto word = static_cast<uint32_t>(mass);
    const uint32_t before = atomicAdd(&low[bin], word);
    const uint32_t carried = static_cast<uint32_t>(mass >> 32) + (before + word < before);
    if (carried != 0) atomicAdd(&high[bin], carried);
    atomicAdd(&count[bin], 1u);
  }

  __device__ __forceinline__ int64_t mass(int bin) const {
    return static_cast<int64_t>(static_cast<uint64_t>(high[bin]) << 32 | low[bin]);
  }
};

// Tokens kept: up to the last one, the place of which is given.
struct Prefix {
  uint64_t last;
  int64_t count, mass;
};

struct BinFound {
  int bin, members;
  int64_t count_before, mass_before;
};

struct SelectScratch : ReduceScratch {  // shared
  uint64_t candidates[kCandidates];
  int64_t weights[kCandidates];
  Prefix prefix;
  BinFound found;
  uint32_t num_candidates;
  Histogram<kBins> bins;
  Histogram<kFineBins> fine;
};

__device__ __forceinline__ int bin_of(float value, float max, float bins_per_value) {
  const float d = (max - value) * bins_per_value;
  return static_cast<int>(d < kBins - 1 ? d : kBins - 1);
}

// The bin in which count or mass reaches `target` (at most the total), into s.found.
template <int N>
__device__ __forceinline__ void find_bin(const Histogram<N>& bins, bool by_mass, int64_t target, SelectScratch& s) {
  const int each = (N + static_cast<int>(blockDim.x) - 1) / static_cast<int>(blockDim.x);
  const int begin = static_cast<int>(threadIdx.x) * each, end = begin + each < N ? begin + each : N;
  int64_t count = 0, mass = 0;
  for (int b = begin; b < end; ++b) {
    count += bins.count[b];
    mass += bins.mass(b);
  }
  int64_t count_before = block_sum_before(count, s.sums), mass_before = block_sum_before(mass, s.sums);
  const int64_t before = by_mass ? mass_before : count_before;
  if (before < target && before + (by_mass ? mass : count) >= target) {
    int b = begin;
    while ((by_mass ? mass_before + bins.mass(b) : count_before + bins.count[b]) < target) {
      count_before += bins.count[b];
      mass_before += bins.mass(b);
      ++b;
    }
    s.found = {b, static_cast<int>(bins.count[b]), count_before, mass_before};
  }
  __syncthreads();
}

// The shortest prefix with `target` tokens, or so much mass. s.bins has all tokens with a value above
// -inf, by bin_of(value, max, bins_per_value). value(index, logit) is what orders them, weight(value)
// their mass.
template <class Value, class Weight>
__device__ __forceinline__ Prefix select_prefix(const RowView& row, const Value& value, const Weight& weight, float max,
                                                float bins_per_value, bool by_mass, int64_t target, SelectScratch& s) {
  find_bin(s.bins, by_mass, target, s);
  BinFound found = s.found;
  uint64_t low = 0, high = kNoPlace;  // places of members lie between them
  int shift = 0;
  enum { kRange, kCut, kCollect } pass = found.members > kCandidates ? kRange : kCollect;
  if (threadIdx.x == 0) s.num_candidates = 0;
#pragma unroll 1
  for (bool in_bin = true;; pass = found.members > kCandidates ? kCut : kCollect) {
    if (pass == kCut) {
      shift = 0;
      while ((high - low) >> shift >= kFineBins) ++shift;
      s.fine.clear();
    }
    __syncthreads();
    uint64_t least = kNoPlace, most = 0;
    for_pieces(row, [&](int first, const float (&logits)[kPiece]) {
#pragma unroll
      for (int i = 0; i < kPiece; ++i) {
        const float v = value(first + i, logits[i]);
        if (!(v > kLowest) || (in_bin && bin_of(v, max, bins_per_value) != found.bin)) continue;
        const uint64_t place = place_of(v, first + i);
        if (place < low || place > high) continue;
        if (pass == kRange) {
          least = place < least ? place : least;
          most = place > most ? place : most;
        } else if (pass == kCut) {
          s.fine.add(static_cast<int>((place - low) >> shift), weight(v));
        } else {
          const uint32_t slot = atomicAdd(&s.num_candidates, 1u);
          s.candidates[slot] = place;
          s.weights[slot] = weight(v);
        }
      }
    });
    if (pass == kCollect) break;
    if (pass == kRange) {
      low = block_reduce<Min>(least, s.places);
      high = block_reduce<Max>(most, s.places);
      in_bin = false;
      continue;
    }
    __syncthreads();
    const int64_t count_before = found.count_before, mass_before = found.mass_before;
    find_bin(s.fine, by_mass, target - (by_mass ? mass_before : count_before), s);
    found = s.found;
    found.count_before += count_before;
    found.mass_before += mass_before;
    low += static_cast<uint64_t>(found.bin) << shift;
    const uint64_t end = low + (uint64_t{1} << shift) - 1;
    high = end < high ? end : high;
  }
  __syncthreads();
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < found.members; i += static_cast<int>(blockDim.x)) {
    const uint64_t place = s.candidates[i];
    int64_t count = found.count_before, mass = found.mass_before;
    for (int j = 0; j < found.members; ++j) {
      const bool earlier = s.candidates[j] <= place;
      count += earlier;
      mass += earlier ? s.weights[j] : 0;
    }
    const bool last = by_mass ? mass >= target && mass - s.weights[i] < target : count == target;
    if (last) s.prefix = {place, count, mass};
  }
  __syncthreads();
  return s.prefix;
}

}  // namespace ttc
