// Passes over a row with AVX-512 instructions that GCC does not find in row_kernels.h, and the same
// results. There is what they compute and why; here, how.
#pragma once

#include "verify/row_kernels.h"

#if TTC_X86

namespace ttc {

// What PlainLanes has.
struct Avx512Lanes {
  // GCC does not find the 32 x 32 -> 64 bit multiplication of 512-bit vectors by itself.
  template <int64_t kCount>
  TTC_TARGET_AVX512 static void philox(const PhiloxStream& stream, const uint32_t* counters, uint32_t* words) {
    constexpr int64_t kSets = kCount / kRowLanes;
    const auto all = [](uint32_t word)
                         __attribute__((target("avx512f"))) { return _mm512_set1_epi32(static_cast<int>(word)); };
    __m512i w0[kSets];
    __m512i w1[kSets];
    __m512i w2[kSets];
    __m512i w3[kSets];
    for (int64_t i = 0; i < kSets; ++i) {
      w0[i] = _mm512_loadu_si512(counters + kRowLanes * i);
      w1[i] = all(stream.counter[1]);
      w2[i] = all(stream.counter[2]);
      w3[i] = all(stream.counter[3]);
    }
    const __m512i factor0 = all(kPhiloxFactor0), factor1 = all(kPhiloxFactor1);
    __m512i key0 = all(stream.key[0]), key1 = all(stream.key[1]);
    constexpr auto kOddDown = static_cast<_MM_PERM_ENUM>(0xf5), kEvenUp = static_cast<_MM_PERM_ENUM>(0xa0);
#pragma GCC unroll 1
    for (int round = 0; round < 10; ++round) {
#pragma GCC unroll 4
      for (int64_t i = 0; i < kSets; ++i) {
        // Even and odd lanes are multiplied apart; their halves are then put back into place.
        const __m512i even0 = _mm512_mul_epu32(w0[i], factor0);
        const __m512i odd0 = _mm512_mul_epu32(_mm512_srli_epi64(w0[i], 32), factor0);
        const __m512i even1 = _mm512_mul_epu32(w2[i], factor1);
        const __m512i odd1 = _mm512_mul_epu32(_mm512_srli_epi64(w2[i], 32), factor1);
        const __m512i high0 = _mm512_mask_shuffle_epi32(odd0, 0x5555, even0, kOddDown);
        const __m512i high1 = _mm512_mask_shuffle_epi32(odd1, 0x5555, even1, kOddDown);
        w0[i] = _mm512_ternarylogic_epi32(high1, w1[i], key0, 0x96);
        w2[i] = _mm512_ternarylogic_epi32(high0, w3[i], key1, 0x96);
        w1[i] = _mm512_mask_shuffle_epi32(even1, 0xaaaa, odd1, kEvenUp);
        w3[i] = _mm512_mask_shuffle_epi32(even0, 0xaaaa, odd0, kEvenUp);
      }
      key0 = _mm512_add_epi32(key0, all(kPhiloxWeyl0));
      key1 = _mm512_add_epi32(key1, all(kPhiloxWeyl1));
    }
    for (int64_t i = 0; i < kSets; ++i) {
      _mm512_storeu_si512(words + kRowLanes * i, w0[i]);
      _mm512_storeu_si512(words + kRowLanes * i + kCount, w1[i]);
      _mm512_storeu_si512(words + kRowLanes * i + 2 * kCount, w2[i]);
      _mm512_storeu_si512(words + kRowLanes * i + 3 * kCount, w3[i]);
    }
  }

  TTC_TARGET_AVX512 static int64_t compact(const float* numbers, int64_t n, int64_t first, float least, float* kept,
                                           int32_t* indices) {
    const __m512 bound = _mm512_set1_ps(least);
    __m512i index = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    index = _mm512_add_epi32(index, _mm512_set1_epi32(static_cast<int>(first)));
    int64_t count = 0;
    for (int64_t i = 0; i < n; i += kRowLanes) {
      const __m512 x = _mm512_loadu_ps(numbers + i);
      const __mmask16 is_kept = _mm512_cmp_ps_mask(x, bound, _CMP_GE_OQ);
      _mm512_storeu_ps(kept + count, _mm512_maskz_compress_ps(is_kept, x));
      _mm512_storeu_si512(indices + count, _mm512_maskz_compress_epi32(is_kept, index));
      count += __builtin_popcount(is_kept);
      index = _mm512_add_epi32(index, _mm512_set1_epi32(kRowLanes));
    }
    return count;
  }

  TTC_TARGET_AVX512 static int64_t index_of_largest(const float* numbers, int64_t n) {
    __m512 lanes[4];
    for (int64_t v = 0; v < 4; ++v) lanes[v] = _mm512_loadu_ps(numbers + kRowLanes * v);
    for (int64_t i = kRowPiece; i < n; i += kRowPiece) {
#pragma GCC unroll 4
      for (int64_t v = 0; v < 4; ++v) lanes[v] = _mm512_max_ps(lanes[v], _mm512_loadu_ps(numbers + i + kRowLanes * v));
    }
    const __m512 both = _mm512_max_ps(_mm512_max_ps(lanes[0], lanes[1]), _mm512_max_ps(lanes[2], lanes[3]));
    const __m512 largest = _mm512_set1_ps(_mm512_reduce_max_ps(both));
    for (int64_t i = 0;; i += kRowLanes) {
      const __mmask16 found = _mm512_cmp_ps_mask(_mm512_loadu_ps(numbers + i), largest, _CMP_EQ_OQ);
      if (found != 0) return i + __builtin_ctz(found);
    }
  }

  TTC_TARGET_AVX512 static uint64_t reaching(const RowDist& d, const float* logits, float noise, float score) {
    const __m512 pivot = _mm512_set1_ps(d.pivot), max = _mm512_set1_ps(d.max), bound = _mm512_set1_ps(score);
    const __m512 inv = _mm512_set1_ps(d.inv_temperature), most = _mm512_set1_ps(noise);
    uint64_t bits = 0;
#pragma GCC unroll 4
    for (int64_t j = 0; j < kRowPiece; j += kRowLanes) {
      const __m512 l = _mm512_loadu_ps(logits + j);
      // Not to be fused: this rounds as the scores do.
      const __m512 scaled = _mm512_mul_ps(_mm512_sub_ps(l, max), inv);
      const __mmask16 kept = _mm512_cmp_ps_mask(l, pivot, _CMP_GE_OQ);
      bits |= static_cast<uint64_t>(_mm512_mask_cmp_ps_mask(kept, _mm512_add_ps(scaled, most), bound, _CMP_GE_OQ)) << j;
    }
    return bits;
  }
};

// Numbers as wide as the floats of a row.
template <Dtype kDtype>
struct Bits {
  static constexpr uint32_t kSign = 0x8000;
  static constexpr uint32_t kInfinity = kDtype == Dtype::kFloat16 ? 0x7c00 : 0x7f80;
  TTC_TARGET_AVX512 TTC_ALWAYS_INLINE static __m512i max_signed(__m512i a, __m512i b) { return _mm512_max_epi16(a, b); }
  TTC_TARGET_AVX512 TTC_ALWAYS_INLINE static __m512i max_unsigned(__m512i a, __m512i b) {
    return _mm512_max_epu16(a, b);
  }
  TTC_TARGET_AVX512 TTC_ALWAYS_INLINE static __m512i min_unsigned(__m512i a, __m512i b) {
    return _mm512_min_epu16(a, b);
  }
  // The smallest of unsigned lanes.
  TTC_TARGET_AVX512 TTC_ALWAYS_INLINE static uint32_t smallest(__m512i lanes) {
    const __m256i a = _mm256_min_epu16(_mm512_castsi512_si256(lanes), _mm512_extracti64x4_epi64(lanes, 1));
    const __m128i b = _mm_min_epu16(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    return static_cast<uint32_t>(_mm_extract_epi16(_mm_minpos_epu16(b), 0));
  }
  TTC_TARGET_AVX512 static float to_float(uint32_t bits) {
    return kDtype == Dtype::kFloat16 ? _cvtsh_ss(static_cast<uint16_t>(bits)) : bits_to_float(bits << 16);
  }
};

template <>
struct Bits<Dtype::kFloat32> {
  static constexpr uint32_t kSign = 0x80000000u, kInfinity = 0x7f800000u;
  TTC_TARGET_AVX512 TTC_ALWAYS_INLINE static __m512i max_signed(__m512i a, __m512i b) { return _mm512_max_epi32(a, b); }
  TTC_TARGET_AVX512 TTC_ALWAYS_INLINE static __m512i max_unsigned(__m512i a, __m512i b) {
    return _mm512_max_epu32(a, b);
  }
  TTC_TARGET_AVX512 TTC_ALWAYS_INLINE static __m512i min_unsigned(__m512i a, __m512i b) {
    return _mm512_min_epu32(a, b);
  }
  TTC_TARGET_AVX512 TTC_ALWAYS_INLINE static uint32_t smallest(__m512i lanes) {
    const __m256i a = _mm256_min_epu32(_mm512_castsi512_si256(lanes), _mm512_extracti64x4_epi64(lanes, 1));
    __m128i b = _mm_min_epu32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    b = _mm_min_epu32(b, _mm_shuffle_epi32(b, 0x4e));
    b = _mm_min_epu32(b, _mm_shuffle_epi32(b, 0xb1));
    return static_cast<uint32_t>(_mm_cvtsi128_si32(b));
  }
  static float to_float(uint32_t bits) { return bits_to_float(bits); }
};

// 128 logits are worked on side by side, to hide the latency of their operations.
constexpr int kVectors = 8;
#define TTC_EACH _Pragma("GCC unroll 8") for (int v = 0; v < kVectors; ++v)
template <Dtype kDtype>
TTC_TARGET_AVX512 TTC_ALWAYS_INLINE void load_vectors(const char* source, __m512* logits) {
#pragma GCC unroll 8
  for (int i = 0; i < kVectors; i += 2) {
    if constexpr (kDtype == Dtype::kFloat32) {
      logits[i] = _mm512_loadu_ps(source + 64 * i);
      logits[i + 1] = _mm512_loadu_ps(source + 64 * i + 64);
    } else if constexpr (kDtype == Dtype::kFloat16) {
      logits[i] = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + 32 * i)));
      logits[i + 1] = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + 32 * i + 32)));
    } else {
      const __m512i pairs = _mm512_loadu_si512(source + 32 * i);
      logits[i] = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
      logits[i + 1] = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
    }
  }
}

// About the sum of 2^y over the logits, y = (l - reference) scale, and up to 1.0615 times as much: with an
// integer k and f in [0, 1) so that y = k + f, 2^k (1 + f) stands for 2^y, and that is what a float's bits
// mean. The sum is that of 2^(y - 60), to have room above the reference; what is too small for a float is 0.
struct Estimate {
  static constexpr float kRoom = 60.0f;

  __m512 sums[kVectors];
  __m512 factor, offset;
  float reference;

  TTC_TARGET_AVX512 TTC_ALWAYS_INLINE void begin(float top, float scale) {
    reference = top;
    factor = _mm512_set1_ps(scale * 0x1p23f);
    offset = _mm512_set1_ps((127.0f - kRoom - top * scale) * 0x1p23f);
    TTC_EACH sums[v] = _mm512_setzero_ps();
  }

  template <Dtype kDtype>
  TTC_TARGET_AVX512 TTC_ALWAYS_INLINE void add(const char* block) {
    constexpr int64_t kStep = kVectors * kRowLanes;
#pragma GCC unroll 2
    for (int64_t i = 0; i < kRowBlock; i += kStep) {
      __m512 y[kVectors];
      load_vectors<kDtype>(block + i * dtype_bytes(kDtype), y);
      TTC_EACH y[v] = _mm512_max_ps(_mm512_fmadd_ps(y[v], factor, offset), _mm512_setzero_ps());
      TTC_EACH sums[v] = _mm512_add_ps(sums[v], _mm512_castsi512_ps(_mm512_cvtps_epi32(y[v])));
    }
  }

  // Whether y, computed as l scale - reference scale, is right up to 2e-4, and no sum too large.
  bool holds(float max, float scale) const {
    const bool fits = scale < 0x1p100f && std::abs(reference * scale) <= 2048.0f;
    return fits && max * scale >= -900.0f && (max - reference) * scale <= 150.0f;
  }

  TTC_TARGET_AVX512 double sum() const {
    double sum = 0;
    TTC_EACH sum += _mm512_reduce_add_ps(sums[v]);
    return sum;
  }
};

// Floats are compared by their bits, unwidened. As signed integers the largest is the largest float,
// if any is positive; as unsigned ones it is the least, if any is negative.
template <Dtype kDtype, bool kEstimate>
TTC_TARGET_AVX512 inline RowScan scan_row_of(const RowView& row, float scale, float* tops) {
  using B = Bits<kDtype>;
  constexpr int64_t kBlockBytes = kRowBlock * dtype_bytes(kDtype);
  const __m512i ones = _mm512_set1_epi32(-1);
  const __m512i flip = kDtype == Dtype::kFloat32 ? _mm512_srli_epi32(ones, 1) : _mm512_srli_epi16(ones, 1);
  __m512i most = _mm512_setzero_si512();
  float max = kLowest, least = -0.0f;
  bool special = false, estimates = false;
  Estimate estimate;
  const int64_t whole = row.n / kRowBlock;
  for (int64_t b = 0; b < whole; ++b) {
    const char* source = row.data + b * kBlockBytes;
    row.keep_up(source, kBlockBytes);
    __m512i largest = _mm512_loadu_si512(source);
    most = B::max_unsigned(most, largest);
#pragma GCC unroll 16
    for (int64_t i = 64; i < kBlockBytes; i += 64) {
      const __m512i bits = _mm512_loadu_si512(source + i);
      largest = B::max_signed(largest, bits);
      most = B::max_unsigned(most, bits);
    }
    // The largest signed number is the smallest unsigned one of these.
    uint32_t bits = B::smallest(_mm512_xor_si512(largest, flip)) ^ (B::kSign - 1);
    if ((bits & B::kSign) != 0) {  // all are negative: the smallest unsigned number
      largest = ones;
      for (int64_t i = 0; i < kBlockBytes; i += 64) largest = B::min_unsigned(largest, _mm512_loadu_si512(source + i));
      bits = B::smallest(largest);
    }
    special |= bits >= B::kInfinity && (bits & B::kSign) == 0;
    const float top = B::to_float(bits);
    tops[b] = top;
    max = top > max ? top : max;
    if constexpr (kEstimate) {
      // Blocks far below zero, where a product with the scale is rounded too much, count nothing if
      // later ones do not lie there.
      if (!estimates && top * scale >= -1024.0f) {
        estimate.begin(top, scale);
        estimates = true;
      }
      if (estimates) estimate.add<kDtype>(source);
    }
  }
  const uint32_t lowest = ~B::smallest(_mm512_xor_si512(most, ones)) & (2 * B::kSign - 1);
  if (special || lowest > B::kInfinity + B::kSign) return scan_row(row, 0.0f, tops);  // there may be NaNs
  if ((lowest & B::kSign) != 0) least = B::to_float(lowest);
  if (whole < row.num_blocks()) {
    RowView tail = row;
    tail.data += whole * kBlockBytes;
    tail.n -= whole * kRowBlock;
    const RowScan end = scan_row(tail, 0.0f, tops + whole);
    max = end.max > max ? end.max : max;
    least = end.least < least ? end.least : least;
    special = end.special;
  }
  RowScan scan{max, special || least == kLowest, least};
  if (kEstimate && estimates && estimate.holds(max, scale)) {
    scan.estimate = estimate.sum();
    scan.scale = scale;
    scan.reference = estimate.reference;
  }
  return scan;
}

template <bool kEstimate>
TTC_TARGET_AVX512 inline RowScan scan_row_in(const RowView& row, float scale, float* tops) {
  switch (row.dtype) {
    case Dtype::kFloat32: return scan_row_of<Dtype::kFloat32, kEstimate>(row, scale, tops);
    case Dtype::kFloat16: return scan_row_of<Dtype::kFloat16, kEstimate>(row, scale, tops);
    case Dtype::kBFloat16: return scan_row_of<Dtype::kBFloat16, kEstimate>(row, scale, tops);
  }
  return {};
}

TTC_TARGET_AVX512 inline RowScan scan_row_avx512(const RowView& row, float scale, float* tops) {
  if (row.mask != nullptr) return scan_row(row, scale, tops);
  return scale > 0.0f ? scan_row_in<true>(row, scale, tops) : scan_row_in<false>(row, scale, tops);
}

// Adds unsigned numbers of 32 bits to sums of 64.
TTC_TARGET_AVX512 inline __m512i add_unsigned(__m512i sums, __m512i lanes) {
  sums = _mm512_add_epi64(sums, _mm512_srli_epi64(lanes, 32));
  return _mm512_add_epi64(sums, _mm512_and_si512(lanes, _mm512_set1_epi64(0xffffffff)));
}

// log2 of weights below which a lane's share of a block, 16 of them in units of 2^-40, fits 32 bits.
constexpr float kNarrow = -12.5f;

// The sum of the weights of some blocks; of those with none from kNarrow on if they are not kWide.
//
// While the polynomial of 128 weights is evaluated, the next are begun: the two keep different parts of
// the processor busy. A weight is p 2^k, and k the low bits of the anchored exponent: 40 further up,
// they are added to the bits of p, which then counts units of 2^-40; 128 further up, they are those of
// 2^(k + 1), its exponent's offset and all.
template <Dtype kDtype, bool kClamp, bool kWide>
TTC_TARGET_AVX512 inline int64_t sum_blocks(const char* row, const int32_t* blocks, int64_t count, float max,
                                            float scale, Ahead& ahead) {
  constexpr int64_t kBlockBytes = kRowBlock * dtype_bytes(kDtype);
  constexpr int64_t kStepBytes = kVectors * kRowLanes * dtype_bytes(kDtype);
  constexpr float kCoarse = 2.0f * kCoarseAnchor, kFine = 2.0f * kFineAnchor;
  constexpr uint32_t kAdditions = kRowBlock / kRowLanes, kOffset = 1u << 30;  // keeps sums of rests positive
  const __m512 max16 = _mm512_set1_ps(max), scale16 = _mm512_set1_ps(scale);
  const __m512 anchor = _mm512_set1_ps(kExp2Anchor + (kWide ? 128.0f : 40.0f));
  const __m512 coarse = _mm512_set1_ps(kCoarse), both = _mm512_set1_ps(kCoarse + kFine);
  const auto lanes = [](uint32_t bits)
                         __attribute__((target("avx512f"))) { return _mm512_set1_epi32(static_cast<int>(bits)); };
  const __m512i no_high = lanes(0u - kAdditions * float_to_bits(kCoarse));
  const __m512i no_low = kWide ? lanes(kOffset - kAdditions * float_to_bits(kFine)) : _mm512_setzero_si512();
  __m512i high_sum = _mm512_setzero_si512(), low_sum = high_sum;
  __m512 r[kVectors];
  __m512i power[kVectors];
  const auto begin = [&](const char* source) __attribute__((target("avx512f,avx512dq"), always_inline)) {
    ahead.fetch(kStepBytes * 3 / 4);
    __m512 y[kVectors];
    load_vectors<kDtype>(source, y);
    TTC_EACH y[v] = _mm512_mul_ps(_mm512_sub_ps(y[v], max16), scale16);
    if (kClamp) TTC_EACH y[v] = _mm512_max_ps(y[v], _mm512_set1_ps(-120.0f));
    TTC_EACH power[v] = _mm512_slli_epi32(_mm512_castps_si512(_mm512_add_ps(y[v], anchor)), 23);
    TTC_EACH r[v] = _mm512_reduce_ps(y[v], 0);  // less the nearest integer
  };
  if (count > 0) begin(row + blocks[0] * kBlockBytes);
  for (int64_t at = 0; at < count; ++at) {
    const char* source = row + blocks[at] * kBlockBytes;
    const char* next = row + blocks[at + 1 < count ? at + 1 : at] * kBlockBytes;
    __m512i high = no_high, low = no_low;
#pragma GCC unroll 1
    for (int64_t i = kStepBytes; i <= kBlockBytes; i += kStepBytes) {
      __m512 p[kVectors];
      TTC_EACH p[v] = _mm512_fmadd_ps(_mm512_set1_ps(kExp2[0]), r[v], _mm512_set1_ps(kExp2[1]));
#pragma GCC unroll 6
      for (int c = 2; c < 6; ++c) TTC_EACH p[v] = _mm512_fmadd_ps(p[v], r[v], _mm512_set1_ps(kExp2[c]));
      TTC_EACH {
        if (kWide) {
          const __m512 rounded = _mm512_fmadd_ps(p[v], _mm512_castsi512_ps(power[v]), coarse);
          high = _mm512_add_epi32(high, _mm512_castps_si512(rounded));
          const __m512 rest = _mm512_fmadd_ps(p[v], _mm512_castsi512_ps(power[v]), _mm512_sub_ps(both, rounded));
          low = _mm512_add_epi32(low, _mm512_castps_si512(rest));
        } else {
          p[v] = _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p[v]), power[v]));
        }
      }
      begin(i < kBlockBytes ? source + i : next);
      if (!kWide) TTC_EACH low = _mm512_add_epi32(low, _mm512_cvtps_epi32(p[v]));
    }
    if (kWide) high_sum = add_unsigned(high_sum, high);
    low_sum = add_unsigned(low_sum, low);
  }
  int64_t sum = _mm512_reduce_add_epi64(low_sum);
  if (kWide) sum += (_mm512_reduce_add_epi64(high_sum) << 22) - count * kRowLanes * kOffset;
  return sum;
}

#undef TTC_EACH

// The sum of the weights of any block, masked or cut short.
TTC_TARGET_AVX512 inline int64_t sum_widened_block(const RowView& row, int64_t b, float max, float scale) {
  float buffer[kRowBlock];
  const int32_t first = 0;
  Ahead nothing;
  const auto* source = reinterpret_cast<const char*>(block_of(row, b * kRowBlock, buffer));
  return sum_blocks<Dtype::kFloat32, true, true>(source, &first, 1, max, scale, nothing);
}

template <Dtype kDtype>
TTC_TARGET_AVX512 inline int64_t sum_weights_of(const RowView& row, const RowScan& scan, float inv_temperature,
                                                const float* tops) {
  constexpr int64_t kBatch = 256;
  const float scale = inv_temperature * kLog2E;
  const bool clamp = !((scan.least - scan.max) * scale > -120.0f);
  Ahead nothing, &ahead = row.ahead == nullptr ? nothing : *row.ahead;
  int32_t narrow[kBatch + kRowLanes], wide[kBatch + kRowLanes];
  const __m512 max16 = _mm512_set1_ps(scan.max), scale16 = _mm512_set1_ps(scale);
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  int64_t sum = 0;
  const int64_t whole = row.mask == nullptr ? row.n / kRowBlock : 0, blocks = row.num_blocks();
  for (int64_t begin = 0; begin < whole; begin += kBatch) {
    const int64_t end = begin + kBatch < whole ? begin + kBatch : whole;
    int64_t num_narrow = 0, num_wide = 0;
    for (int64_t b = begin; b < end; b += kRowLanes) {
      const __m512 top = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(tops + b), max16), scale16);
      const __mmask16 there = _cvtu32_mask16(end - b < kRowLanes ? (1u << (end - b)) - 1 : 0xffff);
      const __mmask16 is_wide = _mm512_mask_cmp_ps_mask(there, top, _mm512_set1_ps(kNarrow), _CMP_NLT_UQ);
      const __mmask16 has_weight = _mm512_mask_cmp_ps_mask(there, top, _mm512_set1_ps(kNoWeight), _CMP_NLT_UQ);
      const __mmask16 is_narrow = has_weight & ~is_wide;
      const __m512i index = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(b)), lane);
      _mm512_storeu_si512(wide + num_wide, _mm512_maskz_compress_epi32(is_wide, index));
      _mm512_storeu_si512(narrow + num_narrow, _mm512_maskz_compress_epi32(is_narrow, index));
      num_wide += __builtin_popcount(is_wide);
      num_narrow += __builtin_popcount(is_narrow);
    }
    sum += clamp ? sum_blocks<kDtype, true, true>(row.data, wide, num_wide, scan.max, scale, ahead) +
                       sum_blocks<kDtype, true, false>(row.data, narrow, num_narrow, scan.max, scale, ahead)
                 : sum_blocks<kDtype, false, true>(row.data, wide, num_wide, scan.max, scale, ahead) +
                       sum_blocks<kDtype, false, false>(row.data, narrow, num_narrow, scan.max, scale, ahead);
  }
  for (int64_t b = whole; b < blocks; ++b) sum += sum_widened_block(row, b, scan.max, scale);
  return sum;
}

TTC_TARGET_AVX512 inline int64_t sum_weights_avx512(const RowView& row, const RowScan& scan, float inv_temperature,
                                                    const float* tops) {
  switch (row.dtype) {
    case Dtype::kFloat32: return sum_weights_of<Dtype::kFloat32>(row, scan, inv_temperature, tops);
    case Dtype::kFloat16: return sum_weights_of<Dtype::kFloat16>(row, scan, inv_temperature, tops);
    case Dtype::kBFloat16: return sum_weights_of<Dtype::kBFloat16>(row, scan, inv_temperature, tops);
  }
  return 0;
}

// log2 of weights. A block with one from there on is not estimated, or the bounds would lie far apart.
constexpr float kHeavy = -5.0f;

template <Dtype kDtype>
TTC_TARGET_AVX512 inline MassBounds bound_weights_of(const RowView& row, const RowScan& scan, float inv_temperature,
                                                     const float* tops) {
  constexpr int64_t kMaxHeavy = 256;
  const float scale = scan.scale;
  const int64_t whole = row.n / kRowBlock;
  float heavy_tops[kMaxHeavy + kRaceBlocks];
  int32_t heavy[kMaxHeavy + kRaceBlocks];
  int64_t count = 0;
  for (int64_t b = 0; b < whole; b += kRaceBlocks) {
    const int64_t n = whole_pieces(whole - b) < kRaceBlocks ? whole_pieces(whole - b) : kRaceBlocks;
    count += Avx512Lanes::compact(tops + b, n, b, scan.max + kHeavy / scale, heavy_tops + count, heavy + count);
    if (count > kMaxHeavy) {
      const int64_t sum = sum_weights_of<kDtype>(row, scan, inv_temperature, tops);
      return {sum, sum};
    }
  }
  while (count > 0 && heavy[count - 1] >= whole) --count;  // the row's end is added in any case
  Estimate estimate;
  estimate.begin(scan.reference, scale);
  for (int64_t i = 0; i < count; ++i) estimate.add<kDtype>(row.data + heavy[i] * kRowBlock * dtype_bytes(kDtype));
  Ahead nothing;
  int64_t sum = sum_blocks<kDtype, true, true>(row.data, heavy, count, scan.max, scale, nothing);
  if (whole < row.num_blocks()) sum += sum_widened_block(row, whole, scan.max, scale);
  // The rest lies within 1.0615 of its estimate, rounding of y (below 1e-3) and of the two estimates' own
  // sums (an ulp an addition) aside; each weight is then rounded to a multiple of 2^-40.
  const double unit = std::exp2(double{Estimate::kRoom} + (double{scan.reference} - scan.max) * scale) * kFixedOne;
  const double additions = static_cast<double>(row.n) / (kVectors * kRowLanes) + 4;
  const double slack = 2 * scan.estimate * additions * 0x1p-24;
  const double rest = scan.estimate - estimate.sum();
  const double least = 0.941 * unit * (rest - slack) - static_cast<double>(row.n);
  const double most = 1.001 * unit * (rest + slack) + static_cast<double>(row.n);
  return {sum + static_cast<int64_t>(least > 0 ? least : 0), sum + static_cast<int64_t>(most)};
}

TTC_TARGET_AVX512 inline MassBounds bound_weights_avx512(const RowView& row, const RowScan& scan, float inv_temperature,
                                                         const float* tops) {
  if (scan.estimate == 0.0 || scan.scale != inv_temperature * kLog2E) {
    const int64_t sum = sum_weights_avx512(row, scan, inv_temperature, tops);
    return {sum, sum};
  }
  switch (row.dtype) {
    case Dtype::kFloat32: return bound_weights_of<Dtype::kFloat32>(row, scan, inv_temperature, tops);
    case Dtype::kFloat16: return bound_weights_of<Dtype::kFloat16>(row, scan, inv_temperature, tops);
    case Dtype::kBFloat16: return bound_weights_of<Dtype::kBFloat16>(row, scan, inv_temperature, tops);
  }
  return {};
}

}  // namespace ttc

#endif
