// What the emulated kernels of tree attention are called with: tensors, and the numbers of
// tests/tree_attention/emulated.py.
#pragma once

#include <cuda_emulator.h>

#include <stdexcept>

#include "tree_attention/cuda_common.cuh"

struct CudaCall {
  const void *q, *k_cache, *v_cache;
  const int32_t* plan;
  float* workspace;
  int32_t* counters;
  const float *k_scales, *v_scales;
  void* out;
  float* lse;
  const int64_t* sizes;  // dtype (0: float16, 1: bfloat16), fp8, head_dim, page_size, KV heads, group, pages,
                         // slots, blocks, strides of q, out and the caches
  double sm_scale, logits_soft_cap, v_scale;

  int64_t blocks() const { return sizes[8]; }

  ttc::TreeAttentionCudaParams params() const {
    ttc::TreeAttentionCudaParams p{};
    p.dtype = sizes[0] ? ttc::Dtype::kBFloat16 : ttc::Dtype::kFloat16;
    p.fp8_cache = sizes[1] != 0;
    p.head_dim = int32_t(sizes[2]);
    p.set_page_size(sizes[3]);
    p.num_kv_heads = int32_t(sizes[4]);
    p.group = int32_t(sizes[5]);
    p.num_pages = sizes[6];
    p.q = q, p.k_cache = k_cache, p.v_cache = v_cache, p.out = out, p.lse = lse;
    p.q_token_stride = sizes[9], p.q_head_stride = sizes[10];
    p.out_token_stride = sizes[11], p.out_head_stride = sizes[12];
    p.page_stride = sizes[13], p.token_stride = sizes[14], p.head_stride = sizes[15];
    p.sm_scale = float(sm_scale), p.logits_soft_cap = float(logits_soft_cap), p.v_scale = float(v_scale);
    p.k_scales = k_scales, p.v_scales = v_scales;
    p.plan = plan;
    p.partial_out = workspace;
    p.partial_ml = workspace + sizes[7] * p.group * p.num_kv_heads * p.head_dim;
    p.counters = counters;
    return p;
  }
};

// Calls launch.operator()<T, fp8, head_dim>() for what the parameters ask for. Builds with checks take
// several times longer to compile; unless TTC_EMULATOR_ALL is set they have bfloat16 with head_dim 64 and
// 96, and one instance of float16.
template <class T, bool kFp8, class Launch>
void by_head_dim(int head_dim, const Launch& launch) {
  switch (head_dim) {
    case 64: return launch.template operator()<T, kFp8, 64>();
    case 96: return launch.template operator()<T, kFp8, 96>();
#if !defined(EMU_FEW_INSTANCES)
    case 128: return launch.template operator()<T, kFp8, 128>();
    case 256: return launch.template operator()<T, kFp8, 256>();
#endif
  }
  throw std::runtime_error("this build has no instance for head_dim " + std::to_string(head_dim));
}

template <class Launch>
void dispatch(const ttc::TreeAttentionCudaParams& params, const Launch& launch) {
  if (params.dtype == ttc::Dtype::kBFloat16)
    return params.fp8_cache ? by_head_dim<__nv_bfloat16, true>(params.head_dim, launch)
                            : by_head_dim<__nv_bfloat16, false>(params.head_dim, launch);
#if defined(EMU_FEW_INSTANCES)
  if (!params.fp8_cache && params.head_dim == 64) return launch.template operator()<__half, false, 64>();
  throw std::runtime_error("this build has float16 with head_dim 64 alone");
#else
  params.fp8_cache ? by_head_dim<__half, true>(params.head_dim, launch)
                   : by_head_dim<__half, false>(params.head_dim, launch);
#endif
}
