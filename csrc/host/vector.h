// Short vectors of the compiler, for the loops over whole block tables.
#pragma once

#include <cstdint>

namespace ttc {

using Int4 = int32_t __attribute__((vector_size(16), aligned(4), may_alias));
using Long2 = int64_t __attribute__((vector_size(16)));

// Compiles a function for AVX2 too, which has instructions that the baseline lacks.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define TTC_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define TTC_CLONES
#endif

}  // namespace ttc
