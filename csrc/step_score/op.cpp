// torch.ops.ttc_kernels.score_steps, aggregate_steps, select_topk and score_round on the CPU.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "common/op_check.h"
#include "step_score/step_score.h"

namespace ttc {

namespace {

Matrix matrix(const char* op, const std::string& name, const Tensor& tensor, int64_t rows, int64_t cols) {
  const Dtype dtype = float_dtype(op, name.c_str(), tensor);
  require_tensor(op, name.c_str(), tensor, tensor.scalar_type(), {rows, cols});
  return {tensor.const_data_ptr(), dtype, tensor.size(0), tensor.size(1)};
}

const float* vector(const char* op, const char* name, const Tensor& tensor, int64_t size) {
  require_tensor(op, name, tensor, ScalarType::Float, {size});
  return static_cast<const float*>(tensor.const_data_ptr());
}

// weights: two_logit (w1, b1, w2, b2), value and raw (w, b), token_pair (w), softmax (w, b, good);
// matrices of any float dtype, vectors float32.
void read_head(const char* op, const std::string& kind, const std::vector<Tensor>& weights, ScoreStepsParams& p) {
  const auto expect = [&](size_t n) {
    require(weights.size() == n, op, ": weights of a ", kind, " head must be ", n,
            " tensors, got ", weights.size());
  };
  p.biases[0] = p.biases[1] = p.good = nullptr;
  if (kind == "two_logit") {
    expect(4);
    p.kind = HeadKind::kTwoLogit;
    p.layers[0] = matrix(op, "w1", weights[0], kAnySize, p.width);
    p.biases[0] = vector(op, "b1", weights[1], p.layers[0].rows);
    p.layers[1] = matrix(op, "w2", weights[2], 2, p.layers[0].rows);
    p.biases[1] = vector(op, "b2", weights[3], 2);
  } else if (kind == "value" || kind == "raw") {
    expect(2);
    p.kind = kind == "value" ? HeadKind::kValue : HeadKind::kRaw;
    p.layers[0] = matrix(op, "w", weights[0], 1, p.width);
    p.biases[0] = vector(op, "b", weights[1], 1);
  } else if (kind == "token_pair") {
    expect(1);
    p.kind = HeadKind::kTokenPair;
    p.layers[0] = matrix(op, "w", weights[0], 2, p.width);
  } else if (kind == "softmax") {
    expect(3);
    p.kind = HeadKind::kSoftmax;
    p.layers[0] = matrix(op, "w", weights[0], kAnySize, p.width);
    p.biases[0] = vector(op, "b", weights[1], p.layers[0].rows);
    p.good = vector(op, "good", weights[2], p.layers[0].rows);
  } else {
    require(false, op, ": kind must be two_logit, value, raw, token_pair or softmax, got ", kind);
  }
}

ScoreStepsParams read_score_steps(const char* op, const Tensor& hidden, const Tensor& rows,
                                  const std::string& kind, const std::vector<Tensor>& weights,
                                  const std::optional<Tensor>& norm_weight, double norm_eps) {
  ScoreStepsParams p;
  p.hidden_dtype = float_dtype(op, "hidden", hidden);
  require(hidden.is_cpu() && hidden.dim() == 2 && (hidden.stride(1) == 1 || hidden.size(1) <= 1),
          op, ": hidden must be [T, E] on cpu with a dense last dimension, got ",
          describe(hidden));
  p.hidden = static_cast<const char*>(hidden.const_data_ptr());
  p.hidden_stride = hidden.stride(0) * dtype_bytes(p.hidden_dtype);
  p.width = hidden.size(1);
  require_tensor(op, "rows", rows, ScalarType::Int, {kAnySize});
  p.rows = static_cast<const int32_t*>(rows.const_data_ptr());
  p.num_steps = rows.numel();
  for (int64_t s = 0; s < p.num_steps; ++s) {
    require(p.rows[s] >= 0 && p.rows[s] < hidden.size(0), op, ": rows[", s, "] must be in [0, ",
            hidden.size(0), "), got ", p.rows[s]);
  }
  read_head(op, kind, weights, p);
  p.norm_weight = norm_weight ? vector(op, "norm weight", *norm_weight, p.width) : nullptr;
  p.norm_eps = static_cast<float>(norm_eps);
  return p;
}

// scores may still be missing: `score_round` makes them after the checks.
AggregateStepsParams read_aggregate_steps(const char* op, int64_t num_steps, const Tensor& parent,
                                          const std::optional<Tensor>& carry_stats,
                                          const std::optional<Tensor>& carry_state) {
  AggregateStepsParams p = {};
  p.out.count = num_steps;
  require_tensor(op, "parent", parent, ScalarType::Int, {num_steps});
  p.parent = static_cast<const int32_t*>(parent.const_data_ptr());
  require(carry_stats.has_value() == carry_state.has_value(), op, ": carry must have both stats and state");
  if (carry_stats) {
    require_tensor(op, "carry stats", *carry_stats, ScalarType::Float, {4, kAnySize});
    p.carry_count = carry_stats->size(1);
    require_tensor(op, "carry state", *carry_state, ScalarType::Long, {3, p.carry_count});
    p.carry_stats = static_cast<const float*>(carry_stats->const_data_ptr());
    p.carry_state = static_cast<const int64_t*>(carry_state->const_data_ptr());
  }
  for (int64_t i = 0; i < num_steps; ++i) {
    require(p.parent[i] >= -1 && p.parent[i] < p.carry_count + i, op, ": parent[", i,
            "] must be -1, one of ", p.carry_count, " carried entries, or ", p.carry_count,
            " + an earlier step, got ", p.parent[i]);
  }
  return p;
}

SelectTopkParams read_select_topk(const char* op, int64_t num_scores, const Tensor& group_indptr, int64_t k) {
  SelectTopkParams p = {};
  require_tensor(op, "group_indptr", group_indptr, ScalarType::Int, {kAnySize});
  require(group_indptr.numel() >= 1, op, ": group_indptr must have at least one entry, got none");
  require(k >= 1, op, ": k must be >= 1, got ", k);
  p.group_indptr = static_cast<const int32_t*>(group_indptr.const_data_ptr());
  p.num_groups = group_indptr.numel() - 1;
  p.k = k;
  int64_t before = 0;
  for (int64_t g = 0; g <= p.num_groups; ++g) {
    require(p.group_indptr[g] >= before && p.group_indptr[g] <= num_scores, op, ": group_indptr[", g,
            "] must be in [", before, ", ", num_scores, "], got ", p.group_indptr[g]);
    before = p.group_indptr[g];
  }
  return p;
}

Tensor run_scores(ScoreStepsParams& p, const Tensor& like) {
  Tensor scores = torch::stable::new_empty(like, {p.num_steps}, ScalarType::Float);
  p.scores = static_cast<float*>(scores.mutable_data_ptr());
  score_steps(p, torch_parallel_for);
  return scores;
}

std::tuple<Tensor, Tensor> run_aggregates(AggregateStepsParams& p, const Tensor& scores) {
  Tensor stats = torch::stable::new_empty(scores, {4, p.out.count}, ScalarType::Float);
  Tensor state = torch::stable::new_empty(scores, {3, p.out.count}, ScalarType::Long);
  p.scores = static_cast<const float*>(scores.const_data_ptr());
  p.out.stats = static_cast<float*>(stats.mutable_data_ptr());
  p.out.state = static_cast<int64_t*>(state.mutable_data_ptr());
  aggregate_steps(p);
  return {stats, state};
}

Tensor run_select(SelectTopkParams& p, const float* scores, const Tensor& like) {
  Tensor selected = torch::stable::new_empty(like, {p.num_groups, p.k}, ScalarType::Int);
  p.scores = scores;
  p.selected = static_cast<int32_t*>(selected.mutable_data_ptr());
  select_topk(p, torch_parallel_for);
  return selected;
}

Tensor score_steps_op(const Tensor& hidden, const Tensor& rows, std::string kind,
                      std::vector<Tensor> weights, std::optional<Tensor> norm_weight,
                      double norm_eps) {
  ScoreStepsParams p = read_score_steps("score_steps", hidden, rows, kind, weights, norm_weight, norm_eps);
  return run_scores(p, hidden);
}

std::tuple<Tensor, Tensor> aggregate_steps_op(const Tensor& scores, const Tensor& parent,
                                              std::optional<Tensor> carry_stats,
                                              std::optional<Tensor> carry_state) {
  require_tensor("aggregate_steps", "scores", scores, ScalarType::Float, {kAnySize});
  AggregateStepsParams p =
      read_aggregate_steps("aggregate_steps", scores.numel(), parent, carry_stats, carry_state);
  return run_aggregates(p, scores);
}

Tensor select_topk_op(const Tensor& scores, const Tensor& group_indptr, int64_t k) {
  require_tensor("select_topk", "scores", scores, ScalarType::Float, {kAnySize});
  SelectTopkParams p = read_select_topk("select_topk", scores.numel(), group_indptr, k);
  return run_select(p, static_cast<const float*>(scores.const_data_ptr()), scores);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> score_round_op(
    const Tensor& hidden, const Tensor& rows, std::string kind, std::vector<Tensor> weights,
    std::optional<Tensor> norm_weight, double norm_eps, const Tensor& parent,
    std::optional<Tensor> carry_stats, std::optional<Tensor> carry_state,
    const Tensor& group_indptr, int64_t k, int64_t by) {
  constexpr const char* op = "score_round";
  ScoreStepsParams score = read_score_steps(op, hidden, rows, kind, weights, norm_weight, norm_eps);
  AggregateStepsParams aggregate = read_aggregate_steps(op, score.num_steps, parent, carry_stats, carry_state);
  SelectTopkParams select = read_select_topk(op, score.num_steps, group_indptr, k);
  require(by >= 0 && by < 4, op, ": by must be 0 (min), 1 (prod), 2 (mean) or 3 (last), got ", by);
  Tensor scores = run_scores(score, hidden);
  auto [stats, state] = run_aggregates(aggregate, scores);
  Tensor selected = run_select(select, aggregate.out.stats + by * score.num_steps, scores);
  return {scores, stats, state, selected};
}

}  // namespace

}  // namespace ttc

STABLE_TORCH_LIBRARY_IMPL(ttc_kernels, CPU, m) {
  m.impl("score_steps", TORCH_BOX(&ttc::score_steps_op));
  m.impl("aggregate_steps", TORCH_BOX(&ttc::aggregate_steps_op));
  m.impl("select_topk", TORCH_BOX(&ttc::select_topk_op));
  m.impl("score_round", TORCH_BOX(&ttc::score_round_op));
}
