// wgmma m64nNk16: four warps multiply a[64][16] by b[16][N] from shared memory (a also from registers)
// into fp32 registers, asynchronously.
//
// Accumulators, with warp w = 0..3 of the group, g = lane / 4, t = lane % 4, and j = 0..N/8 - 1:
//
//   d[4j], d[4j + 1]      row 16w + g      columns 8j + 2t, 8j + 2t + 1
//   d[4j + 2], d[4j + 3]  row 16w + g + 8  the same columns
//
// a in registers is laid out as in mma.cuh, rows 16w to 16w + 15. Order of calls: wgmma_fence (after
// registers of d or a were written by other instructions), wgmma_*, wgmma_commit, wgmma_wait.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "memory.cuh"
#include "wgmma_descriptor.cuh"

namespace ttc::ptx {

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most Pending of the groups committed by this warp group are in flight.
template <int Pending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}

// Keeps the compiler from moving uses of the registers across this point. Needed after a wait for the
// accumulators it made ready, since the wait itself does not name them.
template <class T, int N>
__device__ __forceinline__ void wgmma_pin(T (&registers)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if constexpr (std::is_same_v<T, float>)
      asm volatile("" : "+f"(registers[i])::"memory");
    else
      asm volatile("" : "+r"(registers[i])::"memory");
  }
}

#include "wgmma_registers.inc"

// One instruction of n = N; A and B give the operands' text and the next free operand numbers.
#define TTC_WGMMA_SS(N, TYPE, A, B, ACC, TA, TB)                                             \
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #ACC                                       \
               ", 0;\n"                                                                      \
               "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" TTC_R##N \
               "}, %" #A ", %" #B ", p, 1, 1, %" #TA ", %" #TB "; }"                         \
               : TTC_D##N                                                                    \
               : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)), "n"(TransA), "n"(TransB) \
               : "memory")
#define TTC_WGMMA_RS(N, TYPE, A0, A1, A2, A3, B, ACC, TB)                                                           \
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #ACC                                                              \
               ", 0;\n"                                                                                             \
               "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" TTC_R##N                        \
               "}, {%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #B ", p, 1, 1, %" #TB "; }"                         \
               : TTC_D##N                                                                                           \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)), "n"(TransB) \
               : "memory")
#define TTC_WGMMA_CASE(N, KIND, ...)            \
  else if constexpr (Columns == N) {            \
    if constexpr (std::is_same_v<T, __half>)    \
      TTC_WGMMA_##KIND(N, "f16", __VA_ARGS__);  \
    else                                        \
      TTC_WGMMA_##KIND(N, "bf16", __VA_ARGS__); \
  }

// T: __half or __nv_bfloat16; Columns: N, a multiple of 8 up to 256; TransA and TransB: the operand is
// MN-major; a, b: descriptors; accumulate: d += a b, else d = a b.
template <class T, int Columns, bool TransA, bool TransB>
__device__ __forceinline__ void wgmma_ss(float (&d)[Columns / 2], uint64_t a, uint64_t b, bool accumulate) {
  static_assert(Columns % 8 == 0 && Columns >= 8 && Columns <= 256);
  if constexpr (false) {
  }
  // clang-format off
  TTC_WGMMA_CASE(8, SS, 4, 5, 6, 7, 8)
  TTC_WGMMA_CASE(16, SS, 8, 9, 10, 11, 12)
  TTC_WGMMA_CASE(24, SS, 12, 13, 14, 15, 16)
  TTC_WGMMA_CASE(32, SS, 16, 17, 18, 19, 20)
  TTC_WGMMA_CASE(40, SS, 20, 21, 22, 23, 24)
  TTC_WGMMA_CASE(48, SS, 24, 25, 26, 27, 28)
  TTC_WGMMA_CASE(56, SS, 28, 29, 30, 31, 32)
  TTC_WGMMA_CASE(64, SS, 32, 33, 34, 35, 36)
  TTC_WGMMA_CASE(72, SS, 36, 37, 38, 39, 40)
  TTC_WGMMA_CASE(80, SS, 40, 41, 42, 43, 44)
  TTC_WGMMA_CASE(88, SS, 44, 45, 46, 47, 48)
  TTC_WGMMA_CASE(96, SS, 48, 49, 50, 51, 52)
  TTC_WGMMA_CASE(104, SS, 52, 53, 54, 55, 56)
  TTC_WGMMA_CASE(112, SS, 56, 57, 58, 59, 60)
  TTC_WGMMA_CASE(120, SS, 60, 61, 62, 63, 64)
  TTC_WGMMA_CASE(128, SS, 64, 65, 66, 67, 68)
  TTC_WGMMA_CASE(136, SS, 68, 69, 70, 71, 72)
  TTC_WGMMA_CASE(144, SS, 72, 73, 74, 75, 76)
  TTC_WGMMA_CASE(152, SS, 76, 77, 78, 79, 80)
  TTC_WGMMA_CASE(160, SS, 80, 81, 82, 83, 84)
  TTC_WGMMA_CASE(168, SS, 84, 85, 86, 87, 88)
  TTC_WGMMA_CASE(176, SS, 88, 89, 90, 91, 92)
  TTC_WGMMA_CASE(184, SS, 92, 93, 94, 95, 96)
  TTC_WGMMA_CASE(192, SS, 96, 97, 98, 99, 100)
  TTC_WGMMA_CASE(200, SS, 100, 101, 102, 103, 104)
  TTC_WGMMA_CASE(208, SS, 104, 105, 106, 107, 108)
  TTC_WGMMA_CASE(216, SS, 108, 109, 110, 111, 112)
  TTC_WGMMA_CASE(224, SS, 112, 113, 114, 115, 116)
  TTC_WGMMA_CASE(232, SS, 116, 117, 118, 119, 120)
  TTC_WGMMA_CASE(240, SS, 120, 121, 122, 123, 124)
  TTC_WGMMA_CASE(248, SS, 124, 125, 126, 127, 128)
  TTC_WGMMA_CASE(256, SS, 128, 129, 130, 131, 132)
  // clang-format on
}

// a: registers, K-major as mma.cuh has them; they may be written again after the wait only.
template <class T, int Columns, bool TransB>
__device__ __forceinline__ void wgmma_rs(float (&d)[Columns / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
  static_assert(Columns % 8 == 0 && Columns >= 8 && Columns <= 256);
  if constexpr (false) {
  }
  // clang-format off
  TTC_WGMMA_CASE(8, RS, 4, 5, 6, 7, 8, 9, 10)
  TTC_WGMMA_CASE(16, RS, 8, 9, 10, 11, 12, 13, 14)
  TTC_WGMMA_CASE(24, RS, 12, 13, 14, 15, 16, 17, 18)
  TTC_WGMMA_CASE(32, RS, 16, 17, 18, 19, 20, 21, 22)
  TTC_WGMMA_CASE(40, RS, 20, 21, 22, 23, 24, 25, 26)
  TTC_WGMMA_CASE(48, RS, 24, 25, 26, 27, 28, 29, 30)
  TTC_WGMMA_CASE(56, RS, 28, 29, 30, 31, 32, 33, 34)
  TTC_WGMMA_CASE(64, RS, 32, 33, 34, 35, 36, 37, 38)
  TTC_WGMMA_CASE(72, RS, 36, 37, 38, 39, 40, 41, 42)
  TTC_WGMMA_CASE(80, RS, 40, 41, 42, 43, 44, 45, 46)
  TTC_WGMMA_CASE(88, RS, 44, 45, 46, 47, 48, 49, 50)
  TTC_WGMMA_CASE(96, RS, 48, 49, 50, 51, 52, 53, 54)
  TTC_WGMMA_CASE(104, RS, 52, 53, 54, 55, 56, 57, 58)
  TTC_WGMMA_CASE(112, RS, 56, 57, 58, 59, 60, 61, 62)
  TTC_WGMMA_CASE(120, RS, 60, 61, 62, 63, 64, 65, 66)
  TTC_WGMMA_CASE(128, RS, 64, 65, 66, 67, 68, 69, 70)
  TTC_WGMMA_CASE(136, RS, 68, 69, 70, 71, 72, 73, 74)
  TTC_WGMMA_CASE(144, RS, 72, 73, 74, 75, 76, 77, 78)
  TTC_WGMMA_CASE(152, RS, 76, 77, 78, 79, 80, 81, 82)
  TTC_WGMMA_CASE(160, RS, 80, 81, 82, 83, 84, 85, 86)
  TTC_WGMMA_CASE(168, RS, 84, 85, 86, 87, 88, 89, 90)
  TTC_WGMMA_CASE(176, RS, 88, 89, 90, 91, 92, 93, 94)
  TTC_WGMMA_CASE(184, RS, 92, 93, 94, 95, 96, 97, 98)
  TTC_WGMMA_CASE(192, RS, 96, 97, 98, 99, 100, 101, 102)
  TTC_WGMMA_CASE(200, RS, 100, 101, 102, 103, 104, 105, 106)
  TTC_WGMMA_CASE(208, RS, 104, 105, 106, 107, 108, 109, 110)
  TTC_WGMMA_CASE(216, RS, 108, 109, 110, 111, 112, 113, 114)
  TTC_WGMMA_CASE(224, RS, 112, 113, 114, 115, 116, 117, 118)
  TTC_WGMMA_CASE(232, RS, 116, 117, 118, 119, 120, 121, 122)
  TTC_WGMMA_CASE(240, RS, 120, 121, 122, 123, 124, 125, 126)
  TTC_WGMMA_CASE(248, RS, 124, 125, 126, 127, 128, 129, 130)
  TTC_WGMMA_CASE(256, RS, 128, 129, 130, 131, 132, 133, 134)
  // clang-format on
}

#undef TTC_WGMMA_CASE
#undef TTC_WGMMA_RS
#undef TTC_WGMMA_SS

}  // namespace ttc::ptx
