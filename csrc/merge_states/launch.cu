#include "merge_states/launch.h"

#include "common/cuda_launch.cuh"
#include "merge_states/merge_states.cuh"

namespace ttc {

namespace {

template <class T>
cudaError_t launch(const MergeStatesParams& p, cudaStream_t stream) {
  constexpr int kPiece = 16 / sizeof(T);
  const auto aligned = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  const bool whole = p.head_dim % kPiece == 0 && aligned(p.outs) && aligned(p.out);
  const int64_t threads = p.num_rows * (whole ? p.head_dim / kPiece : p.head_dim);
  const dim3 grid(static_cast<unsigned>((threads + kMergeThreads - 1) / kMergeThreads));
  return launch_kernel(whole ? merge_states_kernel<T, kPiece> : merge_states_kernel<T, 1>, grid, dim3(kMergeThreads),
                       0, stream, p);
}

}  // namespace

cudaError_t merge_states_cuda(const MergeStatesParams& p, cudaStream_t stream) {
  switch (p.dtype) {
    case Dtype::kFloat32: return launch<float>(p, stream);
    case Dtype::kFloat16: return launch<__half>(p, stream);
    case Dtype::kBFloat16: return launch<__nv_bfloat16>(p, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace ttc
