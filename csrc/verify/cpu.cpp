#if defined(__GNUC__) && !defined(__clang__)
// A comparison may be evaluated where its result is not needed. Without this promise that floating
// point exceptions go unobserved, GCC leaves every loop with a select in it scalar.
#pragma GCC optimize("no-trapping-math", "no-math-errno")
// GCC 12 warns inside its own AVX-512 header.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "verify/cpu_rows.h"
#include "verify/verify.h"

namespace ttc {

namespace {

#define TTC_ROW_KERNELS(SUFFIX, TARGET, PHILOX_BLOCK)                                            \
  TARGET RowMax find_max_##SUFFIX(const float* row, int64_t n) { return find_max(row, n); }      \
  TARGET void fixed_weights_##SUFFIX(const float* row, int64_t n, float max, float inv,          \
                                     int64_t* weights) {                                         \
    fixed_weights(row, n, max, inv, weights);                                                    \
  }                                                                                              \
  TARGET void assign_bins_##SUFFIX(const float* row, int64_t n, float max, float scale,          \
                                   int32_t last, int32_t* bins) {                                \
    assign_bins(row, n, max, scale, last, bins);                                                 \
  }                                                                                              \
  TARGET KeptSums sum_kept_##SUFFIX(const float* row, int64_t n, float max, float inv,           \
                                    float pivot, int32_t tie_end) {                              \
    return sum_kept(row, n, max, inv, pivot, tie_end);                                           \
  }                                                                                              \
  TARGET Winner race_row_##SUFFIX(const Race& race, const float* row, int64_t n) {               \
    return race_row<PHILOX_BLOCK>(race, row, n);                                                 \
  }                                                                                              \
  TARGET int64_t top_scores_##SUFFIX(const Race& race, const float* row, int64_t n, int64_t k,   \
                                     Winner* best) {                                             \
    return top_scores<PHILOX_BLOCK, false>(race, row, n, k, best);                               \
  }                                                                                              \
  TARGET int64_t noisy_scores_##SUFFIX(const Race& race, const float* row, int64_t n, int64_t k, \
                                       Winner* best) {                                           \
    return top_scores<PHILOX_BLOCK, true>(race, row, n, k, best);                                \
  }                                                                                              \
  TARGET int64_t residual_mass_##SUFFIX(const RowDist& p, const float* row, const RowDist& q,    \
                                        const float* draft, int64_t n, float c) {                \
    return residual_mass(p, row, q, draft, n, c);                                                \
  }                                                                                              \
  TARGET int64_t entropy_mass_##SUFFIX(const RowDist& d, const float* row, int64_t n) {          \
    return entropy_mass(d, row, n);                                                              \
  }                                                                                              \
  constexpr RowKernels k##SUFFIX##Kernels = {                                                    \
      find_max_##SUFFIX,    fixed_weights_##SUFFIX, assign_bins_##SUFFIX,                        \
      sum_kept_##SUFFIX,    race_row_##SUFFIX,      top_scores_##SUFFIX,                         \
      noisy_scores_##SUFFIX, residual_mass_##SUFFIX, entropy_mass_##SUFFIX};

void philox_block_portable(const PhiloxStream& stream, int64_t first, uint32_t* random) {
  philox_block(stream, first, random);
}
TTC_ROW_KERNELS(Portable, , philox_block_portable)
#if TTC_X86
TTC_TARGET_AVX2 void philox_block_avx2(const PhiloxStream& stream, int64_t first,
                                       uint32_t* random) {
  philox_block(stream, first, random);
}
TTC_ROW_KERNELS(Avx2, TTC_TARGET_AVX2, philox_block_avx2)
TTC_ROW_KERNELS(Avx512, TTC_TARGET_AVX512, philox_block_avx512)
#endif

}  // namespace

const RowKernels& row_kernels() {
#if TTC_X86
  if (cpu_isa() == Isa::kAvx512) return kAvx512Kernels;
  if (cpu_isa() == Isa::kAvx2) return kAvx2Kernels;
#endif
  return kPortableKernels;
}

const float* fp32_row(const LogitRows& logits, int64_t r, std::vector<float>& buffer) {
  const char* row = logits.data + r * logits.stride;
  const bool masked = logits.bitmask != nullptr;
  if (logits.dtype == Dtype::kFloat32 && !masked) return reinterpret_cast<const float*>(row);
  buffer.resize(logits.vocab_size);
  widen(logits.dtype, row, logits.vocab_size, buffer.data());
  if (masked) {
    const int32_t* words = logits.bitmask + r * logits.mask_words;
    for (int64_t i = 0; i < logits.vocab_size; ++i) {
      const bool allowed = (static_cast<uint32_t>(words[i / 32]) >> (i % 32) & 1) != 0;
      buffer[i] = allowed ? buffer[i] : -std::numeric_limits<float>::infinity();
    }
  }
  return buffer.data();
}

namespace {

// Exact top-k and top-p without sorting the row: a histogram over the logits finds the bin in which
// the cut lies, and only the tokens of that bin are sorted.
class Selection {
 public:
  Selection(const RowKernels& kernels, const float* row, int64_t n, float max,
            float inv_temperature)
      : kernels_(kernels), row_(row), n_(n), max_(max), inv_(inv_temperature), bins_(kNumBins) {
    for_chunks([&](int64_t begin, int64_t count) {
      kernels_.fixed_weights(row_ + begin, count, max_, inv_, weights_);
      for (int64_t i = 0; i < count; ++i) {
        bins_[chunk_[i]].mass += weights_[i];
        ++bins_[chunk_[i]].count;
      }
    });
    for (const Bin& bin : bins_) total_ += bin.mass;
  }

  // Keeps k tokens; their mass replaces the total that top_p refers to.
  Cut top_k(int64_t k) {
    Bin before;
    int32_t b = 0;
    while (before.count + bins_[b].count < k) before += bins_[b++];
    const std::vector<Candidate> candidates = sorted_bin(b);
    int64_t mass = before.mass;
    size_t last = 0;
    for (int64_t count = before.count + 1;; ++count, ++last) {
      mass += fixed_weight(candidates[last].logit, max_, inv_);
      if (count == k) break;
    }
    total_ = mass;
    return cut_after(candidates[last]);
  }

  // Keeps the shortest prefix with at least this share of the total.
  Cut top_p(float share) {
    const double wanted = std::ceil(static_cast<double>(share) * static_cast<double>(total_));
    const int64_t target = std::clamp<int64_t>(static_cast<int64_t>(wanted), 1, total_);
    Bin before;
    int32_t b = 0;
    while (before.mass + bins_[b].mass < target) before += bins_[b++];
    const std::vector<Candidate> candidates = sorted_bin(b);
    int64_t mass = before.mass;
    size_t last = 0;
    for (;; ++last) {
      mass += fixed_weight(candidates[last].logit, max_, inv_);
      if (mass >= target) break;
    }
    return cut_after(candidates[last]);
  }

 private:
  static constexpr int32_t kNumBins = 2048;   // 32 KiB, to stay in the first-level cache
  static constexpr float kBinsPerNat = 32.0f;  // the last bin begins where weights are below 2^-40
  static constexpr int64_t kChunk = 512;

  struct Bin {
    int64_t mass = 0;
    int64_t count = 0;
    void operator+=(const Bin& other) {
      mass += other.mass;
      count += other.count;
    }
  };

  struct Candidate {
    float logit;
    int32_t index;
  };

  template <typename Body>
  void for_chunks(const Body& body) {
    // Held back so that a temperature near the smallest float cannot give 0 * inf.
    const float scale = std::min(inv_, 1e30f) * kBinsPerNat;
    for (int64_t begin = 0; begin < n_; begin += kChunk) {
      const int64_t count = std::min(kChunk, n_ - begin);
      kernels_.assign_bins(row_ + begin, count, max_, scale, kNumBins - 1, chunk_);
      body(begin, count);
    }
  }

  std::vector<Candidate> sorted_bin(int32_t bin) {
    std::vector<Candidate> candidates;
    candidates.reserve(bins_[bin].count);
    for_chunks([&](int64_t begin, int64_t count) {
      for (int64_t i = 0; i < count; ++i) {
        if (chunk_[i] != bin) continue;
        candidates.push_back({row_[begin + i], static_cast<int32_t>(begin + i)});
      }
    });
    std::stable_sort(candidates.begin(), candidates.end(),
                     [](const Candidate& a, const Candidate& b) { return a.logit > b.logit; });
    return candidates;
  }

  static Cut cut_after(const Candidate& last) {
    if (last.logit == -std::numeric_limits<float>::infinity()) return Cut{};
    return {last.logit, last.index + 1};
  }

  const RowKernels& kernels_;
  const float* row_;
  int64_t n_;
  float max_;
  float inv_;
  std::vector<Bin> bins_;
  int64_t total_ = 0;
  int32_t chunk_[kChunk];
  int64_t weights_[kChunk];
};

}  // namespace

void describe_row(const LogitRows& logits, const RowFilters& p, int64_t r, const float* row,
                  float* desc) {
  const int64_t n = logits.vocab_size;
  const RowKernels& kernels = row_kernels();
  const float temperature = p.temperature[r];
  const RowMax top = kernels.find_max(row, n);
  std::fill_n(desc, kDescriptorColumns, 0.0f);
  desc[kTemperature] = temperature;
  desc[kArgmax] = static_cast<float>(top.argmax);
  desc[kMax] = top.max;
  if (top.argmax < 0) {
    desc[kPivot] = std::numeric_limits<float>::infinity();
    desc[kLogZ] = desc[kLogZAll] = desc[kMax] = std::numeric_limits<float>::quiet_NaN();
    desc[kZ] = 0.0f;
    return;
  }
  if (temperature == 0.0f) {
    desc[kPivot] = top.max;
    desc[kTieEnd] = static_cast<float>(top.argmax + 1);
    desc[kNumKept] = desc[kZ] = 1.0f;
    return;
  }
  const float inv = 1.0f / temperature;
  Cut cut;
  const bool use_top_k = p.top_k[r] > 0 && p.top_k[r] < n;
  if (use_top_k || p.top_p[r] < 1.0f) {
    Selection selection(kernels, row, n, top.max, inv);
    if (use_top_k) cut = selection.top_k(p.top_k[r]);
    if (p.top_p[r] < 1.0f) cut = narrower(cut, selection.top_p(p.top_p[r]));
  }
  if (p.min_p[r] > 0.0f) {
    cut = narrower(cut, min_p_cut(top.max, temperature, p.min_p[r]));
  }
  const KeptSums sums = kernels.sum_kept(row, n, top.max, inv, cut.pivot, cut.tie_end);
  desc[kPivot] = cut.pivot;
  desc[kTieEnd] = static_cast<float>(std::min<int64_t>(cut.tie_end, n));
  desc[kZ] = static_cast<float>(sums.mass) * 0x1p-40f;
  desc[kLogZ] = log_fp32(desc[kZ]);
  desc[kNumKept] = static_cast<float>(sums.count);
  desc[kLogZAll] = log_fp32(static_cast<float>(sums.mass_all) * 0x1p-40f);
}

void row_descriptor(const RowDescriptorParams& p, ParallelFor parallel_for) {
  parallel_for(0, p.logits.num_rows, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> buffer;
    for (int64_t r = begin; r < end; ++r) {
      describe_row(p.logits, p.filters, r, fp32_row(p.logits, r, buffer),
                   p.descriptors + r * kDescriptorColumns);
    }
  });
}

void sample_tokens(const SampleTokensParams& p, ParallelFor parallel_for) {
  parallel_for(0, p.logits.num_rows, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> buffer;
    for (int64_t r = begin; r < end; ++r) {
      const float* desc = p.descriptors + r * kDescriptorColumns;
      p.tokens[r] = static_cast<int32_t>(desc[kArgmax]);
      if (p.tokens[r] < 0 || desc[kTemperature] == 0.0f) continue;
      Race race;
      race.target = row_dist(desc);
      race.stream = philox_stream(static_cast<uint64_t>(p.seeds[r]),
                                  static_cast<uint64_t>(p.positions[r]), RandomDomain::kTarget, 0);
      const float* row = fp32_row(p.logits, r, buffer);
      p.tokens[r] =
          static_cast<int32_t>(row_kernels().race_row(race, row, p.logits.vocab_size).index);
    }
  });
}

}  // namespace ttc
