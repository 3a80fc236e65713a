// A row's descriptor, by one block.
//
//   pass 1   the largest logit, its lowest index, and whether the row has a distribution     every row
//   pass 2   mass of all tokens and of those that min_p keeps; for top_k and top_p also the
//            histogram in which their cuts are found                                  temperature > 0
//   pass 3   the tokens of the bin of a cut                                   once for top_k, for top_p
//
// The first pass reads from memory, the others find most of the row in the second-level cache.
#pragma once

#include "verify/select.cuh"

namespace ttc {

struct Descriptor {
  float column[kDescriptorColumns];
};

struct RowTop {
  float max;
  int32_t argmax;  // -1: the row has no distribution
};

__device__ __forceinline__ RowTop find_top(const RowView& row, ReduceScratch& s) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  float max = kLowest;
  int at = 0;
  bool bad = false;  // a NaN or +inf
  for_pieces(row, [&](int first, const float (&logits)[kPiece]) {
#pragma unroll
    for (int i = 0; i < kPiece; ++i) {
      const float l = logits[i];
      bad |= !(l < kInf);
      at = l > max ? first + i : at;
      max = l > max ? l : max;
    }
  });
  // Place 0 comes before that of any number.
  const uint64_t first = block_reduce<Min>(bad ? 0 : max > kLowest ? place_of(max, at) : kNoPlace, s.places);
  if (first == 0 || first == kNoPlace) return {kLowest, -1};
  return {value_at(first), index_at(first)};
}

// The mass of a row's tokens without filters.
__device__ __forceinline__ int64_t mass_of_all(const RowView& row, float max, float inv_temperature, ReduceScratch& s) {
  int64_t mass = 0;
  for_pieces(row, [&](int, const float (&logits)[kPiece]) {
#pragma unroll
    for (int i = 0; i < kPiece; ++i) mass += fixed_weight(logits[i], max, inv_temperature);
  });
  return block_reduce<Sum>(mass, s.sums);
}

__device__ __forceinline__ Cut cut_after(uint64_t last) {
  Cut cut;
  cut.pivot = value_at(last);
  cut.tie_end = index_at(last) + 1;
  return cut;
}

__device__ __forceinline__ Descriptor describe_row(const LogitRows& logits, const RowFilters& filters, int64_t r,
                                                   SelectScratch& s) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  const RowView row = row_view(logits, r);
  const float temperature = filters.temperature[r];
  const RowTop top = find_top(row, s);
  const float argmax = static_cast<float>(top.argmax);
  if (top.argmax < 0) return {{temperature, kInf, 0.0f, kNan, argmax, kNan, 0.0f, kNan, 0.0f}};
  if (temperature == 0.0f) {
    return {{0.0f, top.max, argmax + 1.0f, 0.0f, argmax, top.max, 1.0f, 0.0f, 1.0f}};
  }
  const float inv = 1.0f / temperature;
  // Bounded so that a temperature near the smallest float cannot give 0 * inf.
  const float bins_per_logit = (inv < 1e30f ? inv : 1e30f) * kBinsPerUnit;
  const int top_k = filters.top_k[r];
  const float top_p = filters.top_p[r], min_p = filters.min_p[r];
  const bool by_count = top_k > 0 && top_k < row.size, by_mass = top_p < 1.0f;
  Cut cut;
  if (min_p > 0.0f) cut = narrower(cut, min_p_cut(top.max, temperature, min_p));

  if (by_count || by_mass) {
    s.bins.clear();
    __syncthreads();
  }
  int64_t mass_all = 0, mass = 0;
  int count = 0, with_any = 0;
  for_pieces(row, [&](int first, const float (&logits)[kPiece]) {
#pragma unroll
    for (int i = 0; i < kPiece; ++i) {
      const float l = logits[i];
      if (!(l > kLowest)) continue;
      const int64_t weight = fixed_weight(l, top.max, inv);
      mass_all += weight;
      ++with_any;
      if (l > cut.pivot || (l == cut.pivot && first + i < cut.tie_end)) mass += weight, ++count;
      if (by_count || by_mass) s.bins.add(bin_of(l, top.max, bins_per_logit), weight);
    }
  });
  mass_all = block_reduce<Sum>(mass_all, s.sums);
  mass = block_reduce<Sum>(mass, s.sums);
  count = block_reduce<Sum>(count, s.sums);
  with_any = block_reduce<Sum>(with_any, s.sums);

  int64_t total = mass_all;  // what top_p refers to
#pragma unroll 1
  for (int filter = 0; filter < 2; ++filter) {
    const bool of_mass = filter == 1;
    if (of_mass ? !by_mass : !by_count || top_k > with_any) continue;
    int64_t target = top_k;
    if (of_mass) {
      const auto wanted = static_cast<int64_t>(ceil(static_cast<double>(top_p) * static_cast<double>(total)));
      target = wanted < 1 ? 1 : wanted < total ? wanted : total;
    }
    const Prefix prefix = select_prefix(
        row, [](int, float l) { return l; }, [&](float l) { return fixed_weight(l, top.max, inv); }, top.max,
        bins_per_logit, of_mass, target, s);
    total = prefix.mass;
    const Cut found = cut_after(prefix.last), both = narrower(cut, found);
    if (both.pivot == found.pivot && both.tie_end == found.tie_end) mass = prefix.mass, count = prefix.count;
    cut = both;
  }

  const float z = static_cast<float>(mass) * 0x1p-40f, z_all = static_cast<float>(mass_all) * 0x1p-40f;
  const int32_t tie_end = cut.tie_end < row.size ? cut.tie_end : row.size;
  return {{temperature, cut.pivot, static_cast<float>(tie_end), log_fp32(z), argmax, top.max, static_cast<float>(count),
           log_fp32(z_all), z}};
}

}  // namespace ttc
