// The sm_90a kernel of tree attention in the emulator.
#include "cuda_adapter.h"
#include "tree_attention/sm90_launch.cuh"

extern "C" const char* tree_attention_sm90(const void* q, const void* k_cache, const void* v_cache, const int32_t* plan,
                                           float* workspace, int32_t* counters, const float* k_scales,
                                           const float* v_scales, void* out, float* lse, const int64_t* sizes,
                                           double sm_scale, double logits_soft_cap, double v_scale) {
  return emu::guarded([&] {
    const CudaCall call{q,        k_cache, v_cache, plan,  workspace, counters,        k_scales,
                        v_scales, out,     lse,     sizes, sm_scale,  logits_soft_cap, v_scale};
    const auto params = call.params();
    dispatch(params, [&]<class T, bool kFp8, int kHeadDim>() {
      using KV = std::conditional_t<kFp8, uint8_t, T>;
      ttc::sm90::TensorMaps maps{};
      if constexpr (!kFp8) maps = ttc::sm90::make_maps<T, kHeadDim>(params, cuTensorMapEncodeTiled);
      emu::launch(dim3(unsigned(call.blocks())), dim3(ttc::sm90::kThreads), sizeof(ttc::sm90::Shared<KV, kHeadDim>),
                  ttc::sm90::tree_attention_sm90<T, KV, kHeadDim>, params, maps);
    });
  });
}
