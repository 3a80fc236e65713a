// What merge_states on a CPU and on a GPU share: the checks, the result, the parameters.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "common/op_check.h"
#include "merge_states/merge_states.h"

namespace ttc {

// Calls run(MergeStatesParams), on tensors that live until it returns.
template <class Run>
std::tuple<Tensor, Tensor> with_merge_states_params(const Tensor& outs, const Tensor& lses, const Run& run) {
  const char* op = "merge_states";
  const Dtype dtype = float_dtype(op, "outs", outs);
  require(outs.dim() == 4, op, ": outs must be [n, T, num_q_heads, head_dim], got ", describe(outs));
  const int64_t n = outs.size(0), tokens = outs.size(1), heads = outs.size(2);
  const Tensor dense = torch::stable::contiguous(outs);
  const Tensor dense_lses = torch::stable::contiguous(lses);
  require_tensor(op, "lses", dense_lses, ScalarType::Float, {n, tokens, heads}, &outs);
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
  run(p);
  return {out, lse};
}

}  // namespace ttc
