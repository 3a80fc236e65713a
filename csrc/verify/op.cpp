// The verification ops on the CPU.
#include <torch/csrc/stable/library.h>

#include "verify/op_params.h"

namespace ttc {

namespace {

Tensor row_descriptor_op(const Tensor& logits, const Tensor& temperature, const Tensor& top_k, const Tensor& top_p,
                         const Tensor& min_p, const std::optional<Tensor>& bitmask) {
  return with_row_descriptor_params(logits, temperature, top_k, top_p, min_p, bitmask,
                                    [](const auto& params) { row_descriptor(params, torch_parallel_for); });
}

Tensor sample_tokens_op(const Tensor& logits, const Tensor& desc, const Tensor& seeds, const Tensor& positions,
                        const std::optional<Tensor>& bitmask) {
  return with_sample_tokens_params(logits, desc, seeds, positions, bitmask,
                                   [](const auto& params) { sample_tokens(params, torch_parallel_for); });
}

std::tuple<Tensor, Tensor, Tensor> sample_children_op(const Tensor& logits, const Tensor& desc, int64_t k,
                                                      std::string mode, bool target_noise, const Tensor& seeds,
                                                      const Tensor& positions, const Tensor& streams,
                                                      const std::optional<Tensor>& bitmask) {
  return with_sample_children_params(logits, desc, k, mode, target_noise, seeds, positions, streams, bitmask,
                                     [](const auto& params) { sample_children(params, torch_parallel_for); });
}

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
  with_verify_params(op, rule, logits, desc, temperature, top_k, top_p, min_p, bitmask, tokens, parent, cu_nodes, seeds,
                     positions, coins, draft_logits, draft_desc, draft_ids, draft_logprobs, draft_rows, proposals,
                     epsilon, delta, num_accepted, out_tokens, path, logprobs, status,
                     [](const auto& params) { verify(params, torch_parallel_for); });
}

std::tuple<Tensor, Tensor> token_logprobs_op(const Tensor& logits, const Tensor& desc, const Tensor& rows,
                                             const Tensor& tokens, bool raw, const std::optional<Tensor>& bitmask) {
  return with_token_logprobs_params(logits, desc, rows, tokens, raw, bitmask,
                                    [](const auto& params) { token_logprobs(params, torch_parallel_for); });
}

}  // namespace

}  // namespace ttc

STABLE_TORCH_LIBRARY_IMPL(ttc_kernels, CPU, m) {
  m.impl("row_descriptor", TORCH_BOX(&ttc::row_descriptor_op));
  m.impl("sample_tokens", TORCH_BOX(&ttc::sample_tokens_op));
  m.impl("sample_children", TORCH_BOX(&ttc::sample_children_op));
  m.impl("verify", TORCH_BOX(&ttc::verify_op));
  m.impl("token_logprobs", TORCH_BOX(&ttc::token_logprobs_op));
}
