// Shared addresses, global loads and stores of 16 bytes, acquire and release at gpu scope.
#pragma once

#include <cstdint>

namespace ttc {

// The block's dynamic shared memory, aligned to 1024 bytes (what a 128-byte swizzle needs).
__device__ __forceinline__ char* dynamic_smem() {
  extern __shared__ __align__(1024) char ttc_dynamic_smem[];
  return ttc_dynamic_smem;
}

namespace ptx {

// The same number, of which the compiler knows nothing: addresses made from it inside a loop are made there
// each time instead of being held in registers.
__device__ __forceinline__ int unhoisted(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// smem: generic pointer into shared memory. Its 32-bit address in the shared window.
__device__ __forceinline__ uint32_t smem_u32(const void* smem) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(smem));
}

// address: 16-byte aligned, data no thread writes during the kernel. Read once, so kept out of L1.
__device__ __forceinline__ uint4 load_global_16(const void* address) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(__cvta_generic_to_global(address)));
  return v;
}

// What another block has written, read past L1, which may hold what was there before.
__device__ __forceinline__ float4 load_l2_16(const float* address) { return __ldcg(reinterpret_cast<const float4*>(address)); }
__device__ __forceinline__ float2 load_l2_8(const float* address) { return __ldcg(reinterpret_cast<const float2*>(address)); }
__device__ __forceinline__ float load_l2_4(const float* address) { return __ldcg(address); }

// address: 16-byte aligned.
__device__ __forceinline__ void store_global_16(void* address, uint4 v) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(address)), "r"(v.x), "r"(v.y),
               "r"(v.z), "r"(v.w)
               : "memory");
}

__device__ __forceinline__ int32_t load_acquire(const int32_t* address) {
  int32_t v;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(v) : "l"(__cvta_generic_to_global(address)) : "memory");
  return v;
}

// Returns the value before the addition.
__device__ __forceinline__ int32_t atomic_add_acq_rel(int32_t* address, int32_t value) {
  int32_t before;
  asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(__cvta_generic_to_global(address)), "r"(value)
               : "memory");
  return before;
}

__device__ __forceinline__ void threadfence() { __threadfence(); }

}  // namespace ptx
}  // namespace ttc
