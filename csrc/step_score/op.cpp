// torch.ops.ttc_kernels.score_steps, aggregate_steps, select_topk and score_round on the CPU.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "step_score/op_params.h"

namespace ttc {

namespace {

// Rows, links and groups lie in memory of the CPU, where they can be looked at.
void check_rows(const char* op, const ScoreStepsParams& p) {
  for (int64_t s = 0; s < p.num_steps; ++s) {
    require(p.rows[s] >= 0 && p.rows[s] < p.num_tokens, op, ": rows[", s, "] must be in [0, ", p.num_tokens,
            "), got ", p.rows[s]);
  }
}

void check_links(const char* op, const AggregateStepsParams& p) {
  for (int64_t i = 0; i < p.out.count; ++i) {
    require(p.parent[i] >= -1 && p.parent[i] < p.carry_count + i, op, ": parent[", i, "] must be -1, one of ",
            p.carry_count, " carried entries, or ", p.carry_count, " + an earlier step, got ", p.parent[i]);
  }
}

void check_groups(const char* op, const SelectTopkParams& p) {
  int64_t before = 0;
  for (int64_t g = 0; g <= p.num_groups; ++g) {
    require(p.group_indptr[g] >= before && p.group_indptr[g] <= p.num_scores, op, ": group_indptr[", g,
            "] must be in [", before, ", ", p.num_scores, "], got ", p.group_indptr[g]);
    before = p.group_indptr[g];
  }
}

Tensor score_steps_op(const Tensor& hidden, const Tensor& rows, std::string kind,
                      std::vector<Tensor> weights, std::optional<Tensor> norm_weight,
                      double norm_eps) {
  constexpr const char* op = "score_steps";
  ScoreStepsParams p = read_score_steps(op, hidden, rows, kind, weights, norm_weight, norm_eps);
  check_rows(op, p);
  Tensor scores = make_scores(p, hidden);
  score_steps(p, torch_parallel_for);
  return scores;
}

std::tuple<Tensor, Tensor> aggregate_steps_op(const Tensor& scores, const Tensor& parent,
                                              std::optional<Tensor> carry_stats,
                                              std::optional<Tensor> carry_state) {
  constexpr const char* op = "aggregate_steps";
  require_tensor(op, "scores", scores, ScalarType::Float, {kAnySize});
  AggregateStepsParams p = read_aggregate_steps(op, scores.numel(), scores, parent, carry_stats, carry_state);
  check_links(op, p);
  auto result = make_aggregates(p, scores);
  aggregate_steps(p);
  return result;
}

Tensor select_topk_op(const Tensor& scores, const Tensor& group_indptr, int64_t k) {
  constexpr const char* op = "select_topk";
  require_tensor(op, "scores", scores, ScalarType::Float, {kAnySize});
  SelectTopkParams p = read_select_topk(op, scores.numel(), scores, group_indptr, k);
  check_groups(op, p);
  Tensor selected = make_selected(p, static_cast<const float*>(scores.const_data_ptr()), scores);
  select_topk(p, torch_parallel_for);
  return selected;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> score_round_op(
    const Tensor& hidden, const Tensor& rows, std::string kind, std::vector<Tensor> weights,
    std::optional<Tensor> norm_weight, double norm_eps, const Tensor& parent,
    std::optional<Tensor> carry_stats, std::optional<Tensor> carry_state,
    const Tensor& group_indptr, int64_t k, int64_t by) {
  constexpr const char* op = "score_round";
  ScoreRound p = read_score_round(op, hidden, rows, kind, weights, norm_weight, norm_eps, parent, carry_stats,
                                  carry_state, group_indptr, k, by);
  check_rows(op, p.score);
  check_links(op, p.aggregate);
  check_groups(op, p.select);
  auto result = make_round(p, hidden, by);
  score_steps(p.score, torch_parallel_for);
  aggregate_steps(p.aggregate);
  select_topk(p.select, torch_parallel_for);
  return result;
}

}  // namespace

}  // namespace ttc

STABLE_TORCH_LIBRARY_IMPL(ttc_kernels, CPU, m) {
  m.impl("score_steps", TORCH_BOX(&ttc::score_steps_op));
  m.impl("aggregate_steps", TORCH_BOX(&ttc::aggregate_steps_op));
  m.impl("select_topk", TORCH_BOX(&ttc::select_topk_op));
  m.impl("score_round", TORCH_BOX(&ttc::score_round_op));
}
