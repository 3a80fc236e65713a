// The CUDA kernels of csrc/verify in the emulator, launched as on a GPU.
#include "cuda_emulator.h"
#include "verify/row_ops.cu"
#include "verify/walk.cu"
// These instantiate what walk.cu declares.
#include "verify/walk_rejection.cu"
#include "verify/walk_target.cu"
#include "verify/walk_traversal.cu"

namespace {

template <class Launch>
const char* run(const Launch& launch) {
  return emu::guarded([&] {
    if (launch() != cudaSuccess) throw std::runtime_error("the launch failed");
  });
}

ttc::LogitRows rows(const char* data, int64_t stride, int64_t dtype, int64_t num_rows, int64_t vocab_size,
                    const int32_t* bitmask) {
  ttc::LogitRows logits;
  logits.data = data;
  logits.stride = stride;
  logits.dtype = static_cast<ttc::Dtype>(dtype);
  logits.num_rows = num_rows;
  logits.vocab_size = vocab_size;
  logits.bitmask = bitmask;
  logits.mask_words = bitmask == nullptr ? 0 : (vocab_size + 31) / 32;
  return logits;
}

}  // namespace

// What describes logits in every call: see _logits in emulated.py.
#define LOGITS                                                                                                \
  const char *data, int64_t stride, int64_t dtype, int64_t num_rows, int64_t vocab_size, const int32_t* bitmask
#define ROWS rows(data, stride, dtype, num_rows, vocab_size, bitmask)

extern "C" {

const char* row_descriptor(LOGITS, const float* temperature, const int32_t* top_k, const float* top_p,
                           const float* min_p, float* descriptors) {
  return run(
      [&] { return ttc::row_descriptor_cuda({ROWS, {temperature, top_k, top_p, min_p}, descriptors}, nullptr); });
}

const char* sample_tokens(LOGITS, const float* descriptors, const int64_t* seeds, const int64_t* positions,
                          int32_t* tokens) {
  return run([&] { return ttc::sample_tokens_cuda({ROWS, descriptors, seeds, positions, tokens}, nullptr); });
}

const char* sample_children(LOGITS, const float* descriptors, const int64_t* seeds, const int64_t* positions,
                            const int32_t* streams, int64_t k, int64_t mode, int64_t target_noise, int32_t* tokens,
                            float* logprobs, float* scores) {
  return run([&] {
    return ttc::sample_children_cuda({ROWS, descriptors, seeds, positions, streams, k, static_cast<ttc::ChildMode>(mode),
                                      target_noise != 0, tokens, logprobs, scores},
                                     nullptr);
  });
}

const char* token_logprobs(LOGITS, const float* descriptors, const int32_t* token_rows, const int32_t* tokens,
                           int64_t count, float* processed, float* raw) {
  return run(
      [&] { return ttc::token_logprobs_cuda({ROWS, descriptors, token_rows, tokens, count, processed, raw}, nullptr); });
}

const char* verify(int64_t eager, int32_t* drawn, int64_t rule, LOGITS, float* descriptors, const float* temperature,
                   const int32_t* top_k, const float* top_p, const float* min_p, const int32_t* tokens,
                   const int32_t* parent, const int32_t* cu_nodes, int64_t num_requests, const int64_t* seeds,
                   const int64_t* positions, const float* coins, const char* draft_data, int64_t draft_stride,
                   const float* draft_descriptors, const int32_t* draft_ids, const float* draft_logprobs,
                   int64_t draft_num_rows, int64_t draft_width, const int32_t* draft_rows, const int8_t* proposals,
                   double epsilon, double delta, int64_t width, int32_t* num_accepted, int32_t* out_tokens,
                   int32_t* path, float* logprobs, int32_t* status) {
  ttc::VerifyParams p;
  p.logits = ROWS;
  p.descriptors = descriptors;
  p.filters = {temperature, top_k, top_p, min_p};
  p.tokens = tokens;
  p.parent = parent;
  p.cu_nodes = cu_nodes;
  p.num_requests = num_requests;
  p.seeds = seeds;
  p.positions = positions;
  p.coins = coins;
  p.draft.logits = rows(draft_data, draft_stride, dtype, draft_num_rows, vocab_size, nullptr);
  p.draft.descriptors = draft_descriptors;
  p.draft.ids = draft_ids;
  p.draft.logprobs = draft_logprobs;
  p.draft.num_rows = draft_num_rows;
  p.draft.width = draft_width;
  p.draft.rows = draft_rows;
  p.draft.proposals = proposals;
  p.rule = static_cast<ttc::VerifyRule>(rule);
  p.epsilon = static_cast<float>(epsilon);
  p.delta = static_cast<float>(delta);
  p.width = width;
  p.num_accepted = num_accepted;
  p.out_tokens = out_tokens;
  p.path = path;
  p.logprobs = logprobs;
  p.status = status;
  return run([&] { return ttc::verify_cuda(p, eager != 0, drawn, nullptr); });
}
}
