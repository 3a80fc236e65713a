// Host side of csrc/common/ptx.cuh: the same names, each a call into the emulator. `site` is where the
// kernel calls, for messages; kernels leave it out.
#pragma once

#include <cuda.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "cuda_emulator.h"

#define EMU_SITE const emu::Site& site = emu::Site::current()

namespace ttc {

inline char* dynamic_smem() { return emu::current->block->shared.data; }

namespace ptx {

// --- memory.cuh ---
inline uint32_t smem_u32(const void* smem) { return emu::shared_address(smem, 0, 1, "smem_u32"); }

inline uint4 load_global_16(const void* address, EMU_SITE) {
  emu::read_global(address, 16, 16, "ld.global");
  emu::race::read(*emu::current, address, 16, "ld.global", site);
  uint4 v;
  std::memcpy(&v, address, 16);
  return v;
}
inline void store_global_16(void* address, uint4 v, EMU_SITE) {
  emu::check_global(address, 16, 16, "st.global");
  emu::race::write(*emu::current, address, 16, "st.global", site);
  std::memcpy(address, &v, 16);
}
inline float4 load_l2_16(const float* address, EMU_SITE) {
  emu::check_global(address, 16, 16, "ld.global.cg");
  emu::race::read(*emu::current, address, 16, "ld.global.cg", site);
  float4 v;
  std::memcpy(&v, address, 16);
  return v;
}
inline float2 load_l2_8(const float* address, EMU_SITE) {
  emu::check_global(address, 8, 8, "ld.global.cg");
  emu::race::read(*emu::current, address, 8, "ld.global.cg", site);
  float2 v;
  std::memcpy(&v, address, 8);
  return v;
}
inline float load_l2_4(const float* address, EMU_SITE) {
  emu::check_global(address, 4, 4, "ld.global.cg");
  emu::race::read(*emu::current, address, 4, "ld.global.cg", site);
  float v;
  std::memcpy(&v, address, 4);
  return v;
}
inline int32_t load_acquire(const int32_t* address, EMU_SITE) { return emu::load_acquire(address, site); }
inline int32_t atomic_add_acq_rel(int32_t* address, int32_t value, EMU_SITE) {
  return emu::atomic_update(address, [=](int32_t v) { return v + value; }, emu::Order::kAcqRel, site);
}
inline void threadfence() { __threadfence(); }

inline int unhoisted(int x) { return x; }

// --- barrier.cuh ---
inline void named_barrier_sync(int id, int threads, EMU_SITE) { emu::barrier_sync(id, threads, "bar.sync", site); }
inline void named_barrier_arrive(int id, int threads, EMU_SITE) {
  emu::barrier_arrive(id, threads, "bar.arrive", site);
}
template <int Registers>
inline void reg_alloc(EMU_SITE) {
  static_assert(Registers % 8 == 0 && Registers >= 24 && Registers <= 256);
  emu::collective("setmaxnreg", ~0u, emu::Aligned::kYes, nullptr, [](emu::Warp&, uint32_t, void* const*) {}, site);
}
template <int Registers>
inline void reg_dealloc(EMU_SITE) {
  reg_alloc<Registers>(site);
}

// --- convert.cuh ---
inline uint32_t pack_half2(float low, float high) {
  return __half_as_ushort(__float2half_rn(low)) | static_cast<uint32_t>(__half_as_ushort(__float2half_rn(high))) << 16;
}
inline uint32_t pack_bf16x2(float low, float high) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(low)) |
         static_cast<uint32_t>(__bfloat16_as_ushort(__float2bfloat16_rn(high))) << 16;
}
inline uint32_t e4m3_bytes_to_half2(uint32_t bytes) {
  return pack_half2(emu::e4m3_to_float(bytes & 0xff), emu::e4m3_to_float(bytes >> 16 & 0xff));
}
inline uint32_t e4m3_bytes_to_bf16x2(uint32_t bytes) {
  return pack_bf16x2(emu::e4m3_to_float(bytes & 0xff), emu::e4m3_to_float(bytes >> 16 & 0xff));
}
inline uint32_t fp8x2_e4m3_to_half2(uint16_t pair) {
  return pack_half2(emu::e4m3_to_float(pair & 0xff), emu::e4m3_to_float(pair >> 8));
}
inline uint32_t fp8x2_e4m3_to_bf16x2(uint16_t pair) {
  return pack_bf16x2(emu::e4m3_to_float(pair & 0xff), emu::e4m3_to_float(pair >> 8));
}
inline float ex2_approx(float x) {
  const float v = std::exp2(x);
  return v < 0x1p-126f ? 0.0f : v;
}

// --- mma.cuh ---
template <int N>
inline void ldmatrix(uint32_t (&r)[N], const void* row, EMU_SITE) {
  static_assert(N == 1 || N == 2 || N == 4);
  emu::ldmatrix(r, N, false, row, site);
}
template <int N>
inline void ldmatrix_trans(uint32_t (&r)[N], const void* row, EMU_SITE) {
  static_assert(N == 1 || N == 2 || N == 4);
  emu::ldmatrix(r, N, true, row, site);
}
template <int N>
inline void stmatrix(void* row, const uint32_t (&r)[N], EMU_SITE) {
  static_assert(N == 1 || N == 2 || N == 4);
  emu::stmatrix(row, r, N, false, site);
}
template <int N>
inline void stmatrix_trans(void* row, const uint32_t (&r)[N], EMU_SITE) {
  static_assert(N == 1 || N == 2 || N == 4);
  emu::stmatrix(row, r, N, true, site);
}
template <class T>
inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], EMU_SITE) {
  emu::mma_m16n8k16(d, a, b, std::is_same_v<T, __nv_bfloat16>, site);
}

// --- cp_async.cuh ---
inline void cp_async_16(void* smem, const void* global, bool valid = true, EMU_SITE) {
  emu::cp_async(smem, global, 16, valid, site);
}
inline void cp_async_8(void* smem, const void* global, bool valid = true, EMU_SITE) {
  emu::cp_async(smem, global, 8, valid, site);
}
inline void cp_async_4(void* smem, const void* global, bool valid = true, EMU_SITE) {
  emu::cp_async(smem, global, 4, valid, site);
}
inline void cp_async_commit() { emu::cp_async_commit_group(); }
template <int N>
inline void cp_async_wait() {
  emu::cp_async_wait_group(N);
}
inline void cp_async_mbarrier_arrive(uint64_t* barrier, EMU_SITE) { emu::cp_async_arrive(barrier, site); }

// --- mbarrier.cuh ---
inline void mbarrier_init(uint64_t* barrier, uint32_t count, EMU_SITE) { emu::mbarrier_init(barrier, count, site); }
inline void mbarrier_inval(uint64_t* barrier, EMU_SITE) { emu::mbarrier_inval(barrier, site); }
inline void mbarrier_arrive(uint64_t* barrier, EMU_SITE) { emu::mbarrier_arrive(barrier, 0, site); }
inline void mbarrier_expect_tx(uint64_t* barrier, uint32_t bytes, EMU_SITE) {
  emu::mbarrier_arrive(barrier, bytes, site);
}
inline void mbarrier_wait(uint64_t* barrier, uint32_t parity, EMU_SITE) { emu::mbarrier_wait(barrier, parity, site); }
inline void fence_mbarrier_init() { emu::mbarrier_fence(); }
inline void fence_proxy_async() {
  emu::mbarrier_fence();
  emu::race::fence_proxy(*emu::current);
}

// --- tma.cuh ---
inline void tma_prefetch_descriptor(const CUtensorMap*) {}
inline void tma_load_2d(void* smem, const CUtensorMap* map, uint64_t* barrier, int c0, int c1, EMU_SITE) {
  emu::tma_load(smem, map, barrier, {c0, c1}, 2, site);
}
inline void tma_load_3d(void* smem, const CUtensorMap* map, uint64_t* barrier, int c0, int c1, int c2, EMU_SITE) {
  emu::tma_load(smem, map, barrier, {c0, c1, c2}, 3, site);
}
inline void tma_load_4d(void* smem, const CUtensorMap* map, uint64_t* barrier, int c0, int c1, int c2, int c3,
                        EMU_SITE) {
  emu::tma_load(smem, map, barrier, {c0, c1, c2, c3}, 4, site);
}
inline void tma_load_5d(void* smem, const CUtensorMap* map, uint64_t* barrier, int c0, int c1, int c2, int c3, int c4,
                        EMU_SITE) {
  emu::tma_load(smem, map, barrier, {c0, c1, c2, c3, c4}, 5, site);
}

// --- wgmma.cuh ---
inline void wgmma_fence(EMU_SITE) { emu::wgmma_fence(site); }
inline void wgmma_commit(EMU_SITE) { emu::wgmma_commit(site); }
template <int Pending>
inline void wgmma_wait(EMU_SITE) {
  emu::wgmma_wait(Pending, site);
}
template <class T, int N>
inline void wgmma_pin(T (&)[N]) {}
template <class T, int Columns, bool TransA, bool TransB>
inline void wgmma_ss(float (&d)[Columns / 2], uint64_t a, uint64_t b, bool accumulate, EMU_SITE) {
  static_assert(Columns % 8 == 0 && Columns >= 8 && Columns <= 256);
  emu::wgmma({d, nullptr, a, b, Columns, std::is_same_v<T, __nv_bfloat16>, TransA, TransB, accumulate, site});
}
template <class T, int Columns, bool TransB>
inline void wgmma_rs(float (&d)[Columns / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate, EMU_SITE) {
  static_assert(Columns % 8 == 0 && Columns >= 8 && Columns <= 256);
  emu::wgmma({d, a, 0, b, Columns, std::is_same_v<T, __nv_bfloat16>, false, TransB, accumulate, site});
}

}  // namespace ptx
}  // namespace ttc

#undef EMU_SITE

// Plain C++ shared with the device side.
#include "common/ptx/convert_common.cuh"
#include "common/ptx/wgmma_descriptor.cuh"
