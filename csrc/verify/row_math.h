// What is computed of single tokens of a row, the same on every backend.
#pragma once

#include <cstdint>
#include <limits>

#include "common/philox.h"
#include "verify/fp32_math.h"
#include "verify/verify.h"

namespace ttc {

// exp((l - max) / T) as an integer; what every probability is made of.
TTC_HOST_DEVICE int64_t fixed_weight(float logit, float max, float inv_temperature) {
  return to_fixed(exp2_fp32((logit - max) * (inv_temperature * kLog2E)));
}

// Where the tokens kept by a filter end, in order of falling logit, ties to the lower index.
struct Cut {
  float pivot = -std::numeric_limits<float>::max();  // everything but -inf
  int32_t tie_end = std::numeric_limits<int32_t>::max();
};

TTC_HOST_DEVICE Cut narrower(const Cut& a, const Cut& b) {
  if (a.pivot != b.pivot) return a.pivot > b.pivot ? a : b;
  return a.tie_end < b.tie_end ? a : b;
}

// p >= min_p * p_max, as a bound on the logit. It is the same operations everywhere, and keeps all
// equal logits or none.
TTC_HOST_DEVICE Cut min_p_cut(float max, float temperature, float min_p) {
  constexpr float kSmallest = std::numeric_limits<float>::min();
  Cut cut;
  cut.pivot = max + temperature * log_fp32(min_p > kSmallest ? min_p : kSmallest);
  return cut;
}

// Whether the bitmask of row r lets the token take part.
TTC_HOST_DEVICE bool is_allowed(const LogitRows& logits, int64_t r, int64_t token) {
  if (logits.bitmask == nullptr) return true;
  const auto word = static_cast<uint32_t>(logits.bitmask[r * logits.mask_words + token / 32]);
  return (word >> (token % 32) & 1) != 0;
}

// A row's filtered distribution, from its descriptor.
struct RowDist {
  float max;
  float inv_temperature;  // 0 for a greedy row, of which only the argmax is kept
  float pivot;
  int32_t tie_end;
  float inv_z;
  float log_z;
  int32_t argmax;  // -1: there is no distribution
};

TTC_HOST_DEVICE bool is_kept(const RowDist& d, float logit, int64_t index) {
  return (logit > d.pivot) | ((logit == d.pivot) & (static_cast<int32_t>(index) < d.tie_end));
}

TTC_HOST_DEVICE float probability(const RowDist& d, float logit, int64_t index) {
  const float w = exp2_fp32((logit - d.max) * (d.inv_temperature * kLog2E)) * d.inv_z;
  return is_kept(d, logit, index) ? w : 0.0f;
}

// What a residual keeps of a token: max(p - c q, 0).
TTC_HOST_DEVICE float remainder_of(float p, float c, float q) {
  const float r = p - c * q;
  return r > 0.0f ? r : 0.0f;
}

TTC_HOST_DEVICE RowDist row_dist(const float* desc) {
  const float temperature = desc[kTemperature];
  return {desc[kMax],
          temperature == 0.0f ? 0.0f : 1.0f / temperature,
          desc[kPivot],
          static_cast<int32_t>(desc[kTieEnd]),
          1.0f / desc[kZ],
          desc[kLogZ],
          static_cast<int32_t>(desc[kArgmax])};
}

TTC_HOST_DEVICE float log_probability(const RowDist& d, float logit, int64_t token) {
  return is_kept(d, logit, token) ? (logit - d.max) * d.inv_temperature - d.log_z
                                  : -std::numeric_limits<float>::infinity();
}

struct Winner {
  float score;
  int64_t index;
};

constexpr Winner kNoWinner = {-std::numeric_limits<float>::infinity(), std::numeric_limits<int64_t>::max()};

TTC_HOST_DEVICE bool beats(const Winner& a, const Winner& b) {
  return a.score > b.score || (a.score == b.score && a.index < b.index);
}

}  // namespace ttc
