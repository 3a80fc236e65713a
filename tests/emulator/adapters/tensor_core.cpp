// wgmma and tensor loads, for test_wgmma.py and test_tensor_load.py.
#include <cuda_emulator.h>

#include "common/ptx.cuh"

using namespace ttc::ptx;

namespace {

// How one operand lies in shared memory: descriptor fields, and bytes from one k16 step to the next
// (block_steps of them make a block, after which the address moves by block instead).
struct Layout {
  int64_t leading, stride, swizzle, step, block_steps, block;
};

__device__ uint64_t descriptor(const char* start, const Layout& layout, int step) {
  const int64_t steps = layout.block_steps;
  const char* p = start + step / steps * layout.block + step % steps * layout.step;
  return wgmma_descriptor(p, layout.leading, layout.stride, static_cast<Swizzle>(layout.swizzle));
}

// d[128][N / 2] registers; a and b: images of shared memory, b at a multiple of 1024.
template <class T, int N, bool TransA, bool TransB, bool RegistersA>
__global__ void __launch_bounds__(128) product(const char* a, int a_bytes, Layout a_layout, const char* b, int b_bytes,
                                               Layout b_layout, int steps, const uint32_t* a_registers, float* d) {
  char* smem = ttc::dynamic_smem();
  char* smem_b = smem + (a_bytes + 1023) / 1024 * 1024;
  for (int i = threadIdx.x; i < a_bytes; i += 128) smem[i] = a[i];
  for (int i = threadIdx.x; i < b_bytes; i += 128) smem_b[i] = b[i];
  fence_proxy_async();
  __syncthreads();
  float acc[N / 2];
  for (int i = 0; i < N / 2; ++i) acc[i] = d[threadIdx.x * (N / 2) + i];
  wgmma_fence();
  for (int step = 0; step < steps; ++step) {
    if constexpr (RegistersA) {
      uint32_t ra[4];
      for (int i = 0; i < 4; ++i) ra[i] = a_registers[(step * 128 + threadIdx.x) * 4 + i];
      wgmma_rs<T, N, TransB>(acc, ra, descriptor(smem_b, b_layout, step), step > 0);
    } else {
      wgmma_ss<T, N, TransA, TransB>(acc, descriptor(smem, a_layout, step), descriptor(smem_b, b_layout, step),
                                     step > 0);
    }
  }
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_pin(acc);
  for (int i = 0; i < N / 2; ++i) d[threadIdx.x * (N / 2) + i] = acc[i];
}

struct Call {
  const char* a;
  int64_t a_bytes;
  const Layout* a_layout;
  const char* b;
  int64_t b_bytes;
  const Layout* b_layout;
  int64_t steps;
  const uint32_t* a_registers;
  float* d;
};

template <class T, int N, bool TransA, bool TransB, bool RegistersA>
void run(const Call& c) {
  emu::launch(1, 128, (c.a_bytes + 1023) / 1024 * 1024 + c.b_bytes, product<T, N, TransA, TransB, RegistersA>, c.a,
              static_cast<int>(c.a_bytes), *c.a_layout, c.b, static_cast<int>(c.b_bytes), *c.b_layout,
              static_cast<int>(c.steps), c.a_registers, c.d);
}

template <class T, int N>
void run_major(const Call& c, int64_t trans_a, int64_t trans_b) {
  if (c.a_registers)
    trans_b ? run<T, N, false, true, true>(c) : run<T, N, false, false, true>(c);
  else if (trans_a)
    trans_b ? run<T, N, true, true, false>(c) : run<T, N, true, false, false>(c);
  else
    trans_b ? run<T, N, false, true, false>(c) : run<T, N, false, false, false>(c);
}

// Loads one box and copies shared memory out.
__global__ void load_box(const __grid_constant__ CUtensorMap map, int rank, const int* c, uint8_t* image, int bytes) {
  char* smem = ttc::dynamic_smem();
  auto* barrier = reinterpret_cast<uint64_t*>(smem + bytes);
  if (threadIdx.x == 0) {
    tma_prefetch_descriptor(&map);
    mbarrier_init(barrier, 1);
    fence_mbarrier_init();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    mbarrier_expect_tx(barrier, bytes);
    if (rank == 2) tma_load_2d(smem, &map, barrier, c[0], c[1]);
    if (rank == 3) tma_load_3d(smem, &map, barrier, c[0], c[1], c[2]);
    if (rank == 4) tma_load_4d(smem, &map, barrier, c[0], c[1], c[2], c[3]);
    if (rank == 5) tma_load_5d(smem, &map, barrier, c[0], c[1], c[2], c[3], c[4]);
  }
  mbarrier_wait(barrier, 0);
  for (int i = threadIdx.x; i < bytes; i += blockDim.x) image[i] = smem[i];
}

}  // namespace

extern "C" {

const char* run_product(int64_t bf16, int64_t n, int64_t trans_a, int64_t trans_b, const char* a, int64_t a_bytes,
                        const Layout* a_layout, const char* b, int64_t b_bytes, const Layout* b_layout, int64_t steps,
                        const uint32_t* a_registers, float* d) {
  return emu::guarded([&] {
    const Call c{a, a_bytes, a_layout, b, b_bytes, b_layout, steps, a_registers, d};
    if (!bf16)
      run_major<__half, 64>(c, trans_a, trans_b);
    else if (n == 8)
      run_major<__nv_bfloat16, 8>(c, trans_a, trans_b);
    else if (n == 32)
      run_major<__nv_bfloat16, 32>(c, trans_a, trans_b);
    else if (n == 64)
      run_major<__nv_bfloat16, 64>(c, trans_a, trans_b);
    else
      run_major<__nv_bfloat16, 256>(c, trans_a, trans_b);
  });
}

// sizes and box innermost first, strides in bytes from dimension 1 on. status: what the encoder said.
const char* run_load_box(void* base, int64_t type, int64_t rank, const uint64_t* sizes, const uint64_t* strides,
                         const uint32_t* box, int64_t swizzle, const int* coordinates, uint8_t* image, int64_t bytes,
                         int* status) {
  return emu::guarded([&] {
    CUtensorMap map;
    const uint32_t ones[5] = {1, 1, 1, 1, 1};
    *status = cuTensorMapEncodeTiled(&map, static_cast<CUtensorMapDataType>(type), static_cast<uint32_t>(rank), base,
                                     sizes, strides, box, ones, CU_TENSOR_MAP_INTERLEAVE_NONE,
                                     static_cast<CUtensorMapSwizzle>(swizzle), CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                                     CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (*status == CUDA_SUCCESS)
      emu::launch(1, 64, bytes + 8, load_box, map, static_cast<int>(rank), coordinates, image, static_cast<int>(bytes));
  });
}
}
