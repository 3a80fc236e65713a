// torch.ops.ttc_kernels.merge_states on the CPU.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "common/op_check.h"
#include "merge_states/merge_states.h"

namespace ttc {

namespace {

std::tuple<Tensor, Tensor> merge_states_op(const Tensor& outs, const Tensor& lses) {
  const Dtype dtype = float_dtype("merge_states", "outs", outs);
  require(outs.is_cpu() && outs.dim() == 4,
          "merge_states: outs must be [n, T, num_q_heads, head_dim] on cpu, got ", describe(outs));
  const int64_t n = outs.size(0), tokens = outs.size(1), heads = outs.size(2);
  const Tensor dense = torch::stable::contiguous(outs);
  const Tensor dense_lses = torch::stable::contiguous(lses);
  require_tensor("merge_states", "lses", dense_lses, ScalarType::Float, {n, tokens, heads});
  Tensor out = torch::stable::new_empty(outs, {tokens, heads, outs.size(3)});
  Tensor lse = torch::stable::new_empty(lses, {tokens, heads});
  MergeStatesParams p;
  p.outs = dense.const_data_ptr();
  p.lses = static_cast<const float*>(dense_lses.const_data_ptr());
  p.out = out.mutable_data_ptr();
  p.lse = static_cast<float*>(lse.mutable_data_ptr());
  p.dtype = dtype;
  p.num_states = n;
  p.num_rows = tokens * heads;
  p.head_dim = outs.size(3);
  merge_states(p, torch_parallel_for);
  return {out, lse};
}

}  // namespace

}  // namespace ttc

STABLE_TORCH_LIBRARY_IMPL(ttc_kernels, CPU, m) {
  m.impl("merge_states", TORCH_BOX(&ttc::merge_states_op));
}
