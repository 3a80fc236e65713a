// The CUDA kernel of csrc/merge_states in the emulator, launched as on a GPU.
#include "cuda_emulator.h"
#include "merge_states/launch.cu"

extern "C" const char* merge_states(const void* outs, const float* lses, void* out, float* lse, int64_t dtype,
                                    int64_t num_states, int64_t num_rows, int64_t head_dim) {
  return emu::guarded([&] {
    const ttc::MergeStatesParams p{outs, lses, out, lse, static_cast<ttc::Dtype>(dtype), num_states, num_rows,
                                   head_dim};
    if (ttc::merge_states_cuda(p, nullptr) != cudaSuccess) throw std::runtime_error("the launch failed");
  });
}
