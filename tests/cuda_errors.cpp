// The texts of common/cuda_errors.h for test_cuda_library.py, with the errors that this machine has.
#include "common/cuda_errors.h"

namespace {

std::string text;

const char* keep(std::string made) {
  text = std::move(made);
  return text.c_str();
}

}  // namespace

extern "C" {

const char* too_old(int capability) { return keep(ttc::CudaCall{"write_kv", "do this", 1, capability}.too_old()); }

const char* failure(int status, int driver) {
  return keep(ttc::CudaCall{"write_kv", "do this", 1, 90}.failure(static_cast<cudaError_t>(status), driver));
}

// What asking for a device's capability really returns here, 0 if there is a device.
int status_here(int* driver) {
  int major = 0;
  cudaDriverGetVersion(driver);
  return cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
}
}
