// torch.ops.ttc_kernels.score_steps on the CPU.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <vector>

#include "common/op_check.h"
#include "step_score/step_score.h"

namespace ttc {

namespace {

constexpr const char* kOp = "score_steps";

Matrix matrix(const std::string& name, const Tensor& tensor, int64_t rows, int64_t cols) {
  const Dtype dtype = float_dtype(kOp, name.c_str(), tensor);
  require_tensor(kOp, name.c_str(), tensor, tensor.scalar_type(), {rows, cols});
  return {tensor.const_data_ptr(), dtype, tensor.size(0), tensor.size(1)};
}

const float* vector(const char* name, const Tensor& tensor, int64_t size) {
  require_tensor(kOp, name, tensor, ScalarType::Float, {size});
  return static_cast<const float*>(tensor.const_data_ptr());
}

// weights: two_logit (w1, b1, w2, b2), value (w, b), token_pair (w); matrices any float dtype,
// biases float32.
void read_head(const std::string& kind, const std::vector<Tensor>& weights, ScoreStepsParams& p) {
  const auto expect = [&](size_t n) {
    require(weights.size() == n, kOp, ": weights of a ", kind, " head must be ", n,
            " tensors, got ", weights.size());
  };
  p.biases[0] = p.biases[1] = nullptr;
  if (kind == "two_logit") {
    expect(4);
    p.kind = HeadKind::kTwoLogit;
    p.layers[0] = matrix("w1", weights[0], kAnySize, p.width);
    p.biases[0] = vector("b1", weights[1], p.layers[0].rows);
    p.layers[1] = matrix("w2", weights[2], 2, p.layers[0].rows);
    p.biases[1] = vector("b2", weights[3], 2);
  } else if (kind == "value") {
    expect(2);
    p.kind = HeadKind::kValue;
    p.layers[0] = matrix("w", weights[0], 1, p.width);
    p.biases[0] = vector("b", weights[1], 1);
  } else if (kind == "token_pair") {
    expect(1);
    p.kind = HeadKind::kTokenPair;
    p.layers[0] = matrix("w", weights[0], 2, p.width);
  } else {
    require(false, kOp, ": kind must be two_logit, value or token_pair, got ", kind);
  }
}

Tensor score_steps_op(const Tensor& hidden, const Tensor& rows, std::string kind,
                      std::vector<Tensor> weights, std::optional<Tensor> norm_weight,
                      double norm_eps) {
  ScoreStepsParams p;
  p.hidden_dtype = float_dtype(kOp, "hidden", hidden);
  require(hidden.is_cpu() && hidden.dim() == 2 && (hidden.stride(1) == 1 || hidden.size(1) <= 1),
          kOp, ": hidden must be [T, E] on cpu with a dense last dimension, got ",
          describe(hidden));
  p.hidden = static_cast<const char*>(hidden.const_data_ptr());
  p.hidden_stride = hidden.stride(0) * dtype_bytes(p.hidden_dtype);
  p.width = hidden.size(1);
  require_tensor(kOp, "rows", rows, ScalarType::Int, {kAnySize});
  p.rows = static_cast<const int32_t*>(rows.const_data_ptr());
  p.num_steps = rows.numel();
  for (int64_t s = 0; s < p.num_steps; ++s) {
    require(p.rows[s] >= 0 && p.rows[s] < hidden.size(0), kOp, ": rows[", s, "] must be in [0, ",
            hidden.size(0), "), got ", p.rows[s]);
  }
  read_head(kind, weights, p);
  p.norm_weight = norm_weight ? vector("norm weight", *norm_weight, p.width) : nullptr;
  p.norm_eps = static_cast<float>(norm_eps);
  Tensor scores = torch::stable::new_empty(hidden, {p.num_steps}, ScalarType::Float);
  p.scores = static_cast<float*>(scores.mutable_data_ptr());
  score_steps(p, torch_parallel_for);
  return scores;
}

}  // namespace

}  // namespace ttc

STABLE_TORCH_LIBRARY_IMPL(ttc_kernels, CPU, m) {
  m.impl("score_steps", TORCH_BOX(&ttc::score_steps_op));
}
