// The sm_80 kernel of tree attention in the emulator.
#include "cuda_adapter.h"
#include "tree_attention/sm80.cuh"

extern "C" const char* tree_attention_sm80(const void* q, const void* k_cache, const void* v_cache, const int32_t* plan,
                                           float* workspace, int32_t* counters, const float* k_scales,
                                           const float* v_scales, void* out, float* lse, const int64_t* sizes,
                                           double sm_scale, double logits_soft_cap, double v_scale) {
  return emu::guarded([&] {
    const CudaCall call{q,        k_cache, v_cache, plan,  workspace, counters,        k_scales,
                        v_scales, out,     lse,     sizes, sm_scale,  logits_soft_cap, v_scale};
    const auto params = call.params();
    dispatch(params, [&]<class T, bool kFp8, int kHeadDim>() {
      emu::launch(dim3(unsigned(call.blocks())), dim3(ttc::kSm80Threads),
                  size_t(ttc::Sm80Layout<T, kFp8, kHeadDim>::kSharedBytes),
                  ttc::tree_attention_sm80_kernel<T, kFp8, kHeadDim>, params);
    });
  });
}
