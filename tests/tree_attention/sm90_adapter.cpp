// The sm_90a kernel of tree attention in the emulator.
#include "cuda_adapter.h"
#include "tree_attention/sm90_launch.cuh"

namespace {

template <class T, class KV, int D>
void launch(const CudaCall& call, const ttc::TreeAttentionCudaParams& params) {
  ttc::sm90::TensorMaps maps{};
  if constexpr (sizeof(KV) == 2) maps = ttc::sm90::make_maps<T, D>(params, cuTensorMapEncodeTiled);
  emu::launch(dim3(unsigned(call.blocks())), dim3(ttc::sm90::kThreads), sizeof(ttc::sm90::Shared<KV, D>),
              ttc::sm90::tree_attention_sm90<T, KV, D>, params, maps);
}

template <class T, class KV>
void by_head_dim(const CudaCall& call, const ttc::TreeAttentionCudaParams& params) {
  switch (params.head_dim) {
    case 64: return launch<T, KV, 64>(call, params);
    case 96: return launch<T, KV, 96>(call, params);
    case 128: return launch<T, KV, 128>(call, params);
    case 256: return launch<T, KV, 256>(call, params);
  }
}

}  // namespace

extern "C" const char* tree_attention_sm90(const void* q, const void* k_cache, const void* v_cache, const int32_t* plan,
                                           float* workspace, int32_t* counters, const float* k_scales,
                                           const float* v_scales, void* out, float* lse, const int64_t* sizes,
                                           double sm_scale, double logits_soft_cap, double v_scale) {
  return emu::guarded([&] {
    const CudaCall call{q,        k_cache, v_cache, plan,  workspace, counters,        k_scales,
                        v_scales, out,     lse,     sizes, sm_scale,  logits_soft_cap, v_scale};
    const auto params = call.params();
    if (params.dtype == ttc::Dtype::kFloat16)
      params.fp8_cache ? by_head_dim<__half, uint8_t>(call, params) : by_head_dim<__half, __half>(call, params);
    else
      params.fp8_cache ? by_head_dim<__nv_bfloat16, uint8_t>(call, params)
                       : by_head_dim<__nv_bfloat16, __nv_bfloat16>(call, params);
  });
}
