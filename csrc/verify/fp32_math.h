// exp, log and Gumbel noise from single-precision additions, multiplications and fused
// multiply-adds alone.
//
// IEEE 754 defines the result of each of these operations, so every machine, vector width and
// backend that evaluates them in the order written gets the same bits, and equal logits give equal
// tokens. That is why nothing here is fused unasked (-ffp-contract=off) or comes from a math
// library.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/philox.h"

namespace ttc {

TTC_HOST_DEVICE float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

TTC_HOST_DEVICE uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

// log(2^k (1 + f)) for 1 + f in [sqrt(1/2), sqrt(2)); minimax polynomial, relative error 6e-9
// before rounding.
TTC_HOST_DEVICE float log_of_parts(float k, float f) {
  const float z = f * f;
  float p = -0.07634429633617401f;
  p = p * f + 0.12761549651622772f;
  p = p * f + -0.131601944565773f;
  p = p * f + 0.14201761782169342f;
  p = p * f + -0.16623356938362122f;
  p = p * f + 0.20001226663589478f;
  p = p * f + -0.250008225440979f;
  p = p * f + 0.3333333134651184f;
  float y = p * f * z;
  // ln 2 in two parts; the large one has so few bits that its product with k is exact.
  y = y + k * -2.12194440e-4f;
  y = y - 0.5f * z;
  return (f + y) + k * 0.693359375f;
}

// log(x) for normal x > 0.
TTC_HOST_DEVICE float log_fp32(float x) {
  // Adding this to the bits carries into the exponent exactly when the mantissa is >= sqrt(2).
  const uint32_t shifted = float_to_bits(x) + (0x3f800000u - 0x3f3504f3u);
  const float k = static_cast<float>(static_cast<int32_t>(shifted >> 23) - 127);
  const float m = bits_to_float((shifted & 0x007fffffu) + 0x3f3504f3u);
  return log_of_parts(k, m - 1.0f);
}

// -log(1 - w) for w in (0, 1): the exponential variable of a uniform one, exact to a few ulp down
// to the smallest w, where the winners of a Gumbel race come from.
TTC_HOST_DEVICE float exponential(float w) {
  const uint32_t shifted = float_to_bits(1.0f - w) + (0x3f800000u - 0x3f3504f3u);
  const float k = static_cast<float>(static_cast<int32_t>(shifted >> 23) - 127);
  const float m = bits_to_float((shifted & 0x007fffffu) + 0x3f3504f3u);
  // 1 - w has lost the last bits of a small w; w itself has not.
  return -log_of_parts(k, k == 0.0f ? -w : m - 1.0f);
}

// 32 random bits -> the centre of one of 2^32 cells of (0, 1). The largest values would round to 1
// and are brought down to the largest float below it.
TTC_HOST_DEVICE float uniform(uint32_t random) {
  const float r = static_cast<float>(random) + 0.5f;
  return (r < 4294967040.0f ? r : 4294967040.0f) * 0x1p-32f;
}

// Gumbel noise of a row's tokens, made so that most of it never has to be: -log of independent
// exponential clocks, in blocks of 256. The first clock to ring among 256 does so at Exp(1) / 256, in
// a uniform place, and since clocks have no memory the others ring at that time plus Exp(1) each. So
// two random words of a block bound all its noise, and only a block that may win draws its tokens'.
constexpr int64_t kNoiseBlock = 256;

struct NoiseBlock {
  float least;    // the earliest clock of the block
  int32_t place;  // whose it is, from the block's beginning
};

// Counters of blocks; those of tokens are below 2^22.
constexpr uint32_t kNoiseBlockCounter = 0x80000000u;

TTC_HOST_DEVICE float earliest(float uniform) { return exponential(uniform) * (1.0f / kNoiseBlock); }

TTC_HOST_DEVICE int32_t place_of(uint32_t word) { return static_cast<int32_t>(word >> 24); }

TTC_HOST_DEVICE NoiseBlock noise_block_of(uint32_t word0, uint32_t word1) {
  return {earliest(uniform(word0)), place_of(word1)};
}

TTC_HOST_DEVICE NoiseBlock noise_block(const PhiloxStream& stream, int64_t block) {
  const Philox4 words = philox_draw(stream, kNoiseBlockCounter + static_cast<uint32_t>(block));
  return noise_block_of(words.word[0], words.word[1]);
}

// No less than the noise of any token of the block; log_fp32 may be out of order by an ulp.
TTC_HOST_DEVICE float noise_bound(const NoiseBlock& block) { return -log_fp32(block.least) + 1e-3f; }

// Standard Gumbel noise of token `index`, whose random word this is.
TTC_HOST_DEVICE float token_noise(const NoiseBlock& block, int64_t index, uint32_t word) {
  const float later = block.least + exponential(uniform(word));
  return -log_fp32(static_cast<int32_t>(index % kNoiseBlock) == block.place ? block.least : later);
}

TTC_HOST_DEVICE float token_noise(const PhiloxStream& stream, int64_t index) {
  const Philox4 words = philox_draw(stream, static_cast<uint32_t>(index / 4));
  const uint32_t even = index % 4 < 2 ? words.word[0] : words.word[2];
  const uint32_t odd = index % 4 < 2 ? words.word[1] : words.word[3];
  return token_noise(noise_block(stream, index / kNoiseBlock), index, index % 2 == 0 ? even : odd);
}

// exp(x) for x <= 0, relative error 1e-7; 1 at 0; below -80 it stays at exp(-80).
TTC_HOST_DEVICE float exp_fp32(float x) {
  x = x > -80.0f ? x : -80.0f;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding and subtracting it rounds to an integer
  const float k = (x * 1.44269504f + magic) - magic;
  const float r = (x - k * 0.693359375f) - k * -2.12194440e-4f;
  float p = 0.001381446490995586f;
  p = p * r + 0.008368780836462975f;
  p = p * r + 0.04166839271783829f;
  p = p * r + 0.1666651964187622f;
  p = p * r + 0.4999999403953552f;
  const float y = (p * (r * r) + r) + 1.0f;
  return y * bits_to_float(static_cast<uint32_t>(static_cast<int32_t>(k) + 127) << 23);
}

constexpr float kLog2E = 1.44269504f;

// Between 2^23 and 2^24, where floats are spaced by 1.
constexpr float kExp2Anchor = 12582912.0f;
constexpr float kExp2[] = {0.001326472731307149f, 0.009671512991189957f, 0.05550733581185341f,
                           0.24022242426872253f,  0.6931470036506653f,   1.0f};

// 2^y for y <= 0, relative error 2e-7; 1 at 0; below -120 it stays at 2^-120. fmaf is IEEE's fused
// operation, rounded once, and so as well defined as the others.
TTC_HOST_DEVICE float exp2_fp32(float y) {
  y = y > -120.0f ? y : -120.0f;
  const float magic = 12582912.0f;
  const float shifted = y + magic;  // its low bits are the nearest integer to y
  const float r = y - (shifted - magic);
  float p = 0.001326472731307149f;
  p = fmaf(p, r, 0.009671512991189957f);
  p = fmaf(p, r, 0.05550733581185341f);
  p = fmaf(p, r, 0.24022242426872253f);
  p = fmaf(p, r, 0.6931470036506653f);
  p = fmaf(p, r, 1.0f);
  return bits_to_float(float_to_bits(p) + (float_to_bits(shifted) << 23));
}

// w in [0, 1] as an integer multiple of 2^-40. Sums of integers do not depend on their order, so
// neither do probabilities and the cut of top-p.
TTC_HOST_DEVICE int64_t to_fixed(float w) {
  const double anchor = 6144.0;  // 1.5 * 2^12: doubles around it are spaced by 2^-40
  const double shifted = static_cast<double>(w) + anchor;
  int64_t bits, origin;
  std::memcpy(&bits, &shifted, 8);
  std::memcpy(&origin, &anchor, 8);
  return bits - origin;
}

constexpr double kFixedOne = 0x1p40;

}  // namespace ttc
