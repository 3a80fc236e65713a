// torch.ops.ttc_kernels.score_steps, aggregate_steps, select_topk and score_round on a GPU. What rows, links
// and groups say is not looked at: that would mean to wait for the device.
#include <torch/csrc/stable/library.h>

#include "common/op_cuda.h"
#include "step_score/launch.h"
#include "step_score/op_params.h"

namespace ttc {

namespace {

void require_on_gpu(const char* op, const char* name, const Tensor& tensor) {
  require(tensor.is_cuda(), op, ": ", name, " must be on a GPU like the other tensors, got ", describe(tensor));
}

// Memory for what blocks tell one another; nothing of it is kept between calls.
struct Workspace {
  Workspace(const ScoreStepsParams& p, const Tensor& like) : Workspace(score_workspace(p), like) {}
  Workspace(const ScoreWorkspace& room, const Tensor& like)
      : floats(torch::stable::new_empty(like, {room.floats}, ScalarType::Float)),
        ints(torch::stable::new_empty(like, {room.ints}, ScalarType::Int)) {}
  float* float_data() { return static_cast<float*>(floats.mutable_data_ptr()); }
  int32_t* int_data() { return static_cast<int32_t*>(ints.mutable_data_ptr()); }
  Tensor floats, ints;
};

Tensor score_steps_op(const Tensor& hidden, const Tensor& rows, std::string kind, std::vector<Tensor> weights,
                      std::optional<Tensor> norm_weight, double norm_eps) {
  constexpr const char* op = "score_steps";
  require_on_gpu(op, "hidden", hidden);
  ScoreStepsParams p = read_score_steps(op, hidden, rows, kind, weights, norm_weight, norm_eps);
  const CudaLaunch launch(op, hidden, kWithoutCudaKernels);
  Tensor scores = make_scores(p, hidden);
  Workspace workspace(p, hidden);
  launch.check(score_steps_cuda(p, workspace.float_data(), workspace.int_data(), launch.stream()));
  return scores;
}

std::tuple<Tensor, Tensor> aggregate_steps_op(const Tensor& scores, const Tensor& parent,
                                              std::optional<Tensor> carry_stats, std::optional<Tensor> carry_state) {
  constexpr const char* op = "aggregate_steps";
  require_on_gpu(op, "scores", scores);
  require_tensor(op, "scores", scores, ScalarType::Float, {kAnySize}, &scores);
  AggregateStepsParams p = read_aggregate_steps(op, scores.numel(), scores, parent, carry_stats, carry_state);
  const CudaLaunch launch(op, scores, kWithoutCudaKernels);
  auto result = make_aggregates(p, scores);
  launch.check(aggregate_steps_cuda(p, launch.stream()));
  return result;
}

Tensor select_topk_op(const Tensor& scores, const Tensor& group_indptr, int64_t k) {
  constexpr const char* op = "select_topk";
  require_on_gpu(op, "scores", scores);
  require_tensor(op, "scores", scores, ScalarType::Float, {kAnySize}, &scores);
  SelectTopkParams p = read_select_topk(op, scores.numel(), scores, group_indptr, k);
  const CudaLaunch launch(op, scores, kWithoutCudaKernels);
  Tensor selected = make_selected(p, static_cast<const float*>(scores.const_data_ptr()), scores);
  launch.check(select_topk_cuda(p, launch.stream()));
  return selected;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> score_round_op(
    const Tensor& hidden, const Tensor& rows, std::string kind, std::vector<Tensor> weights,
    std::optional<Tensor> norm_weight, double norm_eps, const Tensor& parent, std::optional<Tensor> carry_stats,
    std::optional<Tensor> carry_state, const Tensor& group_indptr, int64_t k, int64_t by) {
  constexpr const char* op = "score_round";
  require_on_gpu(op, "hidden", hidden);
  ScoreRound p = read_score_round(op, hidden, rows, kind, weights, norm_weight, norm_eps, parent, carry_stats,
                                  carry_state, group_indptr, k, by);
  const CudaLaunch launch(op, hidden, kWithoutCudaKernels);
  auto result = make_round(p, hidden, by);
  Workspace workspace(p.score, hidden);
  launch.check(score_round_cuda(p.score, p.aggregate, p.select, workspace.float_data(), workspace.int_data(),
                                launch.stream()));
  return result;
}

}  // namespace

}  // namespace ttc

STABLE_TORCH_LIBRARY_IMPL(ttc_kernels, CUDA, m) {
  m.impl("score_steps", TORCH_BOX(&ttc::score_steps_op));
  m.impl("aggregate_steps", TORCH_BOX(&ttc::aggregate_steps_op));
  m.impl("select_topk", TORCH_BOX(&ttc::select_topk_op));
  m.impl("score_round", TORCH_BOX(&ttc::score_round_op));
}
