// Vectors of fp32, one struct per instruction set, with the handful of operations the CPU kernels use.
//
// A kernel is a template over one of these structs and is compiled once per instruction set, each in
// a file of its own with its own flags. Only structs whose instructions the file may use exist in it;
// because the struct is a template argument, no two files ever share an instantiation.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define TTC_INLINE inline __attribute__((always_inline))

namespace ttc {

// 2^f for f in [-0.5, 0.5]: minimax polynomial, relative error 2e-9 before rounding; the constant term is
// exactly 1 so that 2^0 == 1.
constexpr int kExp2Degree = 6;
constexpr float kExp2Poly[kExp2Degree + 1] = {1.0f,           0.693147182f,   0.240226477f,   0.0555033237f,
                                              0.00961843692f, 0.00133988739f, 0.00015353362f};
// The same for f in [0, 1].
constexpr float kExp2Poly01[kExp2Degree + 1] = {1.0f,           0.693147063f,   0.240229309f,   0.0554852821f,
                                                0.00967545155f, 0.00124678481f, 0.000216129105f};

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
struct Avx512 {
  static constexpr int kWidth = 16;
  using Vec = __m512;
  static TTC_INLINE Vec zero() { return _mm512_setzero_ps(); }
  static TTC_INLINE Vec set1(float x) { return _mm512_set1_ps(x); }
  static TTC_INLINE Vec load(const float* p) { return _mm512_loadu_ps(p); }
  static TTC_INLINE void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
  // Past the caches, to aligned memory; others see it after end_stream().
  static TTC_INLINE void stream(float* p, Vec v) { _mm512_stream_ps(p, v); }
  static TTC_INLINE void end_stream() { _mm_sfence(); }
  static TTC_INLINE Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
  static TTC_INLINE Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
  static TTC_INLINE Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
  static TTC_INLINE Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
  static TTC_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
  static TTC_INLINE Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }  // b if either is NaN
  static TTC_INLINE float reduce_max(Vec a) { return _mm512_reduce_max_ps(a); }
  static TTC_INLINE float reduce_add(Vec a) { return _mm512_reduce_add_ps(a); }
  static TTC_INLINE Vec exp2(Vec x) {
    // x - floor(x), 0 for -inf; scaling takes the floor itself.
    const Vec f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    Vec p = set1(kExp2Poly01[kExp2Degree]);
    for (int i = kExp2Degree - 1; i >= 0; --i) p = fma(p, f, set1(kExp2Poly01[i]));
    return _mm512_scalef_ps(p, x);
  }
  // v where position begin <= first + lane < end, -inf elsewhere.
  static TTC_INLINE Vec keep_range(Vec v, int first, int begin, int end) {
    const __m512i at = _mm512_add_epi32(_mm512_set1_epi32(first),
                                        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    const __mmask16 keep = _mm512_cmpge_epi32_mask(at, _mm512_set1_epi32(begin)) &
                           _mm512_cmplt_epi32_mask(at, _mm512_set1_epi32(end));
    return _mm512_mask_mov_ps(_mm512_set1_ps(-__builtin_inff()), keep, v);
  }
  // small where |x| < limit, other elsewhere.
  static TTC_INLINE Vec choose(Vec x, float limit, Vec small, Vec other) {
    return _mm512_mask_mov_ps(other, _mm512_cmp_ps_mask(_mm512_abs_ps(x), set1(limit), _CMP_LT_OQ), small);
  }
  static TTC_INLINE Vec load_half(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
  static TTC_INLINE Vec load_bfloat(const uint16_t* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
  }
  static TTC_INLINE void store_half(uint16_t* p, Vec v) {
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static TTC_INLINE void store_bfloat(uint16_t* p, Vec v) {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i r = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    r = _mm512_mask_mov_epi32(r, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc0));
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(r));
  }
  // 16 x 16 transpose of 32-bit elements, in registers.
  static TTC_INLINE void transpose(Vec* r) {
    __m512i t[16], u[16];
    const auto in = [&](int i) { return _mm512_castps_si512(r[i]); };
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      t[2 * i] = _mm512_unpacklo_epi32(in(2 * i), in(2 * i + 1));
      t[2 * i + 1] = _mm512_unpackhi_epi32(in(2 * i), in(2 * i + 1));
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      u[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
      u[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
      u[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
      u[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    // u[4g + c] lane block b holds element 4b + c of rows 4g..4g+3.
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const __m512i a = _mm512_shuffle_i32x4(u[c], u[4 + c], 0x88), b = _mm512_shuffle_i32x4(u[8 + c], u[12 + c], 0x88);
      const __m512i d = _mm512_shuffle_i32x4(u[c], u[4 + c], 0xdd), e = _mm512_shuffle_i32x4(u[8 + c], u[12 + c], 0xdd);
      r[c] = _mm512_castsi512_ps(_mm512_shuffle_i32x4(a, b, 0x88));
      r[8 + c] = _mm512_castsi512_ps(_mm512_shuffle_i32x4(a, b, 0xdd));
      r[4 + c] = _mm512_castsi512_ps(_mm512_shuffle_i32x4(d, e, 0x88));
      r[12 + c] = _mm512_castsi512_ps(_mm512_shuffle_i32x4(d, e, 0xdd));
    }
  }
};
#endif

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
struct Avx2 {
  static constexpr int kWidth = 8;
  using Vec = __m256;
  static TTC_INLINE Vec zero() { return _mm256_setzero_ps(); }
  static TTC_INLINE Vec set1(float x) { return _mm256_set1_ps(x); }
  static TTC_INLINE Vec load(const float* p) { return _mm256_loadu_ps(p); }
  static TTC_INLINE void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
  // Past the caches, to aligned memory; others see it after end_stream().
  static TTC_INLINE void stream(float* p, Vec v) { _mm256_stream_ps(p, v); }
  static TTC_INLINE void end_stream() { _mm_sfence(); }
  static TTC_INLINE Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
  static TTC_INLINE Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
  static TTC_INLINE Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
  static TTC_INLINE Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
  static TTC_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
  static TTC_INLINE Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
  static TTC_INLINE float reduce_max(Vec a) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
  }
  static TTC_INLINE float reduce_add(Vec a) {
    __m128 m = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    m = _mm_add_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_add_ss(m, _mm_movehdup_ps(m)));
  }
  static TTC_INLINE Vec exp2(Vec x) {
    x = _mm256_max_ps(_mm256_set1_ps(-127.f), x);
    const Vec n = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const Vec f = _mm256_sub_ps(x, n);
    Vec p = set1(kExp2Poly[kExp2Degree]);
    for (int i = kExp2Degree - 1; i >= 0; --i) p = fma(p, f, set1(kExp2Poly[i]));
    const __m256i e = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(p, _mm256_castsi256_ps(e));  // n = -127 gives the factor 0
  }
  static TTC_INLINE Vec keep_range(Vec v, int first, int begin, int end) {
    const __m256i at = _mm256_add_epi32(_mm256_set1_epi32(first), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    const __m256i keep = _mm256_and_si256(_mm256_cmpgt_epi32(at, _mm256_set1_epi32(begin - 1)),
                                          _mm256_cmpgt_epi32(_mm256_set1_epi32(end), at));
    return _mm256_blendv_ps(_mm256_set1_ps(-__builtin_inff()), v, _mm256_castsi256_ps(keep));
  }
  static TTC_INLINE Vec choose(Vec x, float limit, Vec small, Vec other) {
    const Vec size = _mm256_andnot_ps(_mm256_set1_ps(-0.f), x);
    return _mm256_blendv_ps(other, small, _mm256_cmp_ps(size, set1(limit), _CMP_LT_OQ));
  }
  static TTC_INLINE Vec load_half(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
  static TTC_INLINE Vec load_bfloat(const uint16_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
  }
  static TTC_INLINE void store_half(uint16_t* p, Vec v) {
    _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static TTC_INLINE void store_bfloat(uint16_t* p, Vec v) {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i r = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    r = _mm256_blendv_epi8(r, _mm256_set1_epi32(0x7fc0), _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)));
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(r, r), 0x08);
    _mm_storeu_si128((__m128i*)p, _mm256_castsi256_si128(packed));
  }
  static TTC_INLINE void transpose(Vec* r) {
    Vec t[8], u[8];
    for (int i = 0; i < 4; ++i) {
      t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
      t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 2; ++i) {
      u[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
      u[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
      u[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
      u[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    }
    for (int c = 0; c < 4; ++c) {
      r[c] = _mm256_permute2f128_ps(u[c], u[4 + c], 0x20);
      r[4 + c] = _mm256_permute2f128_ps(u[c], u[4 + c], 0x31);
    }
  }
};
#endif

// Any machine with GCC or Clang vector extensions; the compiler picks the instructions.
struct Portable {
  static constexpr int kWidth = 4;
  typedef float Vec __attribute__((vector_size(16)));
  typedef int32_t Int __attribute__((vector_size(16)));
  static TTC_INLINE Vec zero() { return Vec{}; }
  static TTC_INLINE Vec set1(float x) { return Vec{x, x, x, x}; }
  static TTC_INLINE Vec load(const float* p) { Vec v; std::memcpy(&v, p, 16); return v; }
  static TTC_INLINE void store(float* p, Vec v) { std::memcpy(p, &v, 16); }
  static TTC_INLINE void stream(float* p, Vec v) { store(p, v); }
  static TTC_INLINE void end_stream() {}
  static TTC_INLINE Vec add(Vec a, Vec b) { return a + b; }
  static TTC_INLINE Vec sub(Vec a, Vec b) { return a - b; }
  static TTC_INLINE Vec mul(Vec a, Vec b) { return a * b; }
  static TTC_INLINE Vec div(Vec a, Vec b) { return a / b; }
  static TTC_INLINE Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
  static TTC_INLINE Vec max(Vec a, Vec b) { return a > b ? a : b; }
  static TTC_INLINE float reduce_max(Vec a) {
    float m = a[0];
    for (int i = 1; i < 4; ++i) m = m > a[i] ? m : a[i];
    return m;
  }
  static TTC_INLINE float reduce_add(Vec a) { return (a[0] + a[2]) + (a[1] + a[3]); }
  static TTC_INLINE Vec exp2(Vec x) {
    x = max(set1(-127.f), x);
    const Vec magic = set1(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer
    const Vec n = (x + magic) - magic;
    const Vec f = x - n;
    Vec p = set1(kExp2Poly[kExp2Degree]);
    for (int i = kExp2Degree - 1; i >= 0; --i) p = p * f + set1(kExp2Poly[i]);
    const Int e = (__builtin_convertvector(n, Int) + 127) << 23;
    Vec scale;
    std::memcpy(&scale, &e, 16);
    return p * scale;
  }
  static TTC_INLINE Vec keep_range(Vec v, int first, int begin, int end) {
    for (int i = 0; i < 4; ++i)
      if (first + i < begin || first + i >= end) v[i] = -__builtin_inff();
    return v;
  }
  static TTC_INLINE Vec choose(Vec x, float limit, Vec small, Vec other) {
    return (x < set1(limit)) & (x > set1(-limit)) ? small : other;
  }
  static TTC_INLINE float half_to_float(uint16_t h) {
    const uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 0x3ff;
    uint32_t bits;
    if (exponent == 31) {
      bits = sign | 0x7f800000 | mantissa << 13;
    } else if (exponent != 0) {
      bits = sign | (exponent + 112) << 23 | mantissa << 13;
    } else {
      const float tiny = float(mantissa) * 0x1p-24f;
      std::memcpy(&bits, &tiny, 4);
      bits |= sign;
    }
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
  }
  static TTC_INLINE uint16_t float_to_half(float f) {
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    const auto sign = uint16_t((bits >> 16) & 0x8000);
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return sign | 0x7e00;
    if (bits >= 0x477ff000) return sign | 0x7c00;  // rounds to infinity
    if (bits < 0x38800000) {                       // subnormal: the addition rounds for us
      float shifted;
      std::memcpy(&shifted, &bits, 4);
      shifted += 0.5f;
      std::memcpy(&bits, &shifted, 4);
      return sign | uint16_t(bits - 0x3f000000);
    }
    return sign | uint16_t((bits + 0xfff + ((bits >> 13) & 1) - 0x38000000) >> 13);
  }
  static TTC_INLINE Vec load_half(const uint16_t* p) {
    return Vec{half_to_float(p[0]), half_to_float(p[1]), half_to_float(p[2]), half_to_float(p[3])};
  }
  static TTC_INLINE Vec load_bfloat(const uint16_t* p) {
    const Int bits = {p[0] << 16, p[1] << 16, p[2] << 16, p[3] << 16};
    Vec v;
    std::memcpy(&v, &bits, 16);
    return v;
  }
  static TTC_INLINE void store_half(uint16_t* p, Vec v) {
    for (int i = 0; i < 4; ++i) p[i] = float_to_half(v[i]);
  }
  static TTC_INLINE void store_bfloat(uint16_t* p, Vec v) {
    for (int i = 0; i < 4; ++i) {
      uint32_t bits;
      const float f = v[i];
      std::memcpy(&bits, &f, 4);
      p[i] = f != f ? 0x7fc0 : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    }
  }
  static TTC_INLINE void transpose(Vec* r) {
    for (int i = 0; i < 4; ++i)
      for (int j = i + 1; j < 4; ++j) {
        const float t = r[i][j];
        r[i][j] = r[j][i];
        r[j][i] = t;
      }
  }
};

}  // namespace ttc
