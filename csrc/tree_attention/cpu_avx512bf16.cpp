// Tree attention in bfloat16 with the pairwise dot product of AVX-512 BF16: fp32 sums, no widening.
#include "tree_attention/cpu_kernels.h"
#if defined(__AVX512BF16__)
#include "tree_attention/cpu_isa.h"

namespace ttc {
namespace {

struct DotBf16 {
  using Simd = Avx512;
  using Vec = __m512;
  using Elem = uint32_t;  // a pair of bf16
  static constexpr int kStep = 2;
  static TTC_INLINE Vec broadcast(const Elem* p) { return _mm512_castsi512_ps(_mm512_set1_epi32(int(*p))); }
  static TTC_INLINE Vec madd(Vec acc, Vec a, Vec b) { return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b); }
  static TTC_INLINE Vec load_source(const BFloat* p) { return _mm512_loadu_ps(p); }
  static TTC_INLINE void store_prob(Elem* row, int at, Vec p) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(row + at / 2), (__m256i)_mm512_cvtneps_pbh(p));
  }
  // a0 b0 a1 b1 ... of 32 dimensions.
  static TTC_INLINE void load_values(const BFloat* a, const BFloat* b, Vec& low, Vec& high) {
    static constexpr uint16_t kLow[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                          8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    const __m512i at = _mm512_loadu_si512(kLow), up = _mm512_add_epi16(at, _mm512_set1_epi16(16));
    const __m512i x = _mm512_loadu_si512(a);
    const __m512i y = _mm512_loadu_si512(b);
    low = _mm512_castsi512_ps(_mm512_permutex2var_epi16(x, at, y));
    high = _mm512_castsi512_ps(_mm512_permutex2var_epi16(x, up, y));
  }
};

}  // namespace

CpuKernels kernels_avx512bf16(Dtype dtype) {
  return dtype == Dtype::kBFloat16 ? kernels_of<DotBf16, BFloat>("avx512_bf16") : CpuKernels{};
}

}  // namespace ttc
#else
namespace ttc {
CpuKernels kernels_avx512bf16(Dtype) { return {}; }
}  // namespace ttc
#endif
