// Kernels with a planted fault and their correct twins (Planted = false), for test_faults.py. All reverse
// 128 floats, out[t] = in[127 - t], except those named product: they multiply two 64 x 64 matrices.
#include <cuda_emulator.h>

#include "common/ptx.cuh"

using namespace ttc::ptx;
using T = __nv_bfloat16;

namespace {

__device__ float* shared_floats() { return reinterpret_cast<float*>(ttc::dynamic_smem()); }
__device__ uint64_t* barrier_after(int bytes) { return reinterpret_cast<uint64_t*>(ttc::dynamic_smem() + bytes); }

template <bool Planted>
__global__ void shared_write_out_of_bounds(const float* in, float* out) {
  float* smem = shared_floats();
  const int t = threadIdx.x;
  smem[t] = in[t];
  if (Planted && t == 127) smem[128] = 0.0f;
  __syncthreads();
  out[t] = smem[127 - t];
}

template <bool Planted>
__global__ void shared_read_out_of_bounds(const float* in, float* out) {
  float* smem = shared_floats();
  const int t = threadIdx.x;
  smem[t] = in[t];
  __syncthreads();
  out[t] = smem[127 - t + (Planted && t == 0)];
}

template <bool Planted>
__global__ void shared_address_out_of_bounds(const float* in, float* out) {
  const int t = threadIdx.x;
  if (t < 32) cp_async_16(shared_floats() + 4 * (t + Planted), in + 4 * t);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  out[t] = shared_floats()[127 - t];
}

template <bool Planted>
__global__ void global_read_out_of_bounds(const float* in, float* out) {
  out[threadIdx.x] = in[127 - static_cast<int>(threadIdx.x) + (Planted && threadIdx.x == 0)];
}

template <bool Planted>
__global__ void global_write_out_of_bounds(const float* in, float* out) {
  out[127 - threadIdx.x] = in[threadIdx.x];
  if (Planted && threadIdx.x == 5) out[128] = 0.0f;
}

template <bool Planted>
__global__ void global_copy_out_of_bounds(const float* in, float* out) {
  const int t = threadIdx.x;
  if (t < 32) cp_async_16(shared_floats() + 4 * t, in + 4 * t + 4 * Planted);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  out[t] = shared_floats()[127 - t];
}

template <bool Planted>
__global__ void missing_barrier(const float* in, float* out) {
  const int t = threadIdx.x;
  shared_floats()[t] = in[t];
  if (!Planted) __syncthreads();
  out[t] = shared_floats()[127 - t];
}

template <bool Planted>
__global__ void missing_warp_sync(const float* in, float* out) {
  const int t = threadIdx.x;
  shared_floats()[t ^ 1] = in[127 - (t ^ 1)];
  if (!Planted) __syncwarp();
  out[t] = shared_floats()[t];
}

template <bool Planted>
__global__ void missing_copy_wait(const float* in, float* out) {
  const int t = threadIdx.x;
  if (t < 32) cp_async_16(shared_floats() + 4 * t, in + 4 * t);
  cp_async_commit();
  cp_async_wait<Planted ? 1 : 0>();
  __syncthreads();
  out[t] = shared_floats()[127 - t];
}

// Threads copy, others wait for the mbarrier that the copies arrive at.
template <bool Planted>
__global__ void missing_barrier_wait(const float* in, float* out) {
  uint64_t* full = barrier_after(512);
  const int t = threadIdx.x;
  if (t == 0) {
    mbarrier_init(full, 32);
    fence_mbarrier_init();
  }
  __syncthreads();
  if (t < 32) {
    cp_async_16(shared_floats() + 4 * t, in + 4 * t);
    cp_async_mbarrier_arrive(full);
  }
  if (!Planted) mbarrier_wait(full, 0);
  out[t] = shared_floats()[127 - t];
}

// One warp fills two stages in turn; the others read them and hand them back.
template <bool Planted>
__global__ void stage_refilled_early(const float* in, float* out) {
  float* smem = shared_floats();
  uint64_t *full = barrier_after(128), *empty = full + 2;
  const int t = threadIdx.x, warp = t / 32, lane = t % 32;
  if (t == 0)
    for (int s = 0; s < 2; ++s) {
      mbarrier_init(full + s, 32);
      mbarrier_init(empty + s, 1);
    }
  __syncthreads();
  for (int i = 0; i < 8; ++i) {
    const int s = i % 2, parity = i / 2 % 2;
    if (warp == 0) {
      if (!Planted) mbarrier_wait(empty + s, parity ^ 1);
      if (lane < 4) cp_async_16(smem + 16 * s + 4 * lane, in + 16 * i + 4 * lane);
      cp_async_mbarrier_arrive(full + s);
    } else if (warp == 1) {
      mbarrier_wait(full + s, parity);
      if (lane < 16) out[127 - (16 * i + lane)] = smem[16 * s + lane];
      __syncwarp();
      if (lane == 0) mbarrier_arrive(empty + s);
    }
  }
}

template <bool Planted>
__global__ void missing_tensor_wait(const __grid_constant__ CUtensorMap map, float* out) {
  uint64_t* full = barrier_after(512);
  const int t = threadIdx.x;
  if (t == 0) {
    mbarrier_init(full, 1);
    fence_mbarrier_init();
    mbarrier_expect_tx(full, 512);
    tma_load_2d(shared_floats(), &map, full, 0, 0);
  }
  __syncthreads();
  if (!Planted || t == 0) mbarrier_wait(full, 0);
  out[t] = shared_floats()[127 - t];
}

template <bool Planted>
__global__ void missing_mbarrier_fence(const __grid_constant__ CUtensorMap map, float* out) {
  uint64_t* full = barrier_after(512);
  const int t = threadIdx.x;
  if (t == 0) {
    mbarrier_init(full, 1);
    if (!Planted) fence_mbarrier_init();
    mbarrier_expect_tx(full, 512);
    tma_load_2d(shared_floats(), &map, full, 0, 0);
  }
  __syncthreads();
  mbarrier_wait(full, 0);
  out[t] = shared_floats()[127 - t];
}

// The barrier expects more bytes than come.
template <bool Planted>
__global__ void wrong_byte_count(const __grid_constant__ CUtensorMap map, float* out) {
  uint64_t* full = barrier_after(512);
  const int t = threadIdx.x;
  if (t == 0) {
    mbarrier_init(full, 1);
    fence_mbarrier_init();
    mbarrier_expect_tx(full, 512 + 16 * Planted);
    tma_load_2d(shared_floats(), &map, full, 0, 0);
  }
  __syncthreads();
  mbarrier_wait(full, 0);
  out[t] = shared_floats()[127 - t];
}

template <bool Planted>
__global__ void misaligned_vector(const float* in, float* out) {
  const int t = threadIdx.x;
  shared_floats()[t] = in[t];
  __syncthreads();
  const float4 v = *reinterpret_cast<const float4*>(shared_floats() + (127 - t) / 4 * 4 - (Planted && t == 0));
  const float elements[4] = {v.x, v.y, v.z, v.w};
  out[t] = elements[(127 - t) % 4];
}

// Rows of 128 bytes, written with the chunks swizzled, read back by ldmatrix.
template <bool Planted>
__global__ void wrong_swizzle(const float* in, float* out) {
  char* smem = ttc::dynamic_smem();
  const int t = threadIdx.x, lane = t % 32;
  float* matrix = reinterpret_cast<float*>(smem);
  for (int i = t; i < 512; i += 128) matrix[i] = 0.0f;
  __syncthreads();
  const int row = t / 16, chunk = t / 4 % 4;  // 16 floats a row, in chunks of 4
  matrix[row * 32 + (chunk ^ row) * 4 + t % 4] = in[127 - t];
  __syncthreads();
  uint32_t r[4];
  const int from_row = lane % 8, from_chunk = lane / 8;
  ldmatrix(r, smem + from_row * 128 + (Planted ? from_chunk : from_chunk ^ from_row) * 16);
  if (t < 32)
    for (int i = 0; i < 4; ++i) out[lane / 4 * 16 + i * 4 + lane % 4] = __uint_as_float(r[i]);
}

template <bool Planted>
__global__ void divergent_shuffle(const float* in, float* out) {
  const int t = threadIdx.x;
  float v = in[t ^ 96];
  if (!Planted || t % 32 < 16)
    v = __shfl_xor_sync(~0u, v, 31);
  else
    __syncwarp();
  out[t] = v;
}

template <bool Planted>
__global__ void divergent_mma(const float* in, float* out) {
  const int t = threadIdx.x;
  if (Planted && t % 32 == 7) return;
  float d[4] = {};
  const uint32_t a[4] = {}, b[2] = {};
  mma_m16n8k16<T>(d, a, b);
  out[t] = in[127 - t] + d[0];
}

template <bool Planted>
__global__ void divergent_barrier(const float* in, float* out) {
  const int t = threadIdx.x;
  shared_floats()[t] = in[t];
  if (Planted && t < 16)
    __syncthreads();
  else
    __syncthreads();
  out[t] = shared_floats()[127 - t];
}

template <bool Planted>
__global__ void deadlock(const float* in, float* out) {
  const int t = threadIdx.x;
  shared_floats()[t] = in[t];
  if (!Planted || t >= 32) named_barrier_sync(3, 128);
  out[t] = shared_floats()[127 - t];
}

// Four blocks; the last to finish reads what the others wrote.
template <bool Planted>
__global__ void missing_release(const float* in, float* out, float* scratch, int* arrived) {
  const int t = threadIdx.x, i = blockIdx.x * 32 + t;
  scratch[i] = in[i];
  __syncthreads();
  if (t == 0) {
    if (!Planted) __threadfence();
    *reinterpret_cast<int*>(ttc::dynamic_smem()) = atomicAdd(arrived, 1);
    __threadfence();
  }
  __syncthreads();
  if (*reinterpret_cast<int*>(ttc::dynamic_smem()) != 3) return;
  for (int j = t; j < 128; j += 32) out[j] = scratch[127 - j];
}

enum class Fault { kNone, kNoWait, kNoFence, kNoProxyFence, kOverwritten, kAccumulatorTouched, kSwizzle };

// d = a b^T, both K-major with a swizzle of 128 bytes.
template <Fault Planted>
__global__ void __launch_bounds__(128) product(const char* in, float* d) {
  char* smem = ttc::dynamic_smem();
  const int t = threadIdx.x;
  for (int i = t; i < 16384; i += 128) smem[i] = in[i];
  if (Planted != Fault::kNoProxyFence) fence_proxy_async();
  __syncthreads();
  constexpr Swizzle swizzle = Planted == Fault::kSwizzle ? Swizzle::k64 : Swizzle::k128;
  float acc[32];
  if (Planted != Fault::kNoFence) wgmma_fence();
  for (int k = 0; k < 4; ++k)
    wgmma_ss<T, 64, false, false>(acc, wgmma_descriptor(smem + 32 * k, 0, 1024, Swizzle::k128),
                                  wgmma_descriptor(smem + 8192 + 32 * k, 0, 1024, swizzle), k > 0);
  wgmma_commit();
  if (Planted == Fault::kOverwritten) smem[8193 + 2 * t] = 0x7f;
  if (Planted == Fault::kAccumulatorTouched) acc[5] *= 2.0f;
  if (Planted == Fault::kNoWait) {
    for (int i = 0; i < 32; ++i) d[t * 32 + i] = acc[i];
    wgmma_wait<0>();
    return;
  }
  wgmma_wait<0>();
  wgmma_pin(acc);
  for (int i = 0; i < 32; ++i) d[t * 32 + i] = acc[i];
}

CUtensorMap map_of(const float* in) {
  CUtensorMap map;
  const uint64_t sizes[2] = {32, 4}, strides[1] = {128};
  const uint32_t box[2] = {32, 4}, ones[2] = {1, 1};
  cuTensorMapEncodeTiled(&map, CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 2, const_cast<float*>(in), sizes, strides, box, ones,
                         CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_L2_PROMOTION_NONE,
                         CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return map;
}

}  // namespace

#define FAULT(NAME, BYTES)                                                                                 \
  const char* NAME##_(int64_t planted, const float* in, float* out) {                                      \
    return emu::guarded([&] { emu::launch(1, 128, BYTES, planted ? NAME<true> : NAME<false>, in, out); }); \
  }
#define TENSOR_FAULT(NAME)                                                                                       \
  const char* NAME##_(int64_t planted, const float* in, float* out) {                                            \
    return emu::guarded([&] { emu::launch(1, 128, 520, planted ? NAME<true> : NAME<false>, map_of(in), out); }); \
  }
#define PRODUCT_FAULT(NAME, KIND)                                                                              \
  const char* NAME##_(int64_t planted, const char* in, float* out) {                                           \
    return emu::guarded(                                                                                       \
        [&] { emu::launch(1, 128, 16384, planted ? product<Fault::KIND> : product<Fault::kNone>, in, out); }); \
  }

extern "C" {
FAULT(shared_write_out_of_bounds, 512)
FAULT(shared_read_out_of_bounds, 512)
FAULT(shared_address_out_of_bounds, 512)
FAULT(global_read_out_of_bounds, 0)
FAULT(global_write_out_of_bounds, 0)
FAULT(global_copy_out_of_bounds, 512)
FAULT(missing_barrier, 512)
FAULT(missing_warp_sync, 512)
FAULT(missing_copy_wait, 512)
FAULT(missing_barrier_wait, 520)
FAULT(stage_refilled_early, 160)
TENSOR_FAULT(missing_tensor_wait)
TENSOR_FAULT(missing_mbarrier_fence)
TENSOR_FAULT(wrong_byte_count)
FAULT(misaligned_vector, 512)
FAULT(wrong_swizzle, 2048)
FAULT(divergent_shuffle, 0)
FAULT(divergent_mma, 0)
FAULT(divergent_barrier, 512)
FAULT(deadlock, 512)
PRODUCT_FAULT(product_missing_wait, kNoWait)
PRODUCT_FAULT(product_missing_fence, kNoFence)
PRODUCT_FAULT(product_missing_proxy_fence, kNoProxyFence)
PRODUCT_FAULT(product_operand_overwritten, kOverwritten)
PRODUCT_FAULT(product_accumulator_touched, kAccumulatorTouched)
PRODUCT_FAULT(product_wrong_swizzle, kSwizzle)

const char* missing_release_(int64_t planted, const float* in, float* out, float* scratch, int* arrived) {
  return emu::guarded([&] {
    emu::launch(4, 32, 4, planted ? missing_release<true> : missing_release<false>, in, out, scratch, arrived);
  });
}
}
