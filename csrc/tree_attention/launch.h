// Launches of the CUDA kernels of tree attention. Each returns what became of its launch.
#pragma once

#include <cuda_runtime_api.h>

#include "tree_attention/cuda_params.h"

namespace ttc {

// One compiled kernel for compute capability 8.0 and newer, and what a block of it takes.
struct Sm80Kernel {
  const void* function;
  int threads, shared_bytes;
};

// head_dim: 64, 96, 128 or 256; anything else has no kernel: function == nullptr. One file each (sm80_*.cu).
Sm80Kernel sm80_kernel_fp16(int head_dim);
Sm80Kernel sm80_kernel_bf16(int head_dim);
Sm80Kernel sm80_kernel_fp16_fp8(int head_dim);
Sm80Kernel sm80_kernel_bf16_fp8(int head_dim);

cudaError_t tree_attention_sm80(const TreeAttentionCudaParams& params, cudaStream_t stream);
cudaError_t tree_attention_sm90(const TreeAttentionCudaParams& params, cudaStream_t stream);  // Hopper alone

}  // namespace ttc
