// What the op_cuda.cpp files share: the device of a launch, its stream, and its errors.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <sstream>
#include <stdexcept>
#include <string>

#include "common/op_check.h"

namespace ttc {

// Makes a tensor's GPU the current one for as long as this lives.
class CudaLaunch {
 public:
  // Throws if the GPU cannot run the kernels; `otherwise` says what would.
  CudaLaunch(const char* op, const Tensor& tensor, const char* otherwise)
      : op_(op), otherwise_(otherwise), device_(tensor.get_device_index()), guard_(device_) {
    check(cudaDeviceGetAttribute(&major_, cudaDevAttrComputeCapabilityMajor, device_));
    check(cudaDeviceGetAttribute(&minor_, cudaDevAttrComputeCapabilityMinor, device_));
    if (major_ < 8) {
      fail("the CUDA kernels need compute capability 8.0 or newer, cuda:", device_, " has ", major_, ".", minor_);
    }
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream_));
  }

  cudaStream_t stream() const { return static_cast<cudaStream_t>(stream_); }
  int capability() const { return 10 * major_ + minor_; }  // 80, 90, ...

  int multiprocessors() const {
    int count = 0;
    check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device_));
    return count;
  }

  // Throws, with the cause and what to do, unless a launch or a call has succeeded.
  void check(cudaError_t status) const {
    if (status == cudaSuccess) return;
    if (status == cudaErrorInsufficientDriver) {
      int driver = 0;
      cudaDriverGetVersion(&driver);
      fail("the CUDA kernels were built for CUDA ", CUDART_VERSION / 1000, ".", CUDART_VERSION % 1000 / 10,
           ", the driver of cuda:", device_, " serves CUDA ", driver / 1000, ".", driver % 1000 / 10);
    }
    fail("the launch on cuda:", device_, " (sm_", capability(), ") failed: ", cudaGetErrorName(status), ", ",
         cudaGetErrorString(status));
  }

 private:
  template <typename... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    std::ostringstream message;
    message << op_ << ": ";
    (message << ... << parts);
    message << "; " << otherwise_;
    throw std::runtime_error(message.str());
  }

  const char* op_;
  const char* otherwise_;
  int32_t device_;
  torch::stable::accelerator::DeviceGuard guard_;
  int major_ = 0, minor_ = 0;
  void* stream_ = nullptr;
};

// For ops without a `backend` argument.
inline constexpr const char* kWithoutCudaKernels =
    "TTC_CUDA=0 in the environment runs the op in Triton or torch instead";

}  // namespace ttc
