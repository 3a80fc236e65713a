#include "tree_attention/launch.h"
#include "tree_attention/sm90_launch.cuh"

namespace ttc {
namespace {

// The driver's encoder of tensor maps; nullptr where it has none. The library is not linked to the driver.
sm90::EncodeTiled find_encoder() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result;
  const cudaError_t status = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000,
                                                              cudaEnableDefault, &result);
  return reinterpret_cast<sm90::EncodeTiled>(
      status == cudaSuccess && result == cudaDriverEntryPointSuccess ? found : nullptr);
}

}  // namespace

cudaError_t tree_attention_sm90(const TreeAttentionCudaParams& p, cudaStream_t stream) {
  int device = 0, multiprocessors = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess)
    status = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (status != cudaSuccess) return status;
  static const sm90::EncodeTiled encode = find_encoder();
  return p.dtype == Dtype::kBFloat16 ? sm90::launch<__nv_bfloat16>(p, encode, multiprocessors, stream)
                                     : sm90::launch<__half>(p, encode, multiprocessors, stream);
}

}  // namespace ttc
