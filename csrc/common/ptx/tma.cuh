// Tensor loads: one thread fetches a box of a tensor, coordinates innermost first, and the barrier
// counts its bytes. Elements outside the tensor arrive as zeros and are counted too.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "memory.cuh"

namespace ttc::ptx {

// map: in constant, global or __grid_constant__ parameter memory.
__device__ __forceinline__ void tma_prefetch_descriptor(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

#define TTC_TMA_LOAD(DIMS, COORDINATES, ...)                                                   \
  asm volatile("cp.async.bulk.tensor." DIMS                                                    \
               ".shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {" COORDINATES \
               "}], [%2];" ::"r"(smem_u32(smem)),                                              \
               "l"(map), "r"(smem_u32(barrier)), __VA_ARGS__                                   \
               : "memory")

// smem: aligned to 128 bytes (1024 with a 128-byte swizzle).
__device__ __forceinline__ void tma_load_2d(void* smem, const CUtensorMap* map, uint64_t* barrier, int c0, int c1) {
  TTC_TMA_LOAD("2d", "%3, %4", "r"(c0), "r"(c1));
}
__device__ __forceinline__ void tma_load_3d(void* smem, const CUtensorMap* map, uint64_t* barrier, int c0, int c1,
                                            int c2) {
  TTC_TMA_LOAD("3d", "%3, %4, %5", "r"(c0), "r"(c1), "r"(c2));
}
__device__ __forceinline__ void tma_load_4d(void* smem, const CUtensorMap* map, uint64_t* barrier, int c0, int c1,
                                            int c2, int c3) {
  TTC_TMA_LOAD("4d", "%3, %4, %5, %6", "r"(c0), "r"(c1), "r"(c2), "r"(c3));
}
__device__ __forceinline__ void tma_load_5d(void* smem, const CUtensorMap* map, uint64_t* barrier, int c0, int c1,
                                            int c2, int c3, int c4) {
  TTC_TMA_LOAD("5d", "%3, %4, %5, %6, %7", "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4));
}
#undef TTC_TMA_LOAD

}  // namespace ttc::ptx
