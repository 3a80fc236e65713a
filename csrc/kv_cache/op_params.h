// What the ops of this folder share on a CPU and on a GPU: the checks that read no device memory, and
// the parameters.
#pragma once

#include <optional>
#include <vector>

#include "common/op_check.h"
#include "kv_cache/kv_cache.h"

namespace ttc {

inline void require_caches(const char* op, const Tensor& k_cache, const Tensor& v_cache) {
  const auto check = [&](const char* name, const Tensor& cache) {
    if (cache.scalar_type() != ScalarType::Float8_e4m3fn) float_dtype(op, name, cache);
    require(same_device(cache, k_cache) && cache.dim() == 4 && cache.is_contiguous(), op, ": ", name,
            " must be a contiguous [num_pages, page_size, num_kv_heads, head_dim] tensor on ",
            device_name(k_cache), ", got ", describe(cache));
  };
  check("k_cache", k_cache);
  check("v_cache", v_cache);
  bool same = k_cache.scalar_type() == v_cache.scalar_type();
  for (int64_t d = 0; d < 4; ++d) same = same && k_cache.size(d) == v_cache.size(d);
  require(same, op, ": k_cache and v_cache must agree in shape and dtype, got ", describe(k_cache),
          " and ", describe(v_cache));
}

inline NewTokens new_tokens(const char* name, const Tensor& tensor, const Tensor& cache, ScalarType dtype) {
  require(same_device(tensor, cache) && tensor.dim() == 3 && tensor.size(1) == cache.size(2) &&
              tensor.size(2) == cache.size(3) && tensor.scalar_type() == dtype &&
              (tensor.stride(2) == 1 || tensor.size(2) <= 1),
          "write_kv: ", name, " must be [T, ", cache.size(2), ", ", cache.size(3), "] ",
          torch::headeronly::toString(dtype), " with a dense last dimension on ", device_name(cache), ", got ",
          describe(tensor));
  const int64_t item = dtype_bytes(float_dtype("write_kv", name, tensor));
  return {static_cast<const char*>(tensor.const_data_ptr()), tensor.stride(0) * item, tensor.stride(1) * item};
}

inline KvScale kv_scale(const char* name, double number, const std::optional<Tensor>& per_head, const Tensor& cache) {
  if (!per_head) return {static_cast<float>(number), nullptr};
  require_tensor("write_kv", name, *per_head, ScalarType::Float, {cache.size(2)}, &cache);
  return {1.0f, static_cast<const float*>(per_head->const_data_ptr())};
}

inline Rope rope_of(const std::optional<Tensor>& positions, const std::optional<Tensor>& cos_sin, bool interleaved,
                    const Tensor& k, const Tensor& cache) {
  require(positions.has_value() == cos_sin.has_value(), "write_kv: positions and cos_sin go together");
  if (!positions) return {nullptr, nullptr, Dtype::kFloat32, 0, interleaved};
  require_tensor("write_kv", "positions", *positions, ScalarType::Long, {k.size(0)}, &cache);
  const ScalarType dtype = cos_sin->scalar_type();
  require(same_device(*cos_sin, cache) && (dtype == ScalarType::Float || dtype == k.scalar_type()) &&
              cos_sin->dim() == 2 && cos_sin->is_contiguous() && cos_sin->size(1) % 2 == 0 &&
              cos_sin->size(1) > 0 && cos_sin->size(1) <= k.size(2),
          "write_kv: cos_sin must be contiguous [max_position, R] with R even and at most ", k.size(2),
          ", float32 or as k, on ", device_name(cache), ", got ", describe(*cos_sin));
  return {static_cast<const int64_t*>(positions->const_data_ptr()), cos_sin->const_data_ptr(),
          float_dtype("write_kv", "cos_sin", *cos_sin), cos_sin->size(1), interleaved};
}

inline WriteKvParams write_kv_params(const Tensor& k, const Tensor& v, Tensor& k_cache, Tensor& v_cache,
                                     const Tensor& slots, double k_scale, double v_scale,
                                     const std::optional<Tensor>& k_scales, const std::optional<Tensor>& v_scales,
                                     const std::optional<Tensor>& positions, const std::optional<Tensor>& cos_sin,
                                     bool interleaved) {
  require_caches("write_kv", k_cache, v_cache);
  WriteKvParams p;
  p.to_e4m3 = k_cache.scalar_type() == ScalarType::Float8_e4m3fn;
  const ScalarType dtype = p.to_e4m3 ? k.scalar_type() : k_cache.scalar_type();
  p.k = new_tokens("k", k, k_cache, dtype);
  p.v = new_tokens("v", v, v_cache, dtype);
  p.dtype = float_dtype("write_kv", "k", k);
  p.num_tokens = k.size(0);
  require(v.size(0) == p.num_tokens, "write_kv: k and v must have as many tokens, got ", p.num_tokens,
          " and ", v.size(0));
  require_tensor("write_kv", "slots", slots, ScalarType::Int, {p.num_tokens}, &k_cache);
  p.slots = static_cast<const int32_t*>(slots.const_data_ptr());
  p.k_scale = kv_scale("k_scales", k_scale, k_scales, k_cache);
  p.v_scale = kv_scale("v_scales", v_scale, v_scales, k_cache);
  p.rope = rope_of(positions, cos_sin, interleaved, k, k_cache);
  p.k_cache = static_cast<char*>(k_cache.mutable_data_ptr());
  p.v_cache = static_cast<char*>(v_cache.mutable_data_ptr());
  p.num_kv_heads = k_cache.size(2);
  p.head_dim = k_cache.size(3);
  return p;
}

// The caches of all layers: as many of K as of V, all alike.
inline std::vector<char*> all_caches(const char* op, const std::vector<Tensor>& k_caches,
                                     const std::vector<Tensor>& v_caches) {
  require(k_caches.size() == v_caches.size(), op, ": k_caches and v_caches must be lists of one length, got ",
          k_caches.size(), " and ", v_caches.size());
  std::vector<char*> caches;
  for (size_t i = 0; i < k_caches.size(); ++i) {
    require_caches(op, k_caches[i], v_caches[i]);
    bool same = k_caches[i].scalar_type() == k_caches[0].scalar_type() && same_device(k_caches[i], k_caches[0]);
    for (int64_t d = 0; d < 4; ++d) same = same && k_caches[i].size(d) == k_caches[0].size(d);
    require(same, op, ": all caches must agree in shape, dtype and device, but k_caches[", i, "] is ",
            describe(k_caches[i]), " and k_caches[0] ", describe(k_caches[0]));
    caches.push_back(static_cast<char*>(k_caches[i].mutable_data_ptr()));
    caches.push_back(static_cast<char*>(v_caches[i].mutable_data_ptr()));
  }
  return caches;
}

inline int64_t token_bytes(const Tensor& cache) {
  return cache.size(2) * cache.size(3) * static_cast<int64_t>(cache.element_size());
}

inline CopyPagesParams copy_pages_params(const std::vector<Tensor>& k_caches, const std::vector<Tensor>& v_caches,
                                         const Tensor& copies) {
  CopyPagesParams p{};
  p.caches = all_caches("copy_pages", k_caches, v_caches);
  const Tensor& first = k_caches.empty() ? copies : k_caches[0];
  require_tensor("copy_pages", "copies", copies, ScalarType::Int, {kAnySize, 3}, &first);
  p.copies = static_cast<const int32_t*>(copies.const_data_ptr());
  p.num_copies = copies.size(0);
  if (k_caches.empty()) return p;
  p.token_bytes = token_bytes(first);
  p.page_size = first.size(1);
  return p;
}

inline CommitKvParams commit_kv_params(const std::vector<Tensor>& k_caches, const std::vector<Tensor>& v_caches,
                                       const Tensor& src_slots, const Tensor& dst_slots) {
  CommitKvParams p{};
  p.caches = all_caches("commit_kv", k_caches, v_caches);
  const Tensor& first = k_caches.empty() ? src_slots : k_caches[0];
  require_tensor("commit_kv", "src_slots", src_slots, ScalarType::Int, {kAnySize}, &first);
  p.num_tokens = src_slots.size(0);
  require_tensor("commit_kv", "dst_slots", dst_slots, ScalarType::Int, {p.num_tokens}, &first);
  p.src_slots = static_cast<const int32_t*>(src_slots.const_data_ptr());
  p.dst_slots = static_cast<const int32_t*>(dst_slots.const_data_ptr());
  if (!k_caches.empty()) p.token_bytes = token_bytes(first);
  return p;
}

}  // namespace ttc
