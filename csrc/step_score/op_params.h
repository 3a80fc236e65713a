// What step scores on a CPU and on a GPU share: checks and parameters. What rows, links and groups say is
// looked at on the CPU alone (op.cpp): on a GPU that would mean to wait for it.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "common/op_check.h"
#include "step_score/step_score.h"

namespace ttc {

inline Matrix matrix(const char* op, const std::string& name, const Tensor& tensor, int64_t rows, int64_t cols,
                     const Tensor& like) {
  const Dtype dtype = float_dtype(op, name.c_str(), tensor);
  require_tensor(op, name.c_str(), tensor, tensor.scalar_type(), {rows, cols}, &like);
  return {tensor.const_data_ptr(), dtype, tensor.size(0), tensor.size(1)};
}

inline const float* vector(const char* op, const char* name, const Tensor& tensor, int64_t size, const Tensor& like) {
  require_tensor(op, name, tensor, ScalarType::Float, {size}, &like);
  return static_cast<const float*>(tensor.const_data_ptr());
}

// weights: two_logit (w1, b1, w2, b2), value and raw (w, b), token_pair (w), softmax (w, b, good);
// matrices of any float dtype, vectors float32.
inline void read_head(const char* op, const std::string& kind, const std::vector<Tensor>& weights, const Tensor& like,
                      ScoreStepsParams& p) {
  const auto expect = [&](size_t n) {
    require(weights.size() == n, op, ": weights of a ", kind, " head must be ", n,
            " tensors, got ", weights.size());
  };
  p.biases[0] = p.biases[1] = p.good = nullptr;
  if (kind == "two_logit") {
    expect(4);
    p.kind = HeadKind::kTwoLogit;
    p.layers[0] = matrix(op, "w1", weights[0], kAnySize, p.width, like);
    p.biases[0] = vector(op, "b1", weights[1], p.layers[0].rows, like);
    p.layers[1] = matrix(op, "w2", weights[2], 2, p.layers[0].rows, like);
    p.biases[1] = vector(op, "b2", weights[3], 2, like);
  } else if (kind == "value" || kind == "raw") {
    expect(2);
    p.kind = kind == "value" ? HeadKind::kValue : HeadKind::kRaw;
    p.layers[0] = matrix(op, "w", weights[0], 1, p.width, like);
    p.biases[0] = vector(op, "b", weights[1], 1, like);
  } else if (kind == "token_pair") {
    expect(1);
    p.kind = HeadKind::kTokenPair;
    p.layers[0] = matrix(op, "w", weights[0], 2, p.width, like);
  } else if (kind == "softmax") {
    expect(3);
    p.kind = HeadKind::kSoftmax;
    p.layers[0] = matrix(op, "w", weights[0], kAnySize, p.width, like);
    p.biases[0] = vector(op, "b", weights[1], p.layers[0].rows, like);
    p.good = vector(op, "good", weights[2], p.layers[0].rows, like);
  } else {
    require(false, op, ": kind must be two_logit, value, raw, token_pair or softmax, got ", kind);
  }
}

inline ScoreStepsParams read_score_steps(const char* op, const Tensor& hidden, const Tensor& rows,
                                         const std::string& kind, const std::vector<Tensor>& weights,
                                         const std::optional<Tensor>& norm_weight, double norm_eps) {
  ScoreStepsParams p;
  p.hidden_dtype = float_dtype(op, "hidden", hidden);
  require(hidden.dim() == 2 && (hidden.stride(1) == 1 || hidden.size(1) <= 1), op,
          ": hidden must be [T, E] with a dense last dimension, got ", describe(hidden));
  p.hidden = static_cast<const char*>(hidden.const_data_ptr());
  p.hidden_stride = hidden.stride(0) * dtype_bytes(p.hidden_dtype);
  p.num_tokens = hidden.size(0);
  p.width = hidden.size(1);
  require_tensor(op, "rows", rows, ScalarType::Int, {kAnySize}, &hidden);
  p.rows = static_cast<const int32_t*>(rows.const_data_ptr());
  p.num_steps = rows.numel();
  read_head(op, kind, weights, hidden, p);
  p.norm_weight = norm_weight ? vector(op, "norm weight", *norm_weight, p.width, hidden) : nullptr;
  p.norm_eps = static_cast<float>(norm_eps);
  return p;
}

// The scores may still be missing: `score_round` makes them after the checks. `like` gives the device.
inline AggregateStepsParams read_aggregate_steps(const char* op, int64_t num_steps, const Tensor& like,
                                                 const Tensor& parent, const std::optional<Tensor>& carry_stats,
                                                 const std::optional<Tensor>& carry_state) {
  AggregateStepsParams p = {};
  p.out.count = num_steps;
  require_tensor(op, "parent", parent, ScalarType::Int, {num_steps}, &like);
  p.parent = static_cast<const int32_t*>(parent.const_data_ptr());
  require(carry_stats.has_value() == carry_state.has_value(), op, ": carry must have both stats and state");
  if (carry_stats) {
    require_tensor(op, "carry stats", *carry_stats, ScalarType::Float, {4, kAnySize}, &like);
    p.carry_count = carry_stats->size(1);
    require_tensor(op, "carry state", *carry_state, ScalarType::Long, {3, p.carry_count}, &like);
    p.carry_stats = static_cast<const float*>(carry_stats->const_data_ptr());
    p.carry_state = static_cast<const int64_t*>(carry_state->const_data_ptr());
  }
  return p;
}

inline SelectTopkParams read_select_topk(const char* op, int64_t num_scores, const Tensor& like,
                                         const Tensor& group_indptr, int64_t k) {
  SelectTopkParams p = {};
  require_tensor(op, "group_indptr", group_indptr, ScalarType::Int, {kAnySize}, &like);
  require(group_indptr.numel() >= 1, op, ": group_indptr must have at least one entry, got none");
  require(k >= 1, op, ": k must be >= 1, got ", k);
  p.group_indptr = static_cast<const int32_t*>(group_indptr.const_data_ptr());
  p.num_scores = num_scores;
  p.num_groups = group_indptr.numel() - 1;
  p.k = k;
  return p;
}

// Scores, aggregates and the choice of a round of beam search.
struct ScoreRound {
  ScoreStepsParams score;
  AggregateStepsParams aggregate;
  SelectTopkParams select;
};

inline ScoreRound read_score_round(const char* op, const Tensor& hidden, const Tensor& rows, const std::string& kind,
                                   const std::vector<Tensor>& weights, const std::optional<Tensor>& norm_weight,
                                   double norm_eps, const Tensor& parent, const std::optional<Tensor>& carry_stats,
                                   const std::optional<Tensor>& carry_state, const Tensor& group_indptr, int64_t k,
                                   int64_t by) {
  const ScoreStepsParams score = read_score_steps(op, hidden, rows, kind, weights, norm_weight, norm_eps);
  require(by >= 0 && by < 4, op, ": by must be 0 (min), 1 (prod), 2 (mean) or 3 (last), got ", by);
  return {score, read_aggregate_steps(op, score.num_steps, hidden, parent, carry_stats, carry_state),
          read_select_topk(op, score.num_steps, hidden, group_indptr, k)};
}

// Makes what an op returns, and puts it into the parameters.
inline Tensor make_scores(ScoreStepsParams& p, const Tensor& like) {
  Tensor scores = torch::stable::new_empty(like, {p.num_steps}, ScalarType::Float);
  p.scores = static_cast<float*>(scores.mutable_data_ptr());
  return scores;
}

inline std::tuple<Tensor, Tensor> make_aggregates(AggregateStepsParams& p, const Tensor& scores) {
  Tensor stats = torch::stable::new_empty(scores, {4, p.out.count}, ScalarType::Float);
  Tensor state = torch::stable::new_empty(scores, {3, p.out.count}, ScalarType::Long);
  p.scores = static_cast<const float*>(scores.const_data_ptr());
  p.out.stats = static_cast<float*>(stats.mutable_data_ptr());
  p.out.state = static_cast<int64_t*>(state.mutable_data_ptr());
  return {stats, state};
}

inline Tensor make_selected(SelectTopkParams& p, const float* scores, const Tensor& like) {
  Tensor selected = torch::stable::new_empty(like, {p.num_groups, p.k}, ScalarType::Int);
  p.scores = scores;
  p.selected = static_cast<int32_t*>(selected.mutable_data_ptr());
  return selected;
}

inline std::tuple<Tensor, Tensor, Tensor, Tensor> make_round(ScoreRound& p, const Tensor& like, int64_t by) {
  Tensor scores = make_scores(p.score, like);
  auto [stats, state] = make_aggregates(p.aggregate, scores);
  Tensor selected = make_selected(p.select, p.aggregate.out.stats + by * p.score.num_steps, scores);
  return {scores, stats, state, selected};
}

}  // namespace ttc
