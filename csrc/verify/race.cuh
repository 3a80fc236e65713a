// Races of a row's tokens, and sums over its distribution, by one block.
//
// A token wins if its score, scaled logit and Gumbel noise, is the largest. The noise comes in blocks of
// 256 tokens, which are the pieces of a warp: two random words bound all of it, and most blocks cannot
// reach the score of the likeliest token, with which every thread begins.
#pragma once

#include "verify/describe.cuh"

namespace ttc {

// Calls body(place) for the tokens whose score may reach `to_beat`, which body may raise, and for some
// others. score(index, logit, scaled) is what noise is added to: at most `scaled`, -inf for a token that
// takes no part.
template <bool kNoise, class Score, class Body>
__device__ __forceinline__ void for_scores(const RowView& row, const RowDist& d, const PhiloxStream& stream,
                                           const float& to_beat, const Score& score, const Body& body) {
  for_pieces(row, [&](int first, const float (&logits)[kPiece]) {
    float top = logits[0];
#pragma unroll
    for (int i = 1; i < kPiece; ++i) top = logits[i] > top ? logits[i] : top;
    const float scaled = (top - d.max) * d.inv_temperature;
    if (!(top >= d.pivot)) return;
    NoiseBlock block{};
    if constexpr (kNoise) block = noise_block(stream, first / kNoiseBlock);
    if (!(scaled + (kNoise ? noise_bound(block) : 0.0f) >= to_beat)) return;
#pragma unroll
    for (int i = 0; i < kPiece; i += 4) {
      Philox4 words{};
      if constexpr (kNoise) words = philox_draw(stream, static_cast<uint32_t>(first + i) / 4);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float l = logits[i + j];
        const int index = first + i + j;
        if (!is_kept(d, l, index)) continue;
        const float base = score(index, l, (l - d.max) * d.inv_temperature);
        if (!(base > kLowest)) continue;
        body(place_of(kNoise ? base + token_noise(block, index, words.word[j]) : base, index));
      }
    }
  });
}

// The first place among the tokens' and `best`.
template <class Score>
__device__ __forceinline__ uint64_t race_pieces(const RowView& row, const RowDist& d, const PhiloxStream& stream,
                                                uint64_t best, const Score& score) {
  float to_beat = best == kNoPlace ? kLowest : value_at(best);
  for_scores<true>(row, d, stream, to_beat, score, [&](uint64_t place) {
    if (place < best) best = place, to_beat = value_at(place);
  });
  return best;
}

// The winner among all kept tokens.
__device__ __forceinline__ int32_t race_row(const LogitRows& logits, int64_t r, const RowDist& d,
                                            const PhiloxStream& stream, ReduceScratch& s) {
  if (d.inv_temperature == 0.0f) return d.argmax;
  const uint64_t known = place_of(token_noise(stream, d.argmax), d.argmax);
  const uint64_t best =
      race_pieces(row_view(logits, r), d, stream, known, [](int, float, float scaled) { return scaled; });
  return index_at(block_reduce<Min>(best, s.places));
}

// Entropy of a row in nats, in units of 2^-40.
__device__ __forceinline__ int64_t entropy_of(const RowView& row, const RowDist& d, ReduceScratch& s) {
  int64_t mass = 0;
  for_pieces(row, [&](int first, const float (&logits)[kPiece]) {
#pragma unroll
    for (int i = 0; i < kPiece; ++i) {
      const float p = probability(d, logits[i], first + i);
      if (p > 0.0f) mass += to_fixed(p * (d.log_z - (logits[i] - d.max) * d.inv_temperature));
    }
  });
  return block_reduce<Sum>(mass, s.sums);
}

}  // namespace ttc
