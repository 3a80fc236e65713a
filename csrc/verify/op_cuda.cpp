// The verification ops on a GPU.
#include <torch/csrc/stable/library.h>

#include "common/op_cuda.h"
#include "verify/launch.h"
#include "verify/op_params.h"

namespace ttc {

namespace {

Tensor row_descriptor_op(const Tensor& logits, const Tensor& temperature, const Tensor& top_k, const Tensor& top_p,
                         const Tensor& min_p, const std::optional<Tensor>& bitmask) {
  const CudaLaunch launch("row_descriptor", logits, kWithoutCudaKernels);
  return with_row_descriptor_params(logits, temperature, top_k, top_p, min_p, bitmask, [&](const auto& params) {
    launch.check(row_descriptor_cuda(params, launch.stream()));
  });
}

Tensor sample_tokens_op(const Tensor& logits, const Tensor& desc, const Tensor& seeds, const Tensor& positions,
                        const std::optional<Tensor>& bitmask) {
  const CudaLaunch launch("sample_tokens", logits, kWithoutCudaKernels);
  return with_sample_tokens_params(logits, desc, seeds, positions, bitmask, [&](const auto& params) {
    launch.check(sample_tokens_cuda(params, launch.stream()));
  });
}

std::tuple<Tensor, Tensor, Tensor> sample_children_op(const Tensor& logits, const Tensor& desc, int64_t k,
                                                      std::string mode, bool target_noise, const Tensor& seeds,
                                                      const Tensor& positions, const Tensor& streams,
                                                      const std::optional<Tensor>& bitmask) {
  const CudaLaunch launch("sample_children", logits, kWithoutCudaKernels);
  return with_sample_children_params(
      logits, desc, k, mode, target_noise, seeds, positions, streams, bitmask,
      [&](const auto& params) { launch.check(sample_children_cuda(params, launch.stream())); });
}

std::tuple<Tensor, Tensor> token_logprobs_op(const Tensor& logits, const Tensor& desc, const Tensor& rows,
                                             const Tensor& tokens, bool raw, const std::optional<Tensor>& bitmask) {
  const CudaLaunch launch("token_logprobs", logits, kWithoutCudaKernels);
  return with_token_logprobs_params(logits, desc, rows, tokens, raw, bitmask, [&](const auto& params) {
    launch.check(token_logprobs_cuda(params, launch.stream()));
  });
}

// The rows of a path are as many turns of their request's block. As long as all rows take no more turns than
// that, each by a block of its own, they are described and drawn from first.
constexpr int64_t kRowsToAMultiprocessor = 4;

void verify_op(std::string op, std::string rule, const Tensor& logits, Tensor desc,
               const std::optional<Tensor>& temperature, const std::optional<Tensor>& top_k,
               const std::optional<Tensor>& top_p, const std::optional<Tensor>& min_p,
               const std::optional<Tensor>& bitmask, const Tensor& tokens, const std::optional<Tensor>& parent,
               const Tensor& cu_nodes, const Tensor& seeds, const Tensor& positions, const std::optional<Tensor>& coins,
               const std::optional<Tensor>& draft_logits, const std::optional<Tensor>& draft_desc,
               const std::optional<Tensor>& draft_ids, const std::optional<Tensor>& draft_logprobs,
               const std::optional<Tensor>& draft_rows, const std::optional<Tensor>& proposals, double epsilon,
               double delta, Tensor num_accepted, Tensor out_tokens, Tensor path, std::optional<Tensor> logprobs,
               Tensor status) {
  const CudaLaunch launch(op.c_str(), logits, kWithoutCudaKernels);
  with_verify_params(op, rule, logits, desc, temperature, top_k, top_p, min_p, bitmask, tokens, parent, cu_nodes, seeds,
                     positions, coins, draft_logits, draft_desc, draft_ids, draft_logprobs, draft_rows, proposals,
                     epsilon, delta, num_accepted, out_tokens, path, logprobs, status, [&](const auto& params) {
                       const int64_t rows = params.logits.num_rows;
                       const bool eager = rows <= kRowsToAMultiprocessor * launch.multiprocessors();
                       const bool draws = eager && params.rule == VerifyRule::kSampled;
                       Tensor drawn = torch::stable::new_empty(logits, {draws ? rows : 0}, ScalarType::Int);
                       auto* to = draws ? static_cast<int32_t*>(drawn.mutable_data_ptr()) : nullptr;
                       launch.check(verify_cuda(params, eager, to, launch.stream()));
                     });
}

}  // namespace

}  // namespace ttc

STABLE_TORCH_LIBRARY_IMPL(ttc_kernels, CUDA, m) {
  m.impl("row_descriptor", TORCH_BOX(&ttc::row_descriptor_op));
  m.impl("sample_tokens", TORCH_BOX(&ttc::sample_tokens_op));
  m.impl("sample_children", TORCH_BOX(&ttc::sample_children_op));
  m.impl("token_logprobs", TORCH_BOX(&ttc::token_logprobs_op));
  m.impl("verify", TORCH_BOX(&ttc::verify_op));
}
