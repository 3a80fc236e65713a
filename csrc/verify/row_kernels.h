// The passes over one row of logits, in plain loops that are compiled once per instruction set.
// All variants give the same bits; see fp32_math.h.
//
// A row of any float type is read in blocks of 256 tokens, widened to fp32 in the first-level cache.
// The first pass keeps the largest logit of every block; after it most blocks are passed over unread
// by all that looks for a few tokens: races, the likeliest tokens, cuts.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "common/convert.h"
#include "common/isa.h"
#include "common/philox.h"
#include "verify/row_math.h"

namespace ttc {

constexpr int64_t kRowLanes = 16;
constexpr int64_t kRowPiece = 64;
constexpr int64_t kRowBlock = kNoiseBlock;
constexpr float kLowest = -std::numeric_limits<float>::infinity();

// One row of logits. What `mask` has no bit for counts as -inf.
struct RowView {
  const char* data = nullptr;
  Dtype dtype = Dtype::kFloat32;
  int64_t n = 0;
  const int32_t* mask = nullptr;

  int64_t num_blocks() const { return (n + kRowBlock - 1) / kRowBlock; }
};

// 256 logits from `first` on, a multiple of 256: those of the row, or widened into `buffer`; after the
// row's end -inf.
TTC_ALWAYS_INLINE const float* block_of(const RowView& row, int64_t first, float* buffer) {
  const int64_t count = row.n - first < kRowBlock ? row.n - first : kRowBlock;
  const char* source = row.data + first * dtype_bytes(row.dtype);
  if (count == kRowBlock && row.mask == nullptr && row.dtype == Dtype::kFloat32) {
    return reinterpret_cast<const float*>(source);
  }
  if (count == kRowBlock && row.dtype == Dtype::kBFloat16) {
    const auto* bfloats = reinterpret_cast<const uint16_t*>(source);
    for (int64_t i = 0; i < kRowBlock; ++i) buffer[i] = bfloat_to_float(bfloats[i]);
  } else {
    widen(row.dtype, source, count, buffer);
    for (int64_t i = count; i < kRowBlock; ++i) buffer[i] = kLowest;
  }
  if (row.mask != nullptr) {
    for (int64_t i = 0; i < count; ++i) {
      const auto word = static_cast<uint32_t>(row.mask[(first + i) / 32]);
      buffer[i] = (word >> (i % 32) & 1) != 0 ? buffer[i] : kLowest;
    }
  }
  return buffer;
}

struct RowScan {
  float max;
  bool special;  // something is NaN or infinite
  float least;   // no logit is below it; of no use if there is something special
};

// tops[b] = the largest logit of block b, NaNs aside.
TTC_ALWAYS_INLINE RowScan scan_row(const RowView& row, float* tops) {
  float buffer[kRowBlock];
  int32_t largest[kRowPiece] = {};  // bits of |logit|
  float max = kLowest;
  for (int64_t first = 0; first < row.n; first += kRowBlock) {
    const float* logits = block_of(row, first, buffer);
    if (row.n - first < kRowBlock) {  // no -inf that is not the row's own
      for (int64_t i = row.n - first; i < kRowBlock; ++i) buffer[i] = buffer[0];
    }
    float lanes[kRowPiece];
    for (float& lane : lanes) lane = kLowest;
    for (int64_t b = 0; b < kRowBlock; b += kRowPiece) {
      for (int64_t j = 0; j < kRowPiece; ++j) {
        const float l = logits[b + j];
        lanes[j] = l > lanes[j] ? l : lanes[j];
        const auto bits = static_cast<int32_t>(float_to_bits(l) & 0x7fffffffu);
        largest[j] = bits > largest[j] ? bits : largest[j];
      }
    }
    for (int64_t half = kRowPiece / 2; half >= kRowLanes; half /= 2) {
      for (int64_t j = 0; j < half; ++j) lanes[j] = lanes[half + j] > lanes[j] ? lanes[half + j] : lanes[j];
    }
    float top = lanes[0];
    for (int64_t j = 1; j < kRowLanes; ++j) top = lanes[j] > top ? lanes[j] : top;
    tops[first / kRowBlock] = top;
    max = top > max ? top : max;
  }
  int32_t bits = 0;
  for (int32_t lane : largest) bits = lane > bits ? lane : bits;
  return {max, bits >= 0x7f800000, -bits_to_float(static_cast<uint32_t>(bits))};
}

// How many of a row are NaN or +inf, and how many are -inf.
struct Specials {
  int64_t bad, lowest;
};

TTC_ALWAYS_INLINE Specials count_specials(const RowView& row) {
  float buffer[kRowBlock];
  int64_t bad = 0, lowest = 0;
  for (int64_t first = 0; first < row.n; first += kRowBlock) {
    const float* logits = block_of(row, first, buffer);
    int32_t block_bad = 0, block_lowest = 0;
    for (int64_t i = 0; i < kRowBlock; ++i) {
      block_bad += logits[i] < -kLowest ? 0 : 1;
      block_lowest += logits[i] == kLowest ? 1 : 0;
    }
    bad += block_bad;
    lowest += block_lowest - std::max<int64_t>(first + kRowBlock - row.n, 0);
  }
  return {bad, lowest};
}

// Sum of the weights of a row, as fixed_weight has them. 2^-40 is too fine for the bits of an fp32
// number up to 1, so a weight is cut in two: adding `coarse` rounds it to 2^-18, and what is left of
// it, added to `fine`, is rounded to 2^-40; the sums' bits count both.
//
// This takes as long as reading a row from memory does, so meanwhile the row that is next is fetched:
// `ahead`, or null.
constexpr float kCoarseAnchor = 48.0f, kFineAnchor = 0x1.8p-17f;
// log2 of weights: below them there is nothing to be cut off, or all is rounded to 0.
constexpr float kFewBits = -18.5f, kNoWeight = -41.5f;

TTC_ALWAYS_INLINE int64_t sum_weights(const RowView& row, const RowScan& scan, float inv_temperature, const float* tops,
                                      const char* ahead) {
  const float scale = inv_temperature * kLog2E;
  float buffer[kRowBlock];
  int64_t sum = 0;
  for (int64_t first = 0; first < row.n; first += kRowBlock) {
    const int64_t offset = first * dtype_bytes(row.dtype);
    for (int64_t i = 0; ahead != nullptr && i < kRowBlock * dtype_bytes(row.dtype); i += 64) {
      __builtin_prefetch(ahead + offset + i);
    }
    const float top = (tops[first / kRowBlock] - scan.max) * scale;
    if (top < kNoWeight) continue;
    const float* logits = block_of(row, first, buffer);
    uint32_t high[kRowLanes] = {}, low[kRowLanes] = {};
    if (top < kFewBits) {
      for (int64_t i = 0; i < kRowBlock; i += kRowLanes) {
        for (int64_t j = 0; j < kRowLanes; ++j) {
          low[j] += float_to_bits(exp2_fp32((logits[i + j] - scan.max) * scale) + kFineAnchor);
        }
      }
    } else {
      for (int64_t i = 0; i < kRowBlock; i += kRowLanes) {
        for (int64_t j = 0; j < kRowLanes; ++j) {
          const float w = exp2_fp32((logits[i + j] - scan.max) * scale);
          const float rounded = w + kCoarseAnchor;
          high[j] += float_to_bits(rounded) - float_to_bits(kCoarseAnchor);
          low[j] += float_to_bits((w - (rounded - kCoarseAnchor)) + kFineAnchor);
        }
      }
    }
    uint32_t high_sum = 0, low_sum = 0;  // of 256 numbers up to 2^18 and 2^22, no matter what wraps
    for (int64_t j = 0; j < kRowLanes; ++j) {
      high_sum += high[j];
      low_sum += low[j];
    }
    sum += static_cast<int64_t>(high_sum) << 22;
    sum += static_cast<int32_t>(low_sum - static_cast<uint32_t>(kRowBlock) * float_to_bits(kFineAnchor));
  }
  return sum;
}

// Writes those of 256 logits that are `least` or more one after the other, with their indices, the first
// being `first`; returns how many there are. Room for 256 is needed whatever they are.
TTC_ALWAYS_INLINE int64_t compact_block(const float* logits, int64_t first, float least, float* kept,
                                        int32_t* indices) {
  int64_t count = 0;
  for (int64_t i = 0; i < kRowBlock; ++i) {
    kept[count] = logits[i];
    indices[count] = static_cast<int32_t>(first + i);
    count += logits[i] >= least;
  }
  return count;
}

// weights[i] = fixed_weight(logits[i])
TTC_ALWAYS_INLINE void fixed_weights(const float* logits, int64_t n, float max, float inv_temperature,
                                     int64_t* weights) {
  for (int64_t i = 0; i < n; ++i) weights[i] = fixed_weight(logits[i], max, inv_temperature);
}

// Sum of max(p - c q, 0) over a row, in units of 2^-40.
TTC_ALWAYS_INLINE int64_t residual_mass(const RowDist& p, const RowView& row, const RowDist& q, const RowView& draft,
                                        float c) {
  float buffer[kRowBlock], draft_buffer[kRowBlock];
  int64_t mass = 0;
  for (int64_t first = 0; first < row.n; first += kRowBlock) {
    const float* logits = block_of(row, first, buffer);
    const float* drafts = block_of(draft, first, draft_buffer);
    for (int64_t i = 0; i < kRowBlock; ++i) {
      const float kept = probability(p, logits[i], first + i);
      mass += to_fixed(remainder_of(kept, c, probability(q, drafts[i], first + i)));
    }
  }
  return mass;
}

// Entropy of a row in nats, in units of 2^-40: -log p = log z - (l - max) / T.
TTC_ALWAYS_INLINE int64_t entropy_mass(const RowDist& d, const RowView& row) {
  float buffer[kRowBlock];
  int64_t mass = 0;
  for (int64_t first = 0; first < row.n; first += kRowBlock) {
    const float* logits = block_of(row, first, buffer);
    for (int64_t i = 0; i < kRowBlock; ++i) {
      const float p = probability(d, logits[i], first + i);
      const float surprise = d.log_z - (logits[i] - d.max) * d.inv_temperature;
      mass += to_fixed(p > 0.0f ? p * surprise : 0.0f);
    }
  }
  return mass;
}

// A race of a row's tokens: the winner has the largest (l - max) / T + noise, plus the log of what
// is left of its probability when c times the draft's is taken away.
struct Race {
  RowView row;
  const float* tops = nullptr;  // from scan_row, filled up with -inf to a multiple of 16
  RowDist target;
  PhiloxStream stream;
  RowView draft;  // the draft's logits; data null: none
  RowDist draft_dist = {};
  float c = 0;
  const int32_t* excluded = nullptr;  // tokens that do not take part, in rising order
  int64_t num_excluded = 0;
};

// The words of 16 counters from c0 on.
using PhiloxBlock = void (*)(const PhiloxStream& stream, uint32_t c0, uint32_t* random);

TTC_ALWAYS_INLINE void philox_block(const PhiloxStream& stream, uint32_t c0, uint32_t* random) {
  for (int64_t j = 0; j < kRowLanes; ++j) {
    const Philox4 words = philox_draw(stream, c0 + static_cast<uint32_t>(j));
    for (int64_t i = 0; i < 4; ++i) random[4 * j + i] = words.word[i];
  }
}

// The earliest clocks of 16 blocks, and what the best scores in them may be.
struct NoiseBlocks {
  float least[kRowLanes], bound[kRowLanes];
  int32_t place[kRowLanes];

  NoiseBlock operator[](int64_t j) const { return {least[j], place[j]}; }
};

template <PhiloxBlock kPhiloxBlock>
TTC_ALWAYS_INLINE void draw_noise_blocks(const PhiloxStream& stream, int64_t block, NoiseBlocks& noise) {
  uint32_t random[4 * kRowLanes], word0[kRowLanes], word1[kRowLanes];
  kPhiloxBlock(stream, kNoiseBlockCounter + static_cast<uint32_t>(block), random);
  for (int64_t j = 0; j < kRowLanes; ++j) {
    word0[j] = random[4 * j];
    word1[j] = random[4 * j + 1];
  }
  for (int64_t j = 0; j < kRowLanes; ++j) {
    const NoiseBlock drawn = noise_block_of(word0[j], word1[j]);
    noise.least[j] = drawn.least;
    noise.place[j] = drawn.place;
    noise.bound[j] = noise_bound(drawn);
  }
}

// The scores of 64 tokens from index `first` on; -inf for those that are not kept. Returns whether any
// is `least` or more. `draft` is null if nothing is taken away, `noise` if there is none.
template <PhiloxBlock kPhiloxBlock, bool kNoise, bool kResidual>
TTC_ALWAYS_INLINE bool score_piece(const Race& a, const float* logits, const float* draft, int64_t first,
                                   const NoiseBlock& noise, float least, float* scores) {
  const RowDist& d = a.target;
  uint32_t random[kRowPiece];
  if constexpr (kNoise) kPhiloxBlock(a.stream, static_cast<uint32_t>(first / 4), random);
  int32_t any = 0;
  for (int64_t j = 0; j < kRowPiece; ++j) {
    const float l = logits[j];
    const int64_t index = first + j;
    bool kept = is_kept(d, l, index);
    float score = (l - d.max) * d.inv_temperature;
    if constexpr (kResidual) {
      const float p = probability(d, l, index);
      const float r = remainder_of(p, a.c, probability(a.draft_dist, draft[j], index));
      kept &= r > 0.0f;
      score = score + log_fp32(kept ? r / p : 1.0f);
    }
    if constexpr (kNoise) score = score + token_noise(noise, index, random[j]);
    score = kept ? score : kLowest;
    scores[j] = score;
    any |= (score > kLowest) & (score >= least) ? 1 : 0;
  }
  return any != 0;
}

// Whether a token among these 64 could reach `score` with the largest noise there is. Rounding is
// monotonic, so the bound holds for the rounded scores as well.
TTC_ALWAYS_INLINE bool may_reach(const RowDist& d, const float* logits, float noise, float score) {
  int32_t any = 0;
  for (int64_t j = 0; j < kRowPiece; ++j) {
    any |= (logits[j] >= d.pivot) & ((logits[j] - d.max) * d.inv_temperature + noise >= score) ? 1 : 0;
  }
  return any != 0;
}

// Calls body(first, scores) for each 64 tokens from index `first` on of which one may reach least().
template <PhiloxBlock kPhiloxBlock, bool kNoise, bool kResidual, typename Least, typename Body>
TTC_ALWAYS_INLINE void for_scores(const Race& a, const Least& least, const Body& body) {
  const RowDist& d = a.target;
  float buffer[kRowBlock], draft_buffer[kRowBlock], scores[kRowPiece], reach[kRowLanes];
  NoiseBlocks noise = {};
  for (int64_t b = 0; b < a.row.num_blocks(); ++b) {
    if (b % kRowLanes == 0) {
      if constexpr (kNoise) draw_noise_blocks<kPhiloxBlock>(a.stream, b, noise);
      for (int64_t j = 0; j < kRowLanes; ++j) {
        const float top = a.tops[b + j];
        const float score = (top - d.max) * d.inv_temperature + noise.bound[j];
        reach[j] = top >= d.pivot ? score : std::numeric_limits<float>::quiet_NaN();
      }
    }
    if (!(reach[b % kRowLanes] >= least())) continue;
    const int64_t first = b * kRowBlock;
    const float* logits = block_of(a.row, first, buffer);
    const float* draft = kResidual ? block_of(a.draft, first, draft_buffer) : nullptr;
    const int32_t* last = a.excluded + a.num_excluded;
    for (const int32_t* at = std::lower_bound(a.excluded, last, first); at != last && *at < first + kRowBlock; ++at) {
      if (logits != buffer) std::copy_n(logits, kRowBlock, buffer);
      logits = buffer;
      buffer[*at - first] = kLowest;
    }
    const float bound = noise.bound[b % kRowLanes];
    for (int64_t i = 0; i < kRowBlock; i += kRowPiece) {
      if (!may_reach(d, logits + i, bound, least())) continue;
      if (score_piece<kPhiloxBlock, kNoise, kResidual>(a, logits + i, kResidual ? draft + i : nullptr, first + i,
                                                       noise[b % kRowLanes], least(), scores)) {
        body(first + i, scores);
      }
    }
  }
}

// A score that many blocks cannot reach: that of a token which is likely, whether the argmax takes part
// or not. -inf if none is found.
TTC_ALWAYS_INLINE Winner likely_winner(const Race& a) {
  int64_t likely = a.target.argmax / kRowBlock;
  if (a.num_excluded > 0) {
    const int32_t* excluded = a.excluded;
    float top = kLowest;
    for (int64_t b = 0; b < a.row.num_blocks(); ++b) {
      bool is_whole = true;
      for (; excluded != a.excluded + a.num_excluded && *excluded < (b + 1) * kRowBlock; ++excluded) is_whole = false;
      if (!is_whole || !(a.tops[b] > top)) continue;
      top = a.tops[b];
      likely = b;
    }
    if (top == kLowest) return kNoWinner;
  }
  float buffer[kRowBlock];
  const float* logits = block_of(a.row, likely * kRowBlock, buffer);
  const int64_t at = std::find(logits, logits + kRowBlock, a.tops[likely]) - logits;
  const int64_t token = likely * kRowBlock + at;
  if (at == kRowBlock || !is_kept(a.target, logits[at], token)) return kNoWinner;
  return {(logits[at] - a.target.max) * a.target.inv_temperature + token_noise(a.stream, token), token};
}

// The winner of a row, the lower index on a tie; kNoWinner if no token takes part.
template <PhiloxBlock kPhiloxBlock, bool kResidual>
TTC_ALWAYS_INLINE Winner race_blocks(const Race& a) {
  Winner best = kResidual ? kNoWinner : likely_winner(a);
  for_scores<kPhiloxBlock, true, kResidual>(
      a, [&]() __attribute__((always_inline)) { return best.score; },
      [&](int64_t first, const float* scores) __attribute__((always_inline)) {
        for (int64_t j = 0; j < kRowPiece; ++j) {
          const Winner found = {scores[j], first + j};
          if (beats(found, best)) best = found;
        }
      });
  return best;
}

template <PhiloxBlock kPhiloxBlock>
TTC_ALWAYS_INLINE Winner race_row(const Race& a) {
  return a.draft.data == nullptr ? race_blocks<kPhiloxBlock, false>(a) : race_blocks<kPhiloxBlock, true>(a);
}

// The k best scores of a row in falling order, with noise or without; returns how many there are.
template <PhiloxBlock kPhiloxBlock, bool kNoise>
TTC_ALWAYS_INLINE int64_t top_scores(const Race& a, int64_t k, Winner* best) {
  int64_t count = 0;
  for_scores<kPhiloxBlock, kNoise, false>(
      a, [&]() __attribute__((always_inline)) { return count < k ? kLowest : best[k - 1].score; },
      [&](int64_t first, const float* scores) __attribute__((always_inline)) {
        for (int64_t j = 0; j < kRowPiece; ++j) {
          const Winner found = {scores[j], first + j};
          if (found.score == kLowest) continue;
          if (count == k && !beats(found, best[k - 1])) continue;
          int64_t place = count < k ? count++ : k - 1;
          for (; place > 0 && beats(found, best[place - 1]); --place) best[place] = best[place - 1];
          best[place] = found;
        }
      });
  return count;
}

}  // namespace ttc
