// What the CUDA kernels of tree attention are told, by value with the launch: plain pointers, no torch.
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace ttc {

struct TreeAttentionCudaParams {
  Dtype dtype;     // of q and out: kFloat16 or kBFloat16
  bool fp8_cache;  // caches are float8_e4m3fn; else they have the dtype of q
  int32_t head_dim, page_size, num_kv_heads;
  int32_t group;  // query heads of a KV head
  int64_t num_pages;
  const void *q, *k_cache, *v_cache;
  void* out;   // [T, Hq, D]
  float* lse;  // [T, Hq]
  // All strides count elements; the head dimension is contiguous everywhere. Both caches have one set.
  int64_t q_token_stride, q_head_stride;
  int64_t out_token_stride, out_head_stride;
  int64_t page_stride, token_stride, head_stride;
  float sm_scale;                  // times the scale of the keys, if that is one number
  float logits_soft_cap;           // 0: none
  float v_scale;                   // 1 if values have a scale for each head
  const float *k_scales, *v_scales;  // [num_kv_heads] or nullptr
  uint32_t page_factor;  // key / page_size == key * page_factor >> page_shift, see set_page_size
  int32_t page_shift;
  const int32_t* plan;             // common/plan_layout.h, in device memory
  float* partial_out;              // [slots][Hq][D], sums of exponentials times values, not divided
  float* partial_ml;               // [slots][Hq][2]: the largest score in units of log2, the sum of exponentials
  int32_t* counters;               // see Counters; all zero between launches

  void set_page_size(int64_t size) {
    page_size = int32_t(size);
    page_shift = 31;
    while ((int64_t(1) << (page_shift - 31)) < size) ++page_shift;
    page_factor = uint32_t((uint64_t(1) << page_shift) / uint64_t(size) + 1);
  }
};

// The ints through which the blocks of one launch agree. Every launch leaves them zero, so that it needs
// no memset and a captured graph can be replayed.
struct Counters {
  int32_t ticket;    // units handed out beyond each block's first
  int32_t finished;  // blocks that have left
  // Then, [num_queries][num_kv_heads]: partials that have arrived.
};
inline constexpr int32_t kArrivals = sizeof(Counters) / sizeof(int32_t);

}  // namespace ttc
