// Chooses the sm_80 kernel for the types and head_dim, and the size of its grid.
#include <map>
#include <mutex>
#include <utility>

#include "tree_attention/launch.h"

namespace ttc {
namespace {

Sm80Kernel choose(const TreeAttentionCudaParams& p) {
  if (p.dtype == Dtype::kFloat16) return (p.fp8_cache ? sm80_kernel_fp16_fp8 : sm80_kernel_fp16)(p.head_dim);
  if (p.dtype == Dtype::kBFloat16) return (p.fp8_cache ? sm80_kernel_bf16_fp8 : sm80_kernel_bf16)(p.head_dim);
  return {};
}

// As many blocks as the current device holds at a time; asked once for each device and kernel.
cudaError_t grid_of(const Sm80Kernel& kernel, int& blocks) {
  static std::mutex mutex;
  static std::map<std::pair<int, const void*>, int> known;
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  const std::lock_guard lock(mutex);
  if (const auto at = known.find({device, kernel.function}); at != known.end()) {
    blocks = at->second;
    return cudaSuccess;
  }
  int count = 0, per_multiprocessor = 0;
  cudaError_t error = cudaFuncSetAttribute(kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           kernel.shared_bytes);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess)
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, kernel.function, kernel.threads,
                                                          size_t(kernel.shared_bytes));
  if (error != cudaSuccess) return error;
  blocks = count * per_multiprocessor;
  if (blocks == 0) return cudaErrorLaunchOutOfResources;
  known[{device, kernel.function}] = blocks;
  return cudaSuccess;
}

}  // namespace

cudaError_t tree_attention_sm80(const TreeAttentionCudaParams& params, cudaStream_t stream) {
  const Sm80Kernel kernel = choose(params);
  if (!kernel.function) return cudaErrorInvalidDeviceFunction;
  int blocks = 0;
  if (const cudaError_t error = grid_of(kernel, blocks); error != cudaSuccess) return error;
  void* arguments[] = {const_cast<TreeAttentionCudaParams*>(&params)};
  const cudaError_t error = cudaLaunchKernel(kernel.function, dim3(unsigned(blocks)), dim3(unsigned(kernel.threads)),
                                             arguments, size_t(kernel.shared_bytes), stream);
  return error != cudaSuccess ? error : cudaGetLastError();
}

}  // namespace ttc
