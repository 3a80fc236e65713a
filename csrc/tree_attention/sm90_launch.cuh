// Host side of the Hopper kernel: tensor maps and the launch.
#pragma once

#include "tree_attention/sm90_kernel.cuh"

namespace ttc::sm90 {

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

// Keys that one tensor load fetches: a run inside a page. 0: pages are too short or odd for tensor loads.
inline int box_tokens(int page_size) {
  if (page_size % kKeys == 0) return kKeys;
  return page_size == 8 || page_size == 16 || page_size == 32 ? page_size : 0;
}

// Maps of caches of 16-bit numbers, or none (box_tokens = 0) if pages, alignment or the driver forbid it: the
// kernel then gathers.
template <class T, int D>
TensorMaps make_maps(const TreeAttentionCudaParams& p, EncodeTiled encode) {
  TensorMaps maps{};
  const int tokens = box_tokens(p.page_size);
  if (tokens == 0 || encode == nullptr || p.num_pages == 0) return maps;
  const auto encoded = [&](CUtensorMap* map, const void* cache) {
    const cuuint64_t sizes[] = {D, cuuint64_t(p.num_kv_heads), cuuint64_t(p.page_size), cuuint64_t(p.num_pages)};
    const cuuint64_t strides[] = {2 * cuuint64_t(p.head_stride), 2 * cuuint64_t(p.token_stride),
                                  2 * cuuint64_t(p.page_stride)};
    const cuuint32_t box[] = {Tile<D>::kBlock, 1, cuuint32_t(tokens), 1}, steps[] = {1, 1, 1, 1};
    return encode(map, std::is_same_v<T, __half> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                  4, const_cast<void*>(cache), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                  Tile<D>::kBlock == 64 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B,
                  CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
  };
  if (encoded(&maps.k, p.k_cache) && encoded(&maps.v, p.v_cache)) maps.box_tokens = tokens;
  return maps;
}

// Every kernel of q's dtype. A file each, so that they compile in parallel.
template <class T>
cudaError_t launch(const TreeAttentionCudaParams& p, EncodeTiled encode, int multiprocessors, cudaStream_t stream);

}  // namespace ttc::sm90
