// The kernels of one dtype of q: four head dimensions, caches of that dtype or of float8.
#pragma once

#include "tree_attention/sm90_launch.cuh"

namespace ttc::sm90 {

template <class T, class KV, int D>
cudaError_t launch_one(const TreeAttentionCudaParams& p, EncodeTiled encode, int multiprocessors,
                       cudaStream_t stream) {
  const auto kernel = tree_attention_sm90<T, KV, D>;
  constexpr int bytes = sizeof(Shared<KV, D>);
  static_assert(bytes <= 227 * 1024);
  const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (status != cudaSuccess) return status;
  const TensorMaps maps = sizeof(KV) == 1 ? TensorMaps{} : make_maps<T, D>(p, encode);
  kernel<<<multiprocessors, kThreads, bytes, stream>>>(p, maps);
  return cudaGetLastError();
}

template <class T, int D>
cudaError_t launch_head_dim(const TreeAttentionCudaParams& p, EncodeTiled encode, int multiprocessors,
                            cudaStream_t stream) {
  return p.fp8_cache ? launch_one<T, uint8_t, D>(p, encode, multiprocessors, stream)
                     : launch_one<T, T, D>(p, encode, multiprocessors, stream);
}

template <class T>
cudaError_t launch(const TreeAttentionCudaParams& p, EncodeTiled encode, int multiprocessors, cudaStream_t stream) {
  switch (p.head_dim) {
    case 64: return launch_head_dim<T, 64>(p, encode, multiprocessors, stream);
    case 96: return launch_head_dim<T, 96>(p, encode, multiprocessors, stream);
    case 128: return launch_head_dim<T, 128>(p, encode, multiprocessors, stream);
    case 256: return launch_head_dim<T, 256>(p, encode, multiprocessors, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace ttc::sm90
