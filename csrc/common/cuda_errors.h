// What is said when a GPU cannot run the kernels: the cause, and what would do. No torch.
#pragma once

#include <cuda_runtime_api.h>

#include <sstream>
#include <string>

namespace ttc {

// An op on a device; `otherwise` says what else would run it.
struct CudaCall {
  const char* op;
  const char* otherwise;
  int device;
  int capability;  // 80, 90, ...; 0 if not known

  std::string too_old() const {
    std::ostringstream text;
    text << op << ": the CUDA kernels need compute capability 8.0 or newer, cuda:" << device << " has "
         << capability / 10 << "." << capability % 10 << "; " << otherwise;
    return text.str();
  }

  // `driver`: the CUDA version that the driver serves, as cudaDriverGetVersion has it; 0: there is none.
  std::string failure(cudaError_t status, int driver) const {
    std::ostringstream text;
    text << op << ": ";
    if (status == cudaErrorInsufficientDriver && driver == 0) {
      text << "there is no CUDA driver on this machine";
    } else if (status == cudaErrorInsufficientDriver) {
      text << "the CUDA kernels were built for CUDA " << CUDART_VERSION / 1000 << "." << CUDART_VERSION % 1000 / 10
           << ", the driver here serves CUDA " << driver / 1000 << "." << driver % 1000 / 10;
    } else {
      text << "the launch on cuda:" << device;
      if (capability > 0) text << " (sm_" << capability << ")";
      text << " failed: " << cudaGetErrorName(status) << ", " << cudaGetErrorString(status);
    }
    text << "; " << otherwise;
    return text.str();
  }
};

}  // namespace ttc
