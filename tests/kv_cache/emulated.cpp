// The CUDA kernels of csrc/kv_cache in the emulator, launched as on a GPU.
#include "cuda_emulator.h"
#include "kv_cache/launch.cu"

namespace {

template <class Launch>
const char* run(const Launch& launch) {
  return emu::guarded([&] {
    if (launch() != cudaSuccess) throw std::runtime_error("the launch failed");
  });
}

}  // namespace

extern "C" {

const char* write_kv(const char* k, const char* v, char* k_cache, char* v_cache, const int32_t* slots,
                     int64_t num_tokens, int64_t heads, int64_t head_dim, int64_t dtype, int64_t to_e4m3,
                     int64_t k_token_stride, int64_t k_head_stride, int64_t v_token_stride, int64_t v_head_stride,
                     double k_scale, double v_scale, const float* k_scales, const float* v_scales,
                     const int64_t* positions, const void* cos_sin, int64_t cos_sin_dtype, int64_t rope_dim,
                     int64_t interleaved) {
  ttc::WriteKvParams p;
  p.k = {k, k_token_stride, k_head_stride};
  p.v = {v, v_token_stride, v_head_stride};
  p.k_cache = k_cache;
  p.v_cache = v_cache;
  p.slots = slots;
  p.num_tokens = num_tokens;
  p.num_kv_heads = heads;
  p.head_dim = head_dim;
  p.dtype = static_cast<ttc::Dtype>(dtype);
  p.to_e4m3 = to_e4m3 != 0;
  p.k_scale = {static_cast<float>(k_scale), k_scales};
  p.v_scale = {static_cast<float>(v_scale), v_scales};
  p.rope = {positions, cos_sin, static_cast<ttc::Dtype>(cos_sin_dtype), rope_dim, interleaved != 0};
  return run([&] { return ttc::write_kv_cuda(p, nullptr); });
}

const char* copy_pages(char* const* caches, int64_t num_caches, const int32_t* copies, int64_t num_copies,
                       int64_t page_size, int64_t token_bytes) {
  const ttc::CopyPagesParams p{{caches, caches + num_caches}, copies, num_copies, page_size, token_bytes};
  return run([&] { return ttc::copy_pages_cuda(p, nullptr); });
}

const char* commit_kv(char* const* caches, int64_t num_caches, const int32_t* src_slots, const int32_t* dst_slots,
                      int64_t num_tokens, int64_t token_bytes) {
  const ttc::CommitKvParams p{{caches, caches + num_caches}, src_slots, dst_slots, num_tokens, token_bytes};
  return run([&] { return ttc::commit_kv_cuda(p, nullptr); });
}
}
