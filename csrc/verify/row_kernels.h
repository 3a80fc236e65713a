// The passes over one row of logits, in plain loops that are compiled once per instruction set.
// All variants give the same bits; see fp32_math.h.
#pragma once

#include <cstdint>
#include <limits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "common/isa.h"
#include "common/philox.h"
#include "verify/fp32_math.h"

namespace ttc {

constexpr int64_t kRowLanes = 16;
constexpr int64_t kRowBlock = 64;

// exp((l - max) / T) as an integer; what every probability is made of.
TTC_HOST_DEVICE int64_t fixed_weight(float logit, float max, float inv_temperature) {
  return to_fixed(exp_fp32((logit - max) * inv_temperature));
}

struct RowMax {
  float max;
  int64_t argmax;  // -1: the row has no distribution
};

TTC_ALWAYS_INLINE RowMax find_max(const float* row, int64_t n) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  float lane_max[kRowLanes];
  int32_t bad[kRowLanes] = {};
  for (float& value : lane_max) value = -kInf;
  int64_t i = 0;
  for (; i + kRowLanes <= n; i += kRowLanes) {
    for (int64_t j = 0; j < kRowLanes; ++j) {
      const float l = row[i + j];
      lane_max[j] = l > lane_max[j] ? l : lane_max[j];
      bad[j] |= l < kInf ? 0 : 1;  // NaN or +inf
    }
  }
  for (; i < n; ++i) {
    lane_max[0] = row[i] > lane_max[0] ? row[i] : lane_max[0];
    bad[0] |= row[i] < kInf ? 0 : 1;
  }
  RowMax result{-kInf, -1};
  bool any_bad = false;
  for (int64_t j = 0; j < kRowLanes; ++j) {
    result.max = lane_max[j] > result.max ? lane_max[j] : result.max;
    any_bad = any_bad || bad[j] != 0;
  }
  if (any_bad || result.max == -kInf) return result;
  result.argmax = 0;
  while (row[result.argmax] != result.max) ++result.argmax;
  return result;
}

// weights[i] = fixed_weight(row[i])
TTC_ALWAYS_INLINE void fixed_weights(const float* row, int64_t n, float max, float inv_temperature,
                                     int64_t* weights) {
  for (int64_t i = 0; i < n; ++i) weights[i] = fixed_weight(row[i], max, inv_temperature);
}

// A bin is a range of logits, the largest in bin 0. Not rounding, but each step being monotonic, is
// what keeps a larger logit from landing in a later bin.
TTC_ALWAYS_INLINE void assign_bins(const float* row, int64_t n, float max, float bins_per_logit,
                                   int32_t last_bin, int32_t* bins) {
  const float last = static_cast<float>(last_bin);
  for (int64_t i = 0; i < n; ++i) {
    const float d = (max - row[i]) * bins_per_logit;
    bins[i] = static_cast<int32_t>(d < last ? d : last);
  }
}

struct KeptSums {
  int64_t count;     // of kept tokens
  int64_t mass;      // their weights
  int64_t mass_all;  // weights of all tokens
};

TTC_ALWAYS_INLINE KeptSums sum_kept(const float* row, int64_t n, float max, float inv_temperature,
                                    float pivot, int32_t tie_end) {
  int64_t count = 0, mass = 0, mass_all = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float l = row[i];
    const int64_t weight = fixed_weight(l, max, inv_temperature);
    const bool kept = (l > pivot) | ((l == pivot) & (static_cast<int32_t>(i) < tie_end));
    mass_all += weight;
    mass += kept ? weight : 0;
    count += kept ? 1 : 0;
  }
  return {count, mass, mass_all};
}

struct SampleArgs {
  PhiloxStream stream;
  float max;
  float inv_temperature;
  float pivot;
  int32_t tie_end;
};

struct Winner {
  float score;
  int64_t index;
};

// The random words of 64 tokens, the first of them at index `first` (a multiple of 64).
using PhiloxBlock = void (*)(const PhiloxStream& stream, int64_t first, uint32_t* random);

TTC_ALWAYS_INLINE void philox_block(const PhiloxStream& stream, int64_t first, uint32_t* random) {
  for (int64_t j = 0; j < kRowLanes; ++j) {
    const Philox4 words = philox_draw(stream, static_cast<uint32_t>(first / 4 + j));
    for (int64_t i = 0; i < 4; ++i) random[4 * j + i] = words.word[i];
  }
}

#if TTC_X86
// GCC does not find the 32 x 32 -> 64 bit multiplication of 512-bit vectors by itself.
TTC_TARGET_AVX512 inline void philox_block_avx512(const PhiloxStream& stream, int64_t first,
                                                  uint32_t* random) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  __m512i c0 = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(first / 4)), lane);
  __m512i c1 = _mm512_set1_epi32(static_cast<int>(stream.counter[1]));
  __m512i c2 = _mm512_set1_epi32(static_cast<int>(stream.counter[2]));
  __m512i c3 = _mm512_set1_epi32(static_cast<int>(stream.counter[3]));
  const __m512i factor0 = _mm512_set1_epi32(static_cast<int>(kPhiloxFactor0));
  const __m512i factor1 = _mm512_set1_epi32(static_cast<int>(kPhiloxFactor1));
  uint32_t k0 = stream.key[0], k1 = stream.key[1];
  for (int round = 0; round < 10; ++round) {
    // Even and odd lanes are multiplied apart; their halves are then put back into place.
    const __m512i even0 = _mm512_mul_epu32(c0, factor0);
    const __m512i odd0 = _mm512_mul_epu32(_mm512_srli_epi64(c0, 32), factor0);
    const __m512i even1 = _mm512_mul_epu32(c2, factor1);
    const __m512i odd1 = _mm512_mul_epu32(_mm512_srli_epi64(c2, 32), factor1);
    const __m512i high0 = _mm512_mask_mov_epi32(_mm512_srli_epi64(even0, 32), 0xAAAA, odd0);
    const __m512i high1 = _mm512_mask_mov_epi32(_mm512_srli_epi64(even1, 32), 0xAAAA, odd1);
    const __m512i low0 = _mm512_mask_mov_epi32(even0, 0xAAAA, _mm512_slli_epi64(odd0, 32));
    const __m512i low1 = _mm512_mask_mov_epi32(even1, 0xAAAA, _mm512_slli_epi64(odd1, 32));
    const __m512i key0 = _mm512_set1_epi32(static_cast<int>(k0));
    const __m512i key1 = _mm512_set1_epi32(static_cast<int>(k1));
    c0 = _mm512_xor_si512(_mm512_xor_si512(high1, c1), key0);
    c2 = _mm512_xor_si512(_mm512_xor_si512(high0, c3), key1);
    c1 = low1;
    c3 = low0;
    k0 += kPhiloxWeyl0;
    k1 += kPhiloxWeyl1;
  }
  // Word i of lane j goes to 4 j + i: a transposition inside groups of four lanes, then of groups.
  const __m512i a = _mm512_unpacklo_epi32(c0, c1), b = _mm512_unpackhi_epi32(c0, c1);
  const __m512i c = _mm512_unpacklo_epi32(c2, c3), d = _mm512_unpackhi_epi32(c2, c3);
  const __m512i t0 = _mm512_unpacklo_epi64(a, c), t1 = _mm512_unpackhi_epi64(a, c);
  const __m512i t2 = _mm512_unpacklo_epi64(b, d), t3 = _mm512_unpackhi_epi64(b, d);
  const __m512i u0 = _mm512_shuffle_i32x4(t0, t1, 0x44), u1 = _mm512_shuffle_i32x4(t2, t3, 0x44);
  const __m512i u2 = _mm512_shuffle_i32x4(t0, t1, 0xee), u3 = _mm512_shuffle_i32x4(t2, t3, 0xee);
  _mm512_storeu_si512(random, _mm512_shuffle_i32x4(u0, u1, 0x88));
  _mm512_storeu_si512(random + 16, _mm512_shuffle_i32x4(u0, u1, 0xdd));
  _mm512_storeu_si512(random + 32, _mm512_shuffle_i32x4(u2, u3, 0x88));
  _mm512_storeu_si512(random + 48, _mm512_shuffle_i32x4(u2, u3, 0xdd));
}
#endif

// Races 64 tokens, the first of them at index `first` (a multiple of 64), against the best so far.
template <PhiloxBlock kPhiloxBlock>
TTC_ALWAYS_INLINE void race_block(const SampleArgs& a, const float* logits, int64_t first,
                                  Winner* best) {
  // Blocks in which no token is kept, or none could win with the largest noise there is, are left
  // out; rounding is monotonic, so the bound holds for the rounded scores as well.
  float lanes[kRowLanes];
  for (int64_t j = 0; j < kRowLanes; ++j) {
    const float a01 = logits[j] > logits[16 + j] ? logits[j] : logits[16 + j];
    const float a23 = logits[32 + j] > logits[48 + j] ? logits[32 + j] : logits[48 + j];
    lanes[j] = a01 > a23 ? a01 : a23;
  }
  float top = lanes[0];
  for (int64_t j = 1; j < kRowLanes; ++j) top = lanes[j] > top ? lanes[j] : top;
  if (top < a.pivot || (top - a.max) * a.inv_temperature + kGumbelMax < best->score) return;

  uint32_t random[kRowBlock];
  kPhiloxBlock(a.stream, first, random);
  float scores[kRowBlock];
  float lane_best[kRowLanes];
  for (float& value : lane_best) value = -std::numeric_limits<float>::infinity();
  for (int64_t b = 0; b < kRowBlock; b += kRowLanes) {
    for (int64_t j = 0; j < kRowLanes; ++j) {
      const float l = logits[b + j];
      const int32_t index = static_cast<int32_t>(first + b + j);
      const bool kept = (l > a.pivot) | ((l == a.pivot) & (index < a.tie_end));
      const float score = (l - a.max) * a.inv_temperature + gumbel(random[b + j]);
      scores[b + j] = kept ? score : -std::numeric_limits<float>::infinity();
      lane_best[j] = scores[b + j] > lane_best[j] ? scores[b + j] : lane_best[j];
    }
  }
  float block_best = lane_best[0];
  for (int64_t j = 1; j < kRowLanes; ++j) {
    block_best = lane_best[j] > block_best ? lane_best[j] : block_best;
  }
  if (block_best < best->score) return;
  int64_t at = 0;
  while (scores[at] != block_best) ++at;
  if (block_best > best->score || first + at < best->index) *best = {block_best, first + at};
}

// The token with the largest (l - max) / T + noise, the lower index on a tie. `argmax` is kept.
template <PhiloxBlock kPhiloxBlock>
TTC_ALWAYS_INLINE int64_t race_row(const SampleArgs& a, const float* row, int64_t n,
                                   int64_t argmax) {
  const Philox4 words = philox_draw(a.stream, static_cast<uint32_t>(argmax / 4));
  Winner best{0.0f * a.inv_temperature + gumbel(words.word[argmax % 4]), argmax};
  int64_t i = 0;
  for (; i + kRowBlock <= n; i += kRowBlock) race_block<kPhiloxBlock>(a, row + i, i, &best);
  if (i < n) {
    float tail[kRowBlock];
    for (int64_t j = 0; j < kRowBlock; ++j) {
      tail[j] = i + j < n ? row[i + j] : -std::numeric_limits<float>::infinity();
    }
    race_block<kPhiloxBlock>(a, tail, i, &best);
  }
  return best.index;
}

}  // namespace ttc
