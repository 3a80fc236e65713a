// torch.ops.ttc_kernels.row_descriptor and sample_tokens on the CPU.
#include <torch/csrc/stable/library.h>

#include <limits>

#include "common/op_check.h"
#include "verify/verify.h"

namespace ttc {

namespace {

constexpr int64_t kMaxVocab = int64_t{1} << 24;
constexpr int64_t kMaxPosition = int64_t{1} << 56;

LogitRows logit_rows(const char* op, const Tensor& logits) {
  const Dtype dtype = float_dtype(op, "logits", logits);
  require(logits.is_cpu() && logits.dim() == 2 && logits.size(1) >= 1 &&
              logits.size(1) <= kMaxVocab && (logits.stride(1) == 1 || logits.size(1) == 1),
          op, ": logits must be [N, V] on cpu with a dense last dimension and V in [1, ", kMaxVocab,
          "], got ", describe(logits));
  return {static_cast<const char*>(logits.const_data_ptr()), logits.stride(0) * dtype_bytes(dtype),
          dtype, logits.size(0), logits.size(1)};
}

template <typename T>
const T* per_row(const char* op, const char* name, const Tensor& tensor, ScalarType dtype,
                 int64_t num_rows) {
  require_tensor(op, name, tensor, dtype, {num_rows});
  return static_cast<const T*>(tensor.const_data_ptr());
}

Tensor row_descriptor_op(const Tensor& logits, const Tensor& temperature, const Tensor& top_k,
                         const Tensor& top_p, const Tensor& min_p) {
  constexpr const char* op = "row_descriptor";
  RowDescriptorParams p;
  p.logits = logit_rows(op, logits);
  const int64_t n = p.logits.num_rows;
  p.temperature = per_row<float>(op, "temperature", temperature, ScalarType::Float, n);
  p.top_k = per_row<int32_t>(op, "top_k", top_k, ScalarType::Int, n);
  p.top_p = per_row<float>(op, "top_p", top_p, ScalarType::Float, n);
  p.min_p = per_row<float>(op, "min_p", min_p, ScalarType::Float, n);
  for (int64_t r = 0; r < n; ++r) {
    const float t = p.temperature[r];
    // 1 / t has to be finite.
    using Limits = std::numeric_limits<float>;
    const bool usable = t >= Limits::min() && t <= Limits::max();
    require(t == 0.0f || usable, op, ": temperature[", r, "] must be 0 (greedy) or positive and "
            "finite, got ", t);
    require(p.top_k[r] >= 0, op, ": top_k[", r, "] must be >= 0 (0 = off), got ", p.top_k[r]);
    require(p.top_p[r] > 0.0f && p.top_p[r] <= 1.0f, op, ": top_p[", r,
            "] must be in (0, 1] (1 = off), got ", p.top_p[r]);
    require(p.min_p[r] >= 0.0f && p.min_p[r] <= 1.0f, op, ": min_p[", r,
            "] must be in [0, 1] (0 = off), got ", p.min_p[r]);
  }
  Tensor out = torch::stable::new_empty(logits, {n, kDescriptorColumns}, ScalarType::Float);
  p.descriptors = static_cast<float*>(out.mutable_data_ptr());
  row_descriptor(p, torch_parallel_for);
  return out;
}

Tensor sample_tokens_op(const Tensor& logits, const Tensor& desc, const Tensor& seeds,
                        const Tensor& positions) {
  constexpr const char* op = "sample_tokens";
  SampleTokensParams p;
  p.logits = logit_rows(op, logits);
  const int64_t n = p.logits.num_rows;
  require_tensor(op, "desc", desc, ScalarType::Float, {n, kDescriptorColumns});
  p.descriptors = static_cast<const float*>(desc.const_data_ptr());
  p.seeds = per_row<int64_t>(op, "seeds", seeds, ScalarType::Long, n);
  p.positions = per_row<int64_t>(op, "positions", positions, ScalarType::Long, n);
  for (int64_t r = 0; r < n; ++r) {
    const float argmax = p.descriptors[r * kDescriptorColumns + kArgmax];
    require(argmax >= -1.0f && argmax < static_cast<float>(p.logits.vocab_size), op, ": desc[", r,
            "] must come from row_descriptor of these logits, but its argmax is ", argmax);
    require(p.positions[r] >= 0 && p.positions[r] < kMaxPosition, op, ": positions[", r,
            "] must be in [0, 2^56), got ", p.positions[r]);
  }
  Tensor tokens = torch::stable::new_empty(logits, {n}, ScalarType::Int);
  p.tokens = static_cast<int32_t*>(tokens.mutable_data_ptr());
  sample_tokens(p, torch_parallel_for);
  return tokens;
}

}  // namespace

}  // namespace ttc

STABLE_TORCH_LIBRARY_IMPL(ttc_kernels, CPU, m) {
  m.impl("row_descriptor", TORCH_BOX(&ttc::row_descriptor_op));
  m.impl("sample_tokens", TORCH_BOX(&ttc::sample_tokens_op));
}
