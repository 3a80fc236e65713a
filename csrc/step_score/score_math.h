// Formulas that every backend shares, so that equal logits give equal scores and the same survivors.
//
// Sums along a path of steps are integers: their order does not matter, so a chain, a tree walked
// from its leaves and a round carried over to the next give the same bits.
#pragma once

#include <cstdint>

#include "verify/fp32_math.h"

namespace ttc {

constexpr float kPathUnit = 4294967296.0f;  // sums count units of 2^-32
constexpr float kLogOfZero = -128.0f;       // exp of it is 0 in fp32, so one zero makes a product 0

// exp(x) for x <= 0. exp_fp32 ends at -80; the square of its half reaches the last subnormal number.
TTC_HOST_DEVICE float exp_negative(float x) {
  const float half = exp_fp32(x * 0.5f);
  return x != x ? x : x < -80.0f ? half * half : exp_fp32(x);
}

TTC_HOST_DEVICE float sigmoid(float x) {
  // exp of a negative number only: cannot overflow, and keeps small scores exact.
  const float e = exp_negative(x < 0.0f ? x : -x);
  return (x >= 0.0f ? 1.0f : e) / (1.0f + e);
}

TTC_HOST_DEVICE bool is_probability(float score) { return score >= 0.0f && score <= 1.0f; }

TTC_HOST_DEVICE int64_t fixed_score(float score) { return static_cast<int64_t>(score * kPathUnit); }

// The logarithm of a probability, in units of 2^-32.
TTC_HOST_DEVICE int64_t fixed_log(float score) {
  const bool tiny = score < 0x1p-100f;  // subnormal numbers are scaled into the range of log_fp32
  const float scaled = tiny ? score * 0x1p60f : score;
  const float log = log_fp32(scaled > 0.0f ? scaled : 1.0f) - (tiny ? 41.5888308f : 0.0f);
  return static_cast<int64_t>((score > 0.0f ? log : kLogOfZero) * kPathUnit);
}

TTC_HOST_DEVICE float product_of_logs(int64_t sum) {
  return exp_negative(static_cast<float>(sum) * 0x1p-32f);
}

TTC_HOST_DEVICE float mean_of_scores(int64_t sum, int64_t count) {
  return static_cast<float>(sum) * 0x1p-32f / static_cast<float>(count);
}

}  // namespace ttc
