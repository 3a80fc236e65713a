// What the op_cuda.cpp files share: the device of a launch, its stream, and its errors.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <stdexcept>

#include "common/cuda_errors.h"
#include "common/op_check.h"

namespace ttc {

// Makes a tensor's GPU the current one for as long as this lives.
class CudaLaunch {
 public:
  // Throws if the GPU cannot run the kernels; `otherwise` says what would.
  CudaLaunch(const char* op, const Tensor& tensor, const char* otherwise)
      : call_{op, otherwise, tensor.get_device_index(), 0}, guard_(call_.device) {
    int major = 0, minor = 0;
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, call_.device));
    check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, call_.device));
    call_.capability = 10 * major + minor;
    if (major < 8) throw std::runtime_error(call_.too_old());
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(call_.device, &stream_));
  }

  cudaStream_t stream() const { return static_cast<cudaStream_t>(stream_); }
  int capability() const { return call_.capability; }  // 80, 90, ...

  int multiprocessors() const {
    int count = 0;
    check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, call_.device));
    return count;
  }

  // Throws, with the cause and what to do, unless a launch or a call has succeeded.
  void check(cudaError_t status) const {
    if (status == cudaSuccess) return;
    int driver = 0;
    cudaDriverGetVersion(&driver);
    throw std::runtime_error(call_.failure(status, driver));
  }

 private:
  CudaCall call_;
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_ = nullptr;
};

// For ops without a `backend` argument.
inline constexpr const char* kWithoutCudaKernels =
    "TTC_CUDA=0 in the environment runs the op in Triton or torch instead";

}  // namespace ttc
