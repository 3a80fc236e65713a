// The passes over one row of logits, in plain loops that are compiled once per instruction set.
// All variants give the same bits; see fp32_math.h.
//
// A row of any float type is read in blocks of 256 tokens, widened to fp32 in the first-level cache.
// The first pass keeps the largest logit of every block; after it most blocks are passed over unread
// by all that looks for a few tokens: races, the likeliest tokens, cuts.
#pragma once

#include <algorithm>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "common/isa.h"
#include "common/philox.h"
#include "verify/row_math.h"
#include "verify/row_view.h"

namespace ttc {

struct RowScan {
  float max;
  bool special;  // something is NaN or infinite
  float least;   // no logit is below it; of no use if there is something special
  // An estimate of the weights' sum in passing, for one scale only. See Estimate; 0: there is none.
  double estimate = 0;
  float scale = 0, reference = 0;
};

// tops[b] = the largest logit of block b, NaNs aside.
TTC_ALWAYS_INLINE RowScan scan_row(const RowView& row, float /*scale*/, float* tops) {
  float buffer[kRowBlock];
  int32_t largest[kRowPiece] = {};  // bits of |logit|
  float max = kLowest;
  for (int64_t first = 0; first < row.n; first += kRowBlock) {
    row.keep_up(row.data + first * dtype_bytes(row.dtype), kRowBlock * dtype_bytes(row.dtype));
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
constexpr float kCoarseAnchor = 48.0f, kFineAnchor = 0x1.8p-17f;
// log2 of weights: below them there is nothing to be cut off, or all is rounded to 0.
constexpr float kFewBits = -18.5f, kNoWeight = -41.5f;

TTC_ALWAYS_INLINE int64_t sum_weights(const RowView& row, const RowScan& scan, float inv_temperature,
                                      const float* tops) {
  const float scale = inv_temperature * kLog2E;
  float buffer[kRowBlock];
  int64_t sum = 0;
  for (int64_t first = 0; first < row.n; first += kRowBlock) {
    row.fetch_ahead(kRowBlock * dtype_bytes(row.dtype) * 3 / 4);
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

// What a sum of weights lies between, in units of 2^-40.
struct MassBounds {
  int64_t least, most;
};

TTC_ALWAYS_INLINE MassBounds bound_weights(const RowView& row, const RowScan& scan, float inv_temperature,
                                           const float* tops) {
  const int64_t sum = sum_weights(row, scan, inv_temperature, tops);
  return {sum, sum};
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
  const float* tops = nullptr;  // from scan_row, filled up with -inf to a multiple of 64
  RowDist target;
  PhiloxStream stream;
  RowView draft;  // the draft's logits; data null: none
  RowDist draft_dist = {};
  float c = 0;
  const int32_t* excluded = nullptr;  // tokens that do not take part, in rising order
  int64_t num_excluded = 0;
};

// What a race does with 16 or 64 numbers at a time, in plain loops.
struct PlainLanes {
  // words[kCount i + j] = word i of counter j.
  template <int64_t kCount>
  TTC_ALWAYS_INLINE static void philox(const PhiloxStream& stream, const uint32_t* counters, uint32_t* words) {
    for (int64_t j = 0; j < kCount; ++j) {
      const Philox4 drawn = philox_draw(stream, counters[j]);
      for (int64_t i = 0; i < 4; ++i) words[kCount * i + j] = drawn.word[i];
    }
  }

  // Writes those of n numbers, a multiple of 16, that are `least` or more one after the other, with their
  // indices, the first being `first`; returns how many there are. Room for n is needed whatever they are.
  TTC_ALWAYS_INLINE static int64_t compact(const float* numbers, int64_t n, int64_t first, float least, float* kept,
                                           int32_t* indices) {
    int64_t count = 0;
    for (int64_t i = 0; i < n; ++i) {
      kept[count] = numbers[i];
      indices[count] = static_cast<int32_t>(first + i);
      count += numbers[i] >= least;
    }
    return count;
  }

  // The first of the largest of n numbers, a multiple of 64.
  TTC_ALWAYS_INLINE static int64_t index_of_largest(const float* numbers, int64_t n) {
    float lanes[kRowLanes];
    std::copy_n(numbers, kRowLanes, lanes);
    for (int64_t i = kRowLanes; i < n; i += kRowLanes) {
      for (int64_t j = 0; j < kRowLanes; ++j) lanes[j] = numbers[i + j] > lanes[j] ? numbers[i + j] : lanes[j];
    }
    const float largest = *std::max_element(lanes, lanes + kRowLanes);
    return std::find(numbers, numbers + n, largest) - numbers;
  }

  // Which of 64 tokens could reach `score` with the largest noise there is. Rounding is monotonic, so
  // the bound holds for the rounded scores as well.
  TTC_ALWAYS_INLINE static uint64_t reaching(const RowDist& d, const float* logits, float noise, float score) {
    int32_t reaches[kRowPiece], any = 0;
    for (int64_t j = 0; j < kRowPiece; ++j) {
      reaches[j] = (logits[j] >= d.pivot) & ((logits[j] - d.max) * d.inv_temperature + noise >= score) ? 1 : 0;
      any |= reaches[j];
    }
    uint64_t bits = 0;
    for (int64_t j = 0; any != 0 && j < kRowPiece; ++j) bits |= static_cast<uint64_t>(reaches[j]) << j;
    return bits;
  }
};

// As Lanes::compact, of the tokens of some blocks. Room for all of them is needed.
template <class Lanes>
TTC_ALWAYS_INLINE int64_t compact_blocks(const RowView& row, const int32_t* blocks, int64_t num_blocks, float least,
                                         float* kept, int32_t* indices) {
  float buffer[kRowBlock];
  int64_t count = 0;
  for (int64_t i = 0; i < num_blocks; ++i) {
    const int64_t first = blocks[i] * kRowBlock;
    count += Lanes::compact(block_of(row, first, buffer), kRowBlock, first, least, kept + count, indices + count);
  }
  return count;
}

constexpr int64_t kRaceBlocks = 1024;  // that are put in order together

// The earliest clocks of blocks, and what the best scores in them may be.
struct NoiseBlocks {
  float least[kRaceBlocks], bound[kRaceBlocks];
  int32_t place[kRaceBlocks];
};

// Of `count` blocks, a multiple of 64. Each logarithm is one long chain of operations: in loops of their own,
// many are under way at a time.
template <class Lanes>
TTC_ALWAYS_INLINE void draw_noise_blocks(const Race& a, const int32_t* blocks, int64_t count, NoiseBlocks& noise) {
  uint32_t counters[kRowPiece], words[4 * kRowPiece];
  for (int64_t i = 0; i < count; i += kRowPiece) {
    for (int64_t j = 0; j < kRowPiece; ++j) counters[j] = kNoiseBlockCounter + static_cast<uint32_t>(blocks[i + j]);
    Lanes::template philox<kRowPiece>(a.stream, counters, words);
    a.row.fetch_ahead(4 * kRowBlock * dtype_bytes(a.row.dtype));
    for (int64_t j = 0; j < kRowPiece; ++j) {
      noise.least[i + j] = uniform(words[j]);
      noise.place[i + j] = place_of(words[kRowPiece + j]);
    }
  }
  for (int64_t j = 0; j < count; ++j) noise.least[j] = earliest(noise.least[j]);
  for (int64_t j = 0; j < count; ++j) noise.bound[j] = noise_bound({noise.least[j], noise.place[j]});
}

// Tokens of any blocks that may win a race, to be scored together.
struct Candidates {
  int64_t count = 0;
  int32_t token[kRowLanes] = {};
  float logit[kRowLanes] = {}, draft[kRowLanes] = {};
  NoiseBlock noise[kRowLanes] = {};
};

// Their scores; -inf for those that are not kept.
template <class Lanes, bool kNoise, bool kResidual>
TTC_ALWAYS_INLINE void score_candidates(const Race& a, const Candidates& x, float* scores) {
  const RowDist& d = a.target;
  uint32_t counters[kRowLanes], words[4 * kRowLanes], random[kRowLanes];
  if constexpr (kNoise) {
    for (int64_t j = 0; j < kRowLanes; ++j) counters[j] = static_cast<uint32_t>(x.token[j]) / 4;
    Lanes::template philox<kRowLanes>(a.stream, counters, words);
    for (int64_t j = 0; j < kRowLanes; ++j) {
      const int32_t i = x.token[j] % 4;
      const uint32_t even = i < 2 ? words[j] : words[2 * kRowLanes + j];
      const uint32_t odd = i < 2 ? words[kRowLanes + j] : words[3 * kRowLanes + j];
      random[j] = i % 2 == 0 ? even : odd;
    }
  }
  for (int64_t j = 0; j < kRowLanes; ++j) {
    const float l = x.logit[j];
    bool kept = is_kept(d, l, x.token[j]);
    float score = (l - d.max) * d.inv_temperature;
    if constexpr (kResidual) {
      const float p = probability(d, l, x.token[j]);
      const float r = remainder_of(p, a.c, probability(a.draft_dist, x.draft[j], x.token[j]));
      kept &= r > 0.0f;
      score = score + log_fp32(kept ? r / p : 1.0f);
    }
    if constexpr (kNoise) score = score + token_noise(x.noise[j], x.token[j], random[j]);
    scores[j] = kept ? score : kLowest;
  }
}

// Calls body(found) for tokens with their scores, for all at least that reach least().
//
// The block that may reach most is visited first: it raises least() the soonest, and once what is left
// cannot reach it, hardly a block has been visited in vain.
template <class Lanes, bool kNoise, bool kResidual, typename Least, typename Body>
TTC_ALWAYS_INLINE void for_scores(const Race& a, const Least& least, const Body& body) {
  const RowDist& d = a.target;
  float buffer[kRowBlock], draft_buffer[kRowBlock], reach[kRaceBlocks];
  int32_t blocks[kRaceBlocks];  // those with a token that is kept
  NoiseBlocks noise;
  Candidates candidates;
  const auto score = [&]() __attribute__((always_inline)) {
    float scores[kRowLanes];
    score_candidates<Lanes, kNoise, kResidual>(a, candidates, scores);
    for (int64_t j = 0; j < candidates.count; ++j) {
      if (scores[j] > kLowest) body(Winner{scores[j], candidates.token[j]});
    }
    candidates.count = 0;
  };
  const auto visit = [&](int64_t first, const NoiseBlock& noise, float bound) __attribute__((always_inline)) {
    const float* logits = block_of(a.row, first, buffer);
    const float* draft = kResidual ? block_of(a.draft, first, draft_buffer) : nullptr;
    const int32_t* last = a.excluded + a.num_excluded;
    for (const int32_t* at = std::lower_bound(a.excluded, last, first); at != last && *at < first + kRowBlock; ++at) {
      if (logits != buffer) std::copy_n(logits, kRowBlock, buffer);
      logits = buffer;
      buffer[*at - first] = kLowest;
    }
    for (int64_t i = 0; i < kRowBlock; i += kRowPiece) {
      for (uint64_t bits = Lanes::reaching(d, logits + i, bound, least()); bits != 0; bits &= bits - 1) {
        const int64_t token = i + __builtin_ctzll(bits), j = candidates.count++;
        candidates.token[j] = static_cast<int32_t>(first + token);
        candidates.logit[j] = logits[token];
        if constexpr (kResidual) candidates.draft[j] = draft[token];
        candidates.noise[j] = noise;
        if (candidates.count == kRowLanes) score();
      }
    }
  };
  for (int64_t begin = 0; begin < a.row.num_blocks(); begin += kRaceBlocks) {
    const int64_t end = std::min(begin + kRaceBlocks, a.row.num_blocks());
    const int64_t kept = Lanes::compact(a.tops + begin, whole_pieces(end - begin), begin, d.pivot, reach, blocks);
    const int64_t count = whole_pieces(kept);
    std::fill(reach + kept, reach + count, kLowest);
    std::fill(blocks + kept, blocks + count, 0);
    if constexpr (kNoise) draw_noise_blocks<Lanes>(a, blocks, count, noise);
    for (int64_t j = 0; j < count; ++j) {
      reach[j] = (reach[j] - d.max) * d.inv_temperature + (kNoise ? noise.bound[j] : 0.0f);
    }
    while (count > 0) {
      const int64_t j = Lanes::index_of_largest(reach, count);
      if (reach[j] == kLowest || reach[j] < least()) break;
      reach[j] = kLowest;
      a.row.fetch_ahead(4 * kRowBlock * dtype_bytes(a.row.dtype));
      if constexpr (kNoise) {
        visit(blocks[j] * kRowBlock, {noise.least[j], noise.place[j]}, noise.bound[j]);
      } else {
        visit(blocks[j] * kRowBlock, {}, 0.0f);
      }
    }
    score();
  }
}

// The winner of a row, the lower index on a tie; kNoWinner if no token takes part.
template <class Lanes, bool kResidual>
TTC_ALWAYS_INLINE Winner race_blocks(const Race& a) {
  Winner best = kNoWinner;
  // The likeliest token's score is out of reach for most blocks; its logit is the largest, less which
  // it is 0.
  const int32_t likeliest = a.target.argmax;
  if (!kResidual && !std::binary_search(a.excluded, a.excluded + a.num_excluded, likeliest)) {
    best = {token_noise(a.stream, likeliest), likeliest};
  }
  for_scores<Lanes, true, kResidual>(
      a, [&]() __attribute__((always_inline)) { return best.score; },
      [&](const Winner& found) __attribute__((always_inline)) {
        if (beats(found, best)) best = found;
      });
  return best;
}

template <class Lanes>
TTC_ALWAYS_INLINE Winner race_row(const Race& a) {
  return a.draft.data == nullptr ? race_blocks<Lanes, false>(a) : race_blocks<Lanes, true>(a);
}

// The k best scores of a row in falling order, with noise or without; returns how many there are.
template <class Lanes, bool kNoise>
TTC_ALWAYS_INLINE int64_t top_scores(const Race& a, int64_t k, Winner* best) {
  int64_t count = 0;
  for_scores<Lanes, kNoise, false>(
      a, [&]() __attribute__((always_inline)) { return count < k ? kLowest : best[k - 1].score; },
      [&](const Winner& found) __attribute__((always_inline)) {
        if (count == k && !beats(found, best[k - 1])) return;
        int64_t place = count < k ? count++ : k - 1;
        for (; place > 0 && beats(found, best[place - 1]); --place) best[place] = best[place - 1];
        best[place] = found;
      });
  return count;
}

}  // namespace ttc
