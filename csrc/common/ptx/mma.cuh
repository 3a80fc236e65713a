// ldmatrix, stmatrix and mma.sync m16n8k16.
//
// Fragments of d[16][8] += a[16][16] * b[16][8], with g = lane / 4 and t = lane % 4; every register
// of a and b holds two neighbours along k, the lower k in the low half:
//
//   a[0]  row g      k 2t, 2t + 1          b[0]  k 2t, 2t + 1        column g
//   a[1]  row g + 8  k 2t, 2t + 1          b[1]  k 2t + 8, 2t + 9    column g
//   a[2]  row g      k 2t + 8, 2t + 9      d[0], d[1]  row g       columns 2t, 2t + 1
//   a[3]  row g + 8  k 2t + 8, 2t + 9      d[2], d[3]  row g + 8   columns 2t, 2t + 1
//
// ldmatrix loads N matrices of 8 rows of 16 bytes: lane 8i + j gives the address of row j of matrix
// i, and register i of a lane receives row g, elements 2t and 2t + 1; with trans, elements (2t, g)
// and (2t + 1, g). stmatrix is the same backwards.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "memory.cuh"

namespace ttc::ptx {

#define TTC_LDMATRIX(NAME, TRANS)                                                              \
  template <int N>                                                                             \
  __device__ __forceinline__ void NAME(uint32_t (&r)[N], const void* row) {                    \
    static_assert(N == 1 || N == 2 || N == 4);                                                 \
    const uint32_t address = smem_u32(row);                                                    \
    if constexpr (N == 1)                                                                      \
      asm volatile("ldmatrix.sync.aligned.m8n8.x1" TRANS ".shared.b16 {%0}, [%1];"             \
                   : "=r"(r[0])                                                                \
                   : "r"(address)                                                              \
                   : "memory");                                                                \
    else if constexpr (N == 2)                                                                 \
      asm volatile("ldmatrix.sync.aligned.m8n8.x2" TRANS ".shared.b16 {%0, %1}, [%2];"         \
                   : "=r"(r[0]), "=r"(r[1])                                                    \
                   : "r"(address)                                                              \
                   : "memory");                                                                \
    else                                                                                       \
      asm volatile("ldmatrix.sync.aligned.m8n8.x4" TRANS ".shared.b16 {%0, %1, %2, %3}, [%4];" \
                   : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])                            \
                   : "r"(address)                                                              \
                   : "memory");                                                                \
  }
TTC_LDMATRIX(ldmatrix, "")
TTC_LDMATRIX(ldmatrix_trans, ".trans")
#undef TTC_LDMATRIX

#define TTC_STMATRIX(NAME, TRANS)                                                                                 \
  template <int N>                                                                                                \
  __device__ __forceinline__ void NAME(void* row, const uint32_t (&r)[N]) {                                       \
    static_assert(N == 1 || N == 2 || N == 4);                                                                    \
    const uint32_t address = smem_u32(row);                                                                       \
    if constexpr (N == 1)                                                                                         \
      asm volatile("stmatrix.sync.aligned.m8n8.x1" TRANS ".shared.b16 [%0], {%1};" ::"r"(address), "r"(r[0])      \
                   : "memory");                                                                                   \
    else if constexpr (N == 2)                                                                                    \
      asm volatile("stmatrix.sync.aligned.m8n8.x2" TRANS ".shared.b16 [%0], {%1, %2};" ::"r"(address), "r"(r[0]), \
                   "r"(r[1])                                                                                      \
                   : "memory");                                                                                   \
    else                                                                                                          \
      asm volatile("stmatrix.sync.aligned.m8n8.x4" TRANS ".shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),    \
                   "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])                                                     \
                   : "memory");                                                                                   \
  }
TTC_STMATRIX(stmatrix, "")
TTC_STMATRIX(stmatrix_trans, ".trans")
#undef TTC_STMATRIX

// T: __half or __nv_bfloat16, the type in a and b. Accumulates in fp32.
template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#define TTC_MMA(TYPE)                                                                 \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE                 \
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                       \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
  if constexpr (std::is_same_v<T, __half>)
    TTC_MMA("f16");
  else
    TTC_MMA("bf16");
#undef TTC_MMA
}

}  // namespace ttc::ptx
