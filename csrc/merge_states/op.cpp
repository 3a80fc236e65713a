// torch.ops.ttc_kernels.merge_states on the CPU.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "merge_states/op_params.h"

namespace ttc {

namespace {

std::tuple<Tensor, Tensor> merge_states_op(const Tensor& outs, const Tensor& lses) {
  return with_merge_states_params(
      outs, lses, [](const MergeStatesParams& params) { merge_states(params, torch_parallel_for); });
}

}  // namespace

}  // namespace ttc

STABLE_TORCH_LIBRARY_IMPL(ttc_kernels, CPU, m) {
  m.impl("merge_states", TORCH_BOX(&ttc::merge_states_op));
}
