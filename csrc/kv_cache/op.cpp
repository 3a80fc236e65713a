// torch.ops.ttc_kernels.write_kv, copy_pages and commit_kv on the CPU.
#include <torch/csrc/stable/library.h>

#include <unordered_map>

#include "common/op_check.h"
#include "kv_cache/kv_cache.h"

namespace ttc {

namespace {

NewTokens new_tokens(const char* name, const Tensor& tensor, const Tensor& cache) {
  require(tensor.is_cpu() && tensor.dim() == 3 && tensor.size(1) == cache.size(2) &&
              tensor.size(2) == cache.size(3) && tensor.scalar_type() == cache.scalar_type() &&
              (tensor.stride(2) == 1 || tensor.size(2) <= 1),
          "write_kv: ", name, " must be [T, ", cache.size(2), ", ", cache.size(3),
          "] with a dense last dimension, dtype and device as the caches, got ", describe(tensor));
  const int64_t item = dtype_bytes(float_dtype("write_kv", name, tensor));
  return {static_cast<const char*>(tensor.const_data_ptr()), tensor.stride(0) * item,
          tensor.stride(1) * item};
}

void require_caches(const char* op, const Tensor& k_cache, const Tensor& v_cache) {
  const auto check = [op](const char* name, const Tensor& cache) {
    float_dtype(op, name, cache);
    require(cache.is_cpu() && cache.dim() == 4 && cache.is_contiguous(), op, ": ", name,
            " must be a contiguous [num_pages, page_size, num_kv_heads, head_dim] tensor on cpu, ",
            "got ", describe(cache));
  };
  check("k_cache", k_cache);
  check("v_cache", v_cache);
  bool same = k_cache.scalar_type() == v_cache.scalar_type();
  for (int64_t d = 0; d < 4; ++d) same = same && k_cache.size(d) == v_cache.size(d);
  require(same, op, ": k_cache and v_cache must agree in shape and dtype, got ", describe(k_cache),
          " and ", describe(v_cache));
}

void write_kv_op(const Tensor& k, const Tensor& v, Tensor k_cache, Tensor v_cache,
                 const Tensor& slots) {
  require_caches("write_kv", k_cache, v_cache);
  WriteKvParams p;
  p.k = new_tokens("k", k, k_cache);
  p.v = new_tokens("v", v, v_cache);
  p.num_tokens = k.size(0);
  require(v.size(0) == p.num_tokens, "write_kv: k and v must have as many tokens, got ",
          p.num_tokens, " and ", v.size(0));
  require_tensor("write_kv", "slots", slots, ScalarType::Int, {p.num_tokens});
  p.slots = static_cast<const int32_t*>(slots.const_data_ptr());
  const int64_t num_slots = k_cache.size(0) * k_cache.size(1);
  for (int64_t t = 0; t < p.num_tokens; ++t) {
    require(p.slots[t] >= -1 && p.slots[t] < num_slots, "write_kv: slots[", t,
            "] must be -1 (skip) or in [0, ", num_slots, "), got ", p.slots[t]);
  }
  p.k_cache = static_cast<char*>(k_cache.mutable_data_ptr());
  p.v_cache = static_cast<char*>(v_cache.mutable_data_ptr());
  p.num_kv_heads = k_cache.size(2);
  p.head_bytes = k_cache.size(3) * static_cast<int64_t>(k_cache.element_size());
  write_kv(p, torch_parallel_for);
}

// The caches of all layers: as many of K as of V, all alike.
std::vector<char*> all_caches(const char* op, const std::vector<Tensor>& k_caches,
                              const std::vector<Tensor>& v_caches) {
  require(k_caches.size() == v_caches.size(), op,
          ": k_caches and v_caches must be lists of one length, got ", k_caches.size(), " and ",
          v_caches.size());
  std::vector<char*> caches;
  for (size_t i = 0; i < k_caches.size(); ++i) {
    require_caches(op, k_caches[i], v_caches[i]);
    bool same = k_caches[i].scalar_type() == k_caches[0].scalar_type();
    for (int64_t d = 0; d < 4; ++d) same = same && k_caches[i].size(d) == k_caches[0].size(d);
    require(same, op, ": all caches must agree in shape and dtype, but k_caches[", i, "] is ",
            describe(k_caches[i]), " and k_caches[0] ", describe(k_caches[0]));
    caches.push_back(static_cast<char*>(k_caches[i].mutable_data_ptr()));
    caches.push_back(static_cast<char*>(v_caches[i].mutable_data_ptr()));
  }
  return caches;
}

int64_t token_bytes(const Tensor& cache) {
  return cache.size(2) * cache.size(3) * static_cast<int64_t>(cache.element_size());
}

void copy_pages_op(std::vector<Tensor> k_caches, std::vector<Tensor> v_caches,
                   const Tensor& copies) {
  CopyPagesParams p;
  p.caches = all_caches("copy_pages", k_caches, v_caches);
  require_tensor("copy_pages", "copies", copies, ScalarType::Int, {kAnySize, 3});
  p.copies = static_cast<const int32_t*>(copies.const_data_ptr());
  p.num_copies = copies.size(0);
  if (k_caches.empty()) return;
  const Tensor& first = k_caches[0];
  const int64_t num_pages = first.size(0), page_size = first.size(1);
  for (int64_t c = 0; c < p.num_copies; ++c) {
    const int32_t src = p.copies[3 * c], dst = p.copies[3 * c + 1], n = p.copies[3 * c + 2];
    require(src >= 0 && src < num_pages && dst >= 0 && dst < num_pages && src != dst && n >= 0 &&
                n <= page_size,
            "copy_pages: copies[", c, "] must be two different pages in [0, ", num_pages,
            ") and a token count in [0, ", page_size, "], got (", src, ", ", dst, ", ", n, ")");
  }
  p.token_bytes = token_bytes(first);
  p.page_bytes = page_size * p.token_bytes;
  copy_pages(p, torch_parallel_for);
}

void commit_kv_op(std::vector<Tensor> k_caches, std::vector<Tensor> v_caches,
                  const Tensor& src_slots, const Tensor& dst_slots) {
  CommitKvParams p;
  p.caches = all_caches("commit_kv", k_caches, v_caches);
  require_tensor("commit_kv", "src_slots", src_slots, ScalarType::Int, {kAnySize});
  p.num_tokens = src_slots.size(0);
  require_tensor("commit_kv", "dst_slots", dst_slots, ScalarType::Int, {p.num_tokens});
  p.src_slots = static_cast<const int32_t*>(src_slots.const_data_ptr());
  p.dst_slots = static_cast<const int32_t*>(dst_slots.const_data_ptr());
  if (k_caches.empty()) return;
  const int64_t num_slots = k_caches[0].size(0) * k_caches[0].size(1);
  std::unordered_map<int32_t, int64_t> written;  // slot -> the token that was moved there
  for (int64_t t = 0; t < p.num_tokens; ++t) {
    const int32_t src = p.src_slots[t], dst = p.dst_slots[t];
    require(src >= -1 && src < num_slots && dst >= -1 && dst < num_slots, "commit_kv: src_slots[",
            t, "] and dst_slots[", t, "] must be -1 (skip) or in [0, ", num_slots, "), got ", src,
            " and ", dst);
    if (src < 0 || dst < 0) continue;
    const auto found = written.find(src);
    require(found == written.end(), "commit_kv: src_slots[", t, "] = ", src,
            " was overwritten before it is read, by dst_slots[",
            found == written.end() ? 0 : found->second, "]");
    require(written.emplace(dst, t).second, "commit_kv: dst_slots[", t, "] = ", dst,
            " is the destination of two tokens");
  }
  p.token_bytes = token_bytes(k_caches[0]);
  commit_kv(p, torch_parallel_for);
}

}  // namespace

}  // namespace ttc

STABLE_TORCH_LIBRARY_IMPL(ttc_kernels, CPU, m) {
  m.impl("write_kv", TORCH_BOX(&ttc::write_kv_op));
  m.impl("copy_pages", TORCH_BOX(&ttc::copy_pages_op));
  m.impl("commit_kv", TORCH_BOX(&ttc::commit_kv_op));
}
