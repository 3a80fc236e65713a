// torch.ops.ttc_kernels.write_kv, copy_pages and commit_kv on a GPU. The caller vouches for the indices:
// looking at them would mean to wait for the device.
#include <torch/csrc/stable/library.h>

#include "common/op_cuda.h"
#include "kv_cache/launch.h"
#include "kv_cache/op_params.h"

namespace ttc {

namespace {

void write_kv_op(const Tensor& k, const Tensor& v, Tensor k_cache, Tensor v_cache, const Tensor& slots,
                 double k_scale, double v_scale, std::optional<Tensor> k_scales, std::optional<Tensor> v_scales,
                 std::optional<Tensor> positions, std::optional<Tensor> cos_sin, bool interleaved) {
  const WriteKvParams p = write_kv_params(k, v, k_cache, v_cache, slots, k_scale, v_scale, k_scales, v_scales,
                                          positions, cos_sin, interleaved);
  const CudaLaunch launch("write_kv", k_cache, kWithoutCudaKernels);
  launch.check(write_kv_cuda(p, launch.stream()));
}

void copy_pages_op(std::vector<Tensor> k_caches, std::vector<Tensor> v_caches, const Tensor& copies) {
  const CopyPagesParams p = copy_pages_params(k_caches, v_caches, copies);
  if (k_caches.empty()) return;
  const CudaLaunch launch("copy_pages", copies, kWithoutCudaKernels);
  launch.check(copy_pages_cuda(p, launch.stream()));
}

void commit_kv_op(std::vector<Tensor> k_caches, std::vector<Tensor> v_caches, const Tensor& src_slots,
                  const Tensor& dst_slots) {
  const CommitKvParams p = commit_kv_params(k_caches, v_caches, src_slots, dst_slots);
  if (k_caches.empty()) return;
  const CudaLaunch launch("commit_kv", src_slots, kWithoutCudaKernels);
  launch.check(commit_kv_cuda(p, launch.stream()));
}

}  // namespace

}  // namespace ttc

STABLE_TORCH_LIBRARY_IMPL(ttc_kernels, CUDA, m) {
  m.impl("write_kv", TORCH_BOX(&ttc::write_kv_op));
  m.impl("copy_pages", TORCH_BOX(&ttc::copy_pages_op));
  m.impl("commit_kv", TORCH_BOX(&ttc::commit_kv_op));
}
