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
#include "verify/row_math.h"

namespace ttc {

constexpr int64_t kRowLanes = 16;
constexpr int64_t kRowBlock = 64;

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

// Sum of max(p - c q, 0) over a row, in units of 2^-40.
TTC_ALWAYS_INLINE int64_t residual_mass(const RowDist& p, const float* row, const RowDist& q,
                                        const float* draft, int64_t n, float c) {
  int64_t mass = 0;
  for (int64_t i = 0; i < n; ++i) {
    mass += to_fixed(remainder_of(probability(p, row[i], i), c, probability(q, draft[i], i)));
  }
  return mass;
}

// Entropy of a row in nats, in units of 2^-40: -log p = log z - (l - max) / T.
TTC_ALWAYS_INLINE int64_t entropy_mass(const RowDist& d, const float* row, int64_t n) {
  int64_t mass = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float p = probability(d, row[i], i);
    const float surprise = d.log_z - (row[i] - d.max) * d.inv_temperature;
    mass += to_fixed(p > 0.0f ? p * surprise : 0.0f);
  }
  return mass;
}

// A race of a row's tokens: the winner has the largest (l - max) / T + noise, plus the log of what
// is left of its probability when c times the draft's is taken away.
struct Race {
  RowDist target;
  PhiloxStream stream;
  const float* draft = nullptr;  // the draft's logits, or none
  RowDist draft_dist = {};
  float c = 0;
  const int32_t* excluded = nullptr;  // tokens that do not take part, in rising order
  int64_t num_excluded = 0;
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

// The scores of 64 tokens, the first of them at index `first` (a multiple of 64); -inf for those that
// are not kept. Returns the largest. `draft` is null if nothing is taken away.
template <PhiloxBlock kPhiloxBlock, bool kNoise, bool kResidual>
TTC_ALWAYS_INLINE float score_block(const Race& a, const float* logits, const float* draft,
                                    int64_t first, float* scores) {
  constexpr float kLowest = -std::numeric_limits<float>::infinity();
  const RowDist& d = a.target;
  uint32_t random[kRowBlock];
  if constexpr (kNoise) kPhiloxBlock(a.stream, first, random);
  float lane_best[kRowLanes];
  for (float& value : lane_best) value = kLowest;
  for (int64_t b = 0; b < kRowBlock; b += kRowLanes) {
    for (int64_t j = 0; j < kRowLanes; ++j) {
      const float l = logits[b + j];
      const int64_t index = first + b + j;
      bool kept = is_kept(d, l, index);
      float score = (l - d.max) * d.inv_temperature;
      if constexpr (kResidual) {
        const float p = probability(d, l, index);
        const float r = remainder_of(p, a.c, probability(a.draft_dist, draft[b + j], index));
        kept &= r > 0.0f;
        score = score + log_fp32(kept ? r / p : 1.0f);
      }
      if constexpr (kNoise) score = score + gumbel(random[b + j]);
      scores[b + j] = kept ? score : kLowest;
      lane_best[j] = scores[b + j] > lane_best[j] ? scores[b + j] : lane_best[j];
    }
  }
  float best = lane_best[0];
  for (int64_t j = 1; j < kRowLanes; ++j) best = lane_best[j] > best ? lane_best[j] : best;
  return best;
}

// Whether a token of the block could reach `score` with the largest noise there is. Rounding is
// monotonic, so the bound holds for the rounded scores as well.
TTC_ALWAYS_INLINE bool may_reach(const RowDist& d, const float* logits, float noise, float score) {
  float lanes[kRowLanes];
  for (int64_t j = 0; j < kRowLanes; ++j) {
    const float a01 = logits[j] > logits[16 + j] ? logits[j] : logits[16 + j];
    const float a23 = logits[32 + j] > logits[48 + j] ? logits[32 + j] : logits[48 + j];
    lanes[j] = a01 > a23 ? a01 : a23;
  }
  float top = lanes[0];
  for (int64_t j = 1; j < kRowLanes; ++j) top = lanes[j] > top ? lanes[j] : top;
  return top >= d.pivot && (top - d.max) * d.inv_temperature + noise >= score;
}

// Calls body(first, logits, draft) for each 64 tokens, the last ones filled up with -inf and the
// excluded ones at -inf.
template <typename Body>
TTC_ALWAYS_INLINE void for_row_blocks(const Race& a, const float* row, int64_t n,
                                      const Body& body) {
  constexpr float kLowest = -std::numeric_limits<float>::infinity();
  float logits[kRowBlock], draft[kRowBlock];
  int64_t at = 0;
  for (int64_t i = 0; i < n; i += kRowBlock) {
    const bool whole = i + kRowBlock <= n;
    const bool patched = at < a.num_excluded && a.excluded[at] < i + kRowBlock;
    if (whole && !patched) {
      body(i, row + i, a.draft == nullptr ? nullptr : a.draft + i);
      continue;
    }
    for (int64_t j = 0; j < kRowBlock; ++j) {
      logits[j] = i + j < n ? row[i + j] : kLowest;
      draft[j] = a.draft != nullptr && i + j < n ? a.draft[i + j] : kLowest;
    }
    for (; at < a.num_excluded && a.excluded[at] < i + kRowBlock; ++at) {
      logits[a.excluded[at] - i] = kLowest;
    }
    body(i, static_cast<const float*>(logits), static_cast<const float*>(draft));
  }
}

// The winner of a row, the lower index on a tie; kNoWinner if no token takes part.
template <PhiloxBlock kPhiloxBlock, bool kResidual>
TTC_ALWAYS_INLINE Winner race_blocks(const Race& a, const float* row, int64_t n) {
  Winner best = kNoWinner;
  if (!kResidual && a.num_excluded == 0) {  // the likeliest token: most blocks cannot beat it
    const Philox4 words = philox_draw(a.stream, static_cast<uint32_t>(a.target.argmax / 4));
    best = {gumbel(words.word[a.target.argmax % 4]), a.target.argmax};
  }
  for_row_blocks(a, row, n, [&](int64_t first, const float* logits,
                               const float* draft) __attribute__((always_inline)) {
    if (!may_reach(a.target, logits, kGumbelMax, best.score)) return;
    float scores[kRowBlock];
    const float top = score_block<kPhiloxBlock, true, kResidual>(a, logits, draft, first, scores);
    if (top == -std::numeric_limits<float>::infinity() || top < best.score) return;
    int64_t at = 0;
    while (scores[at] != top) ++at;
    const Winner found = {top, first + at};
    if (beats(found, best)) best = found;
  });
  return best;
}

template <PhiloxBlock kPhiloxBlock>
TTC_ALWAYS_INLINE Winner race_row(const Race& a, const float* row, int64_t n) {
  return a.draft == nullptr ? race_blocks<kPhiloxBlock, false>(a, row, n)
                            : race_blocks<kPhiloxBlock, true>(a, row, n);
}

// The k best scores of a row in falling order, with noise or without; returns how many there are.
template <PhiloxBlock kPhiloxBlock, bool kNoise>
TTC_ALWAYS_INLINE int64_t top_scores(const Race& a, const float* row, int64_t n, int64_t k,
                                     Winner* best) {
  int64_t count = 0;
  for_row_blocks(a, row, n, [&](int64_t first, const float* logits,
                               const float* draft) __attribute__((always_inline)) {
    const float least = count < k ? -std::numeric_limits<float>::infinity() : best[k - 1].score;
    if (!may_reach(a.target, logits, kNoise ? kGumbelMax : 0.0f, least)) return;
    float scores[kRowBlock];
    const float top = score_block<kPhiloxBlock, kNoise, false>(a, logits, draft, first, scores);
    if (top == -std::numeric_limits<float>::infinity() || (count == k && top <= least)) return;
    for (int64_t j = 0; j < kRowBlock; ++j) {
      const Winner found = {scores[j], first + j};
      if (found.score == -std::numeric_limits<float>::infinity()) continue;
      if (count == k && !beats(found, best[k - 1])) continue;
      int64_t place = count < k ? count++ : k - 1;
      for (; place > 0 && beats(found, best[place - 1]); --place) best[place] = best[place - 1];
      best[place] = found;
    }
  });
  return count;
}

}  // namespace ttc
