// Kernels of one instruction each, for test_instructions.py: operands in, registers out.
#include <cuda_emulator.h>

#include "common/ptx.cuh"

using namespace ttc::ptx;

namespace {

// registers: [32][N]; rows: [32] byte offsets that the lanes give; image: what shared memory holds.
template <int N, bool Transposed>
__global__ void load_matrices(const uint16_t* image, int elements, const int* rows, uint32_t* registers) {
  char* smem = ttc::dynamic_smem();
  for (int i = threadIdx.x; i < elements; i += 32) reinterpret_cast<uint16_t*>(smem)[i] = image[i];
  __syncwarp();
  uint32_t r[N];
  if constexpr (Transposed)
    ldmatrix_trans(r, smem + rows[threadIdx.x]);
  else
    ldmatrix(r, smem + rows[threadIdx.x]);
  for (int i = 0; i < N; ++i) registers[threadIdx.x * N + i] = r[i];
}

template <int N, bool Transposed>
__global__ void store_matrices(uint16_t* image, int elements, const int* rows, const uint32_t* registers) {
  char* smem = ttc::dynamic_smem();
  uint32_t r[N];
  for (int i = 0; i < N; ++i) r[i] = registers[threadIdx.x * N + i];
  if constexpr (Transposed)
    stmatrix_trans(smem + rows[threadIdx.x], r);
  else
    stmatrix(smem + rows[threadIdx.x], r);
  __syncwarp();
  for (int i = threadIdx.x; i < elements; i += 32) image[i] = reinterpret_cast<uint16_t*>(smem)[i];
}

// a: [32][4], b: [32][2], d: [32][4] registers.
template <class T>
__global__ void multiply(const uint32_t* a, const uint32_t* b, float* d) {
  const int lane = threadIdx.x;
  uint32_t ra[4], rb[2];
  float rd[4];
  for (int i = 0; i < 4; ++i) ra[i] = a[lane * 4 + i], rd[i] = d[lane * 4 + i];
  for (int i = 0; i < 2; ++i) rb[i] = b[lane * 2 + i];
  mma_m16n8k16<T>(rd, ra, rb);
  for (int i = 0; i < 4; ++i) d[lane * 4 + i] = rd[i];
}

// One warp exchanges values in every way; out: [kinds][32].
__global__ void exchange(const int* in, int* out, int argument, int width) {
  const int lane = threadIdx.x, v = in[lane];
  int row = 0;
  const auto put = [&](int value) { out[row++ * 32 + lane] = value; };
  put(__shfl_sync(~0u, v, argument, width));
  put(__shfl_xor_sync(~0u, v, argument, width));
  put(__shfl_up_sync(~0u, v, argument, width));
  put(__shfl_down_sync(~0u, v, argument, width));
  put(static_cast<int>(__ballot_sync(~0u, v & 1)));
  put(__any_sync(~0u, v > 100));
  put(__all_sync(~0u, v >= 0));
  put(static_cast<int>(__match_any_sync(~0u, v)));
  put(__reduce_add_sync(~0u, v));
  put(__reduce_max_sync(~0u, v));
  put(__reduce_min_sync(~0u, v));
  put(static_cast<int>(__reduce_xor_sync(~0u, static_cast<unsigned>(v))));
  // Halves of the warp on their own.
  const unsigned half = lane < 16 ? 0xffffu : 0xffff0000u;
  put(lane < 16 ? __reduce_add_sync(half, v) : __reduce_add_sync(half, 2 * v));
}

// Threads add to counters; the last block to finish adds up what the others left.
__global__ void last_arriver(int* partials, int* arrived, int* total, int* last_block) {
  int* shared = reinterpret_cast<int*>(ttc::dynamic_smem());
  if (threadIdx.x == 0) shared[0] = 0;
  __syncthreads();
  atomicAdd(&shared[0], static_cast<int>(threadIdx.x));
  __syncthreads();
  if (threadIdx.x == 0) {
    partials[blockIdx.x] = shared[0] + blockIdx.x;
    shared[1] = atomic_add_acq_rel(arrived, 1);
  }
  __syncthreads();
  if (shared[1] == static_cast<int>(gridDim.x) - 1 && threadIdx.x == 0) {
    for (unsigned i = 0; i < gridDim.x; ++i) *total += partials[i];
    *last_block = blockIdx.x;
    *arrived = 0;
  }
}

__global__ void convert(const float* in, int n, uint32_t* halves, uint32_t* bf16s) {
  for (int i = threadIdx.x; i < n / 2; i += blockDim.x) {
    halves[i] = pack2<__half>(in[2 * i], in[2 * i + 1]);
    bf16s[i] = pack2<__nv_bfloat16>(in[2 * i], in[2 * i + 1]);
  }
}

__global__ void convert_fp8(const uint16_t* in, int n, uint32_t* halves, uint32_t* bf16s) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    halves[i] = fp8x2_e4m3_to<__half>(in[i]);
    bf16s[i] = fp8x2_e4m3_to<__nv_bfloat16>(in[i]);
  }
}

}  // namespace

extern "C" {

const char* run_load_matrices(int64_t n, int64_t transposed, const uint16_t* image, int64_t elements, const int* rows,
                              uint32_t* registers) {
  return emu::guarded([&] {
    const auto kernel = n == 1   ? (transposed ? load_matrices<1, true> : load_matrices<1, false>)
                        : n == 2 ? (transposed ? load_matrices<2, true> : load_matrices<2, false>)
                                 : (transposed ? load_matrices<4, true> : load_matrices<4, false>);
    emu::launch(1, 32, elements * 2, kernel, image, static_cast<int>(elements), rows, registers);
  });
}

const char* run_store_matrices(int64_t n, int64_t transposed, uint16_t* image, int64_t elements, const int* rows,
                               const uint32_t* registers) {
  return emu::guarded([&] {
    const auto kernel = n == 1   ? (transposed ? store_matrices<1, true> : store_matrices<1, false>)
                        : n == 2 ? (transposed ? store_matrices<2, true> : store_matrices<2, false>)
                                 : (transposed ? store_matrices<4, true> : store_matrices<4, false>);
    emu::launch(1, 32, elements * 2, kernel, image, static_cast<int>(elements), rows, registers);
  });
}

const char* run_multiply(int64_t bf16, const uint32_t* a, const uint32_t* b, float* d) {
  return emu::guarded([&] { emu::launch(1, 32, 0, bf16 ? multiply<__nv_bfloat16> : multiply<__half>, a, b, d); });
}

const char* run_exchange(const int* in, int* out, int64_t argument, int64_t width) {
  return emu::guarded(
      [&] { emu::launch(1, 32, 0, exchange, in, out, static_cast<int>(argument), static_cast<int>(width)); });
}

const char* run_last_arriver(int64_t blocks, int64_t threads, int* partials, int* arrived, int* total, int* last) {
  return emu::guarded([&] {
    emu::launch(static_cast<unsigned>(blocks), static_cast<unsigned>(threads), 8, last_arriver, partials, arrived,
                total, last);
  });
}

const char* run_convert(const float* in, int64_t n, uint32_t* halves, uint32_t* bf16s) {
  return emu::guarded([&] { emu::launch(1, 64, 0, convert, in, static_cast<int>(n), halves, bf16s); });
}

const char* run_convert_fp8(const uint16_t* in, int64_t n, uint32_t* halves, uint32_t* bf16s) {
  return emu::guarded([&] { emu::launch(1, 64, 0, convert_fp8, in, static_cast<int>(n), halves, bf16s); });
}
}
