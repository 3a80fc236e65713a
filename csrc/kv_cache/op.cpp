// torch.ops.ttc_kernels.write_kv, copy_pages and commit_kv on the CPU. Here the indices are looked at,
// and nothing is written if one of them is wrong.
#include <torch/csrc/stable/library.h>

#include <unordered_map>

#include "kv_cache/op_params.h"

namespace ttc {

namespace {

void write_kv_op(const Tensor& k, const Tensor& v, Tensor k_cache, Tensor v_cache, const Tensor& slots,
                 double k_scale, double v_scale, std::optional<Tensor> k_scales, std::optional<Tensor> v_scales,
                 std::optional<Tensor> positions, std::optional<Tensor> cos_sin, bool interleaved) {
  const WriteKvParams p = write_kv_params(k, v, k_cache, v_cache, slots, k_scale, v_scale, k_scales, v_scales,
                                          positions, cos_sin, interleaved);
  const int64_t num_slots = k_cache.size(0) * k_cache.size(1);
  for (int64_t t = 0; t < p.num_tokens; ++t) {
    require(p.slots[t] >= -1 && p.slots[t] < num_slots, "write_kv: slots[", t, "] must be -1 (skip) or in [0, ",
            num_slots, "), got ", p.slots[t]);
    if (p.rope.positions == nullptr || p.slots[t] < 0) continue;
    require(p.rope.positions[t] >= 0 && p.rope.positions[t] < cos_sin->size(0), "write_kv: positions[", t,
            "] must be in [0, ", cos_sin->size(0), "), got ", p.rope.positions[t]);
  }
  write_kv(p, torch_parallel_for);
}

void copy_pages_op(std::vector<Tensor> k_caches, std::vector<Tensor> v_caches, const Tensor& copies) {
  const CopyPagesParams p = copy_pages_params(k_caches, v_caches, copies);
  if (k_caches.empty()) return;
  const int64_t num_pages = k_caches[0].size(0);
  for (int64_t c = 0; c < p.num_copies; ++c) {
    const int32_t src = p.copies[3 * c], dst = p.copies[3 * c + 1], n = p.copies[3 * c + 2];
    require(src >= 0 && src < num_pages && dst >= 0 && dst < num_pages && src != dst && n >= 0 && n <= p.page_size,
            "copy_pages: copies[", c, "] must be two different pages in [0, ", num_pages,
            ") and a token count in [0, ", p.page_size, "], got (", src, ", ", dst, ", ", n, ")");
  }
  copy_pages(p, torch_parallel_for);
}

void commit_kv_op(std::vector<Tensor> k_caches, std::vector<Tensor> v_caches, const Tensor& src_slots,
                  const Tensor& dst_slots) {
  const CommitKvParams p = commit_kv_params(k_caches, v_caches, src_slots, dst_slots);
  if (k_caches.empty()) return;
  const int64_t num_slots = k_caches[0].size(0) * k_caches[0].size(1);
  std::unordered_map<int32_t, int64_t> written;  // slot -> the token that was moved there
  for (int64_t t = 0; t < p.num_tokens; ++t) {
    const int32_t src = p.src_slots[t], dst = p.dst_slots[t];
    require(src >= -1 && src < num_slots && dst >= -1 && dst < num_slots, "commit_kv: src_slots[", t,
            "] and dst_slots[", t, "] must be -1 (skip) or in [0, ", num_slots, "), got ", src, " and ", dst);
    if (src < 0 || dst < 0) continue;
    const auto found = written.find(src);
    require(found == written.end(), "commit_kv: src_slots[", t, "] = ", src,
            " was overwritten before it is read, by dst_slots[", found == written.end() ? 0 : found->second, "]");
    require(written.emplace(dst, t).second, "commit_kv: dst_slots[", t, "] = ", dst,
            " is the destination of two tokens");
  }
  commit_kv(p, torch_parallel_for);
}

}  // namespace

}  // namespace ttc

STABLE_TORCH_LIBRARY_IMPL(ttc_kernels, CPU, m) {
  m.impl("write_kv", TORCH_BOX(&ttc::write_kv_op));
  m.impl("copy_pages", TORCH_BOX(&ttc::copy_pages_op));
  m.impl("commit_kv", TORCH_BOX(&ttc::commit_kv_op));
}
