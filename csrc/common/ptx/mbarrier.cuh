// mbarrier: a phase completes when its pending arrivals and its pending bytes both reach zero.
#pragma once

#include <cstdint>

#include "memory.cuh"

namespace ttc::ptx {

// barrier: 8 aligned bytes of shared memory; count: arrivals per phase.
__device__ __forceinline__ void mbarrier_init(uint64_t* barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(smem_u32(barrier)), "r"(count) : "memory");
}

__device__ __forceinline__ void mbarrier_inval(uint64_t* barrier) {
  asm volatile("mbarrier.inval.shared.b64 [%0];" ::"r"(smem_u32(barrier)) : "memory");
}

__device__ __forceinline__ void mbarrier_arrive(uint64_t* barrier) {
  asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(smem_u32(barrier)) : "memory");
}

// One arrival that also makes the phase wait for this many bytes of tensor loads.
__device__ __forceinline__ void mbarrier_expect_tx(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem_u32(barrier)), "r"(bytes)
               : "memory");
}

// Waits until the phase of this parity (0 for the first) has completed.
__device__ __forceinline__ void mbarrier_wait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(smem_u32(barrier)),
      "r"(parity)
      : "memory");
}

// Makes initialised barriers visible to tensor loads.
__device__ __forceinline__ void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Orders this thread's ordinary accesses to shared memory before what tensor loads and wgmma do with
// it afterwards.
__device__ __forceinline__ void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

}  // namespace ttc::ptx
