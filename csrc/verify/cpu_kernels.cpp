#if defined(__GNUC__) && !defined(__clang__)
// A comparison may be evaluated where its result is not needed. Without this promise that floating
// point exceptions go unobserved, GCC leaves every loop with a select in it scalar.
#pragma GCC optimize("no-trapping-math", "no-math-errno")
// GCC 12 warns inside its own AVX-512 header.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#include "verify/cpu_rows.h"
#include "verify/row_avx512.h"

namespace ttc {

namespace {

#define TTC_ROW_KERNELS(SUFFIX, TARGET, LANES, SCAN_ROW, SUM_WEIGHTS, BOUND_WEIGHTS)                                   \
  TARGET RowScan scan_row_##SUFFIX(const RowView& row, float scale, float* tops) {                                     \
    return SCAN_ROW(row, scale, tops);                                                                                 \
  }                                                                                                                    \
  TARGET Specials count_specials_##SUFFIX(const RowView& row) { return count_specials(row); }                          \
  TARGET int64_t sum_weights_##SUFFIX(const RowView& row, const RowScan& scan, float inv, const float* tops) {         \
    return SUM_WEIGHTS(row, scan, inv, tops);                                                                          \
  }                                                                                                                    \
  TARGET MassBounds bound_weights_##SUFFIX(const RowView& row, const RowScan& scan, float inv, const float* tops) {    \
    return BOUND_WEIGHTS(row, scan, inv, tops);                                                                        \
  }                                                                                                                    \
  TARGET int64_t compact_##SUFFIX(const float* numbers, int64_t n, int64_t first, float least, float* kept,            \
                                  int32_t* indices) {                                                                  \
    return LANES::compact(numbers, n, first, least, kept, indices);                                                    \
  }                                                                                                                    \
  TARGET int64_t compact_blocks_##SUFFIX(const RowView& row, const int32_t* blocks, int64_t num_blocks, float least,   \
                                         float* kept, int32_t* indices) {                                              \
    return compact_blocks<LANES>(row, blocks, num_blocks, least, kept, indices);                                       \
  }                                                                                                                    \
  TARGET void fixed_weights_##SUFFIX(const float* logits, int64_t n, float max, float inv, int64_t* weights) {         \
    fixed_weights(logits, n, max, inv, weights);                                                                       \
  }                                                                                                                    \
  TARGET Winner race_row_##SUFFIX(const Race& race) { return race_row<LANES>(race); }                                  \
  TARGET int64_t top_scores_##SUFFIX(const Race& race, int64_t k, Winner* best) {                                      \
    return top_scores<LANES, false>(race, k, best);                                                                    \
  }                                                                                                                    \
  TARGET int64_t noisy_scores_##SUFFIX(const Race& race, int64_t k, Winner* best) {                                    \
    return top_scores<LANES, true>(race, k, best);                                                                     \
  }                                                                                                                    \
  TARGET int64_t residual_mass_##SUFFIX(const RowDist& p, const RowView& row, const RowDist& q, const RowView& draft,  \
                                        float c) {                                                                     \
    return residual_mass(p, row, q, draft, c);                                                                         \
  }                                                                                                                    \
  TARGET int64_t entropy_mass_##SUFFIX(const RowDist& d, const RowView& row) { return entropy_mass(d, row); }          \
  constexpr RowKernels k##SUFFIX##Kernels = {scan_row_##SUFFIX,      count_specials_##SUFFIX, sum_weights_##SUFFIX,    \
                                             bound_weights_##SUFFIX, compact_##SUFFIX,        compact_blocks_##SUFFIX, \
                                             fixed_weights_##SUFFIX, race_row_##SUFFIX,       top_scores_##SUFFIX,     \
                                             noisy_scores_##SUFFIX,  residual_mass_##SUFFIX,  entropy_mass_##SUFFIX};

TTC_ROW_KERNELS(Portable, , PlainLanes, scan_row, sum_weights, bound_weights)
#if TTC_X86
TTC_ROW_KERNELS(Avx2, TTC_TARGET_AVX2, PlainLanes, scan_row, sum_weights, bound_weights)
TTC_ROW_KERNELS(Avx512, TTC_TARGET_AVX512, Avx512Lanes, scan_row_avx512, sum_weights_avx512, bound_weights_avx512)
#endif

}  // namespace

const RowKernels& row_kernels() {
#if TTC_X86
  if (cpu_isa() == Isa::kAvx512) return kAvx512Kernels;
  if (cpu_isa() == Isa::kAvx2) return kAvx2Kernels;
#endif
  return kPortableKernels;
}

}  // namespace ttc
