// What a tree attention kernel is told: plain pointers and strides, no torch.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/parallel.h"
#include "common/plan_layout.h"

namespace ttc {

struct TreeAttentionParams {
  Dtype dtype;
  const void *q, *k_cache, *v_cache;
  void* out;   // [T, Hq, D]
  float* lse;  // [T, Hq]
  // All strides count elements; the head dimension is contiguous everywhere.
  int64_t q_token_stride, q_head_stride;
  int64_t out_token_stride, out_head_stride;
  int64_t k_page_stride, k_token_stride, k_head_stride;
  int64_t v_page_stride, v_token_stride, v_head_stride;
  float sm_scale;
  float logits_soft_cap;  // 0: none
  const int32_t* plan;    // common/plan_layout.h
};

// Runs the plan on the CPU with the best instruction set the machine has. `num_threads` workers are
// asked for through `parallel_for`.
void tree_attention_cpu(const TreeAttentionParams& params, int64_t num_threads, ParallelFor parallel_for);

// Name of the instruction set tree_attention_cpu uses for a dtype: "avx512_bf16", "avx512", "avx2" or
// "portable". The environment variable TTC_CPU_ISA may ask for a lesser one (for tests).
const char* tree_attention_cpu_isa(Dtype dtype);

}  // namespace ttc
