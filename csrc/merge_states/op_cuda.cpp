// torch.ops.ttc_kernels.merge_states on a GPU.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "common/op_cuda.h"
#include "merge_states/launch.h"
#include "merge_states/op_params.h"

namespace ttc {

namespace {

std::tuple<Tensor, Tensor> merge_states_op(const Tensor& outs, const Tensor& lses) {
  const CudaLaunch launch("merge_states", outs, kWithoutCudaKernels);
  return with_merge_states_params(outs, lses, [&](const MergeStatesParams& params) {
    launch.check(merge_states_cuda(params, launch.stream()));
  });
}

}  // namespace

}  // namespace ttc

STABLE_TORCH_LIBRARY_IMPL(ttc_kernels, CUDA, m) {
  m.impl("merge_states", TORCH_BOX(&ttc::merge_states_op));
}
