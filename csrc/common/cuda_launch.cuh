// The one place that starts a kernel: on a GPU, or in the emulator of the tests.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#ifndef __CUDACC__
#include "cuda_emulator.h"
#endif

namespace ttc {

template <class... Params, class... Args>
cudaError_t launch_kernel(void (*kernel)(Params...), dim3 grid, dim3 block, size_t smem_bytes, cudaStream_t stream,
                          const Args&... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
#ifdef __CUDACC__
  kernel<<<grid, block, smem_bytes, stream>>>(args...);
  return cudaGetLastError();
#else
  (void)stream;
  emu::launch(grid, block, smem_bytes, kernel, args...);
  return cudaSuccess;
#endif
}

}  // namespace ttc
