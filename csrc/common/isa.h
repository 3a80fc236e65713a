// Which instruction set a loop compiled several times should run with.
//
// Small kernels write a loop once, as an always-inline function, and instantiate it in functions
// marked TTC_TARGET_AVX2 and TTC_TARGET_AVX512; the compiler vectorises each for its target. The
// attention kernel has intrinsics of its own (simd.h) and files with flags of their own instead.
#pragma once

#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#define TTC_X86 1
#define TTC_TARGET_AVX2 __attribute__((target("avx2,fma,f16c")))
#define TTC_TARGET_AVX512                                               \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma," \
                        "f16c,prefer-vector-width=512")))
#else
#define TTC_X86 0
#endif

#define TTC_ALWAYS_INLINE inline __attribute__((always_inline))

namespace ttc {

enum class Isa { kPortable, kAvx2, kAvx512 };

inline Isa detect_isa() {
#if TTC_X86
  // TTC_CPU_ISA=portable or avx2 keeps newer instructions from being used, to compare the variants.
  const char* limit = std::getenv("TTC_CPU_ISA");
  if (limit != nullptr && std::strcmp(limit, "portable") == 0) return Isa::kPortable;
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Isa::kPortable;
  if (limit != nullptr && std::strcmp(limit, "avx2") == 0) return Isa::kAvx2;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return Isa::kAvx512;
  }
  return Isa::kAvx2;
#else
  return Isa::kPortable;
#endif
}

inline Isa cpu_isa() {
  static const Isa isa = detect_isa();
  return isa;
}

}  // namespace ttc
