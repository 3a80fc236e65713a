// What the ops of this folder share on a CPU and on a GPU: the checks, the results, the parameters. Values
// on a GPU are not looked at: that would wait for it.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "common/op_check.h"
#include "verify/verify.h"

namespace ttc {

constexpr int64_t kMaxVocab = int64_t{1} << 24;
constexpr int64_t kMaxPosition = int64_t{1} << 56;

// How many of n values are looked at; asking a tensor where it lies is too slow for a loop.
inline int64_t num_seen(const Tensor& tensor, int64_t n) { return tensor.is_cpu() ? n : 0; }

inline LogitRows logit_rows(const char* op, const Tensor& logits, const std::optional<Tensor>& bitmask,
                            const Tensor& like, const char* name = "logits") {
  const Dtype dtype = float_dtype(op, name, logits);
  require(same_device(logits, like) && logits.dim() == 2 && logits.size(1) >= 1 && logits.size(1) <= kMaxVocab &&
              (logits.stride(1) == 1 || logits.size(1) == 1),
          op, ": ", name, " must be [N, V] on ", device_name(like), " with a dense last dimension and V in [1, ",
          kMaxVocab, "], got ", describe(logits));
  LogitRows rows;
  rows.data = static_cast<const char*>(logits.const_data_ptr());
  rows.stride = logits.stride(0) * dtype_bytes(dtype);
  rows.dtype = dtype;
  rows.num_rows = logits.size(0);
  rows.vocab_size = logits.size(1);
  if (bitmask) {
    rows.mask_words = (rows.vocab_size + 31) / 32;
    require_tensor(op, "bitmask", *bitmask, ScalarType::Int, {rows.num_rows, rows.mask_words}, &like);
    rows.bitmask = static_cast<const int32_t*>(bitmask->const_data_ptr());
  }
  return rows;
}

template <typename T>
const T* vector_of(const char* op, const char* name, const Tensor& tensor, ScalarType dtype, int64_t size,
                   const Tensor& like) {
  require_tensor(op, name, tensor, dtype, {size}, &like);
  return static_cast<const T*>(tensor.const_data_ptr());
}

inline RowFilters row_filters(const char* op, const Tensor& temperature, const Tensor& top_k, const Tensor& top_p,
                              const Tensor& min_p, int64_t n, const Tensor& like) {
  RowFilters f;
  f.temperature = vector_of<float>(op, "temperature", temperature, ScalarType::Float, n, like);
  f.top_k = vector_of<int32_t>(op, "top_k", top_k, ScalarType::Int, n, like);
  f.top_p = vector_of<float>(op, "top_p", top_p, ScalarType::Float, n, like);
  f.min_p = vector_of<float>(op, "min_p", min_p, ScalarType::Float, n, like);
  for (int64_t r = 0, end = num_seen(like, n); r < end; ++r) {
    const float t = f.temperature[r];
    // 1 / t has to be finite.
    using Limits = std::numeric_limits<float>;
    const bool usable = t >= Limits::min() && t <= Limits::max();
    require(t == 0.0f || usable, op, ": temperature[", r,
            "] must be 0 (greedy) or positive and "
            "finite, got ",
            t);
    require(f.top_k[r] >= 0, op, ": top_k[", r, "] must be >= 0 (0 = off), got ", f.top_k[r]);
    require(f.top_p[r] > 0.0f && f.top_p[r] <= 1.0f, op, ": top_p[", r, "] must be in (0, 1] (1 = off), got ",
            f.top_p[r]);
    require(f.min_p[r] >= 0.0f && f.min_p[r] <= 1.0f, op, ": min_p[", r, "] must be in [0, 1] (0 = off), got ",
            f.min_p[r]);
  }
  return f;
}

inline const float* descriptors_of(const char* op, const char* name, const Tensor& desc, const LogitRows& logits,
                                   bool filled, const Tensor& like) {
  require_tensor(op, name, desc, ScalarType::Float, {logits.num_rows, kDescriptorColumns}, &like);
  const auto* data = static_cast<const float*>(desc.const_data_ptr());
  for (int64_t r = 0, end = filled ? num_seen(like, logits.num_rows) : 0; r < end; ++r) {
    const float argmax = data[r * kDescriptorColumns + kArgmax];
    require(argmax >= -1.0f && argmax < static_cast<float>(logits.vocab_size), op, ": ", name, "[", r,
            "] must come from row_descriptor of these logits, but its argmax is ", argmax);
  }
  return data;
}

inline const int64_t* positions_of(const char* op, const Tensor& positions, int64_t n, int64_t longest,
                                   const Tensor& like) {
  const auto* data = vector_of<int64_t>(op, "positions", positions, ScalarType::Long, n, like);
  for (int64_t r = 0, end = num_seen(like, n); r < end; ++r) {
    require(data[r] >= 0 && data[r] < kMaxPosition - longest, op, ": positions[", r, "] must be in [0, 2^56), got ",
            data[r]);
  }
  return data;
}

inline VerifyRule verify_rule(const std::string& rule) {
  constexpr const char* names[] = {"greedy", "sampled", "target_only", "rejection", "block", "traversal", "typical"};
  for (int i = 0; i < 7; ++i) {
    if (rule == names[i]) return static_cast<VerifyRule>(i);
  }
  require(false, "verify: unknown rule '", rule, "'");
  return VerifyRule::kGreedy;
}

// Whether the nodes are trees, and not deeper than the outputs are wide.
inline void check_nodes(const std::string& op, const VerifyParams& p, int64_t num_nodes) {
  require(p.cu_nodes[0] == 0 && p.cu_nodes[p.num_requests] == num_nodes, op,
          ": cu_nodes must begin with 0 and end with ", num_nodes, ", got ", p.cu_nodes[0], " and ",
          p.cu_nodes[p.num_requests]);
  for (int64_t b = 0; b < p.num_requests; ++b) {
    const int64_t begin = p.cu_nodes[b], count = p.cu_nodes[b + 1] - begin;
    require(count >= 0 && count <= kMaxDraftNodes, op, ": request ", b, " must have 0 to ", kMaxDraftNodes,
            " nodes, got ", count);
    int32_t depth[kMaxDraftNodes] = {};
    for (int64_t v = 0; v < count; ++v) {
      const int64_t u = p.parent == nullptr ? v - 1 : p.parent[begin + v];
      require(v == 0 ? u == -1 : u >= 0 && u < v, op, ": parent[", begin + v, "] must be ",
              v == 0 ? "-1, the root's" : "an earlier node of its request", ", got ", u);
      depth[v] = v == 0 ? 0 : depth[u] + 1;
      require(depth[v] < p.width, op, ": the outputs must have more than ", depth[v], " columns for node ", v,
              " of request ", b, ", got ", p.width);
    }
  }
}

inline DraftDist draft_params(const std::string& name, const std::optional<Tensor>& logits,
                              const std::optional<Tensor>& desc, const std::optional<Tensor>& ids,
                              const std::optional<Tensor>& logprobs, const std::optional<Tensor>& rows,
                              const std::optional<Tensor>& proposals, int64_t num_nodes, int64_t vocab_size,
                              const Tensor& like) {
  const char* op = name.c_str();
  DraftDist d;
  if (!proposals) return d;
  d.proposals = vector_of<int8_t>(op, "proposals", *proposals, ScalarType::Char, num_nodes, like);
  bool drawn = !like.is_cpu();  // on a GPU nobody looks
  for (int64_t v = 0, end = num_seen(like, num_nodes); v < end; ++v) {
    require(d.proposals[v] >= 0 && d.proposals[v] <= 2, op, ": proposals[", v,
            "] must be 0 (one-hot), 1 (iid) or 2 (without replacement), got ", int(d.proposals[v]));
    drawn |= d.proposals[v] != 0;
  }
  if (logits) {
    require(desc.has_value(), op, ": the draft's logits need descriptors");
    d.logits = logit_rows(op, *logits, {}, like, "draft logits");
    require(d.logits.vocab_size == vocab_size, op, ": draft logits must be [R, ", vocab_size, "], got ",
            describe(*logits));
    d.descriptors = descriptors_of(op, "draft desc", *desc, d.logits, true, like);
    d.num_rows = d.logits.num_rows;
  } else if (ids) {
    require(logprobs.has_value(), op, ": the draft's ids need logprobs");
    require_tensor(op, "draft ids", *ids, ScalarType::Int, {kAnySize, kAnySize}, &like);
    d.num_rows = ids->size(0);
    d.width = ids->size(1);
    require_tensor(op, "draft logprobs", *logprobs, ScalarType::Float, {d.num_rows, d.width}, &like);
    d.ids = static_cast<const int32_t*>(ids->const_data_ptr());
    d.logprobs = static_cast<const float*>(logprobs->const_data_ptr());
  } else {
    require(!drawn, op, ": drafts that were drawn need the distribution that they were drawn from");
  }
  if (rows) {
    d.rows = vector_of<int32_t>(op, "draft rows", *rows, ScalarType::Int, num_nodes, like);
    for (int64_t v = 0, end = num_seen(like, num_nodes); v < end; ++v) {
      require(d.rows[v] >= -1 && d.rows[v] < d.num_rows, op, ": draft rows[", v, "] must be -1 (none) or in [0, ",
              d.num_rows, "), got ", d.rows[v]);
    }
  } else if (drawn) {
    require(d.num_rows == num_nodes, op, ": without rows, the draft must have a row for each of the ", num_nodes,
            " nodes, got ", d.num_rows);
  }
  return d;
}

// Whether what drafts were drawn from, where it is a few tokens, is a distribution of them.
inline void check_sparse_draft(const std::string& op, const VerifyParams& p) {
  const DraftDist& d = p.draft;
  if (d.ids == nullptr) return;
  std::vector<int32_t> ids;
  int64_t checked = -1;
  for (int64_t b = 0; b < p.num_requests; ++b) {
    for (int64_t v = p.cu_nodes[b] + 1; v < p.cu_nodes[b + 1]; ++v) {
      if (d.proposals[v] == 0 || p.tokens[v] < 0 || p.tokens[v] >= p.logits.vocab_size) continue;
      const int64_t u = p.parent == nullptr ? v - 1 : p.cu_nodes[b] + p.parent[v];
      const int64_t r = d.rows == nullptr ? u : d.rows[u];
      if (r < 0 || r == checked) continue;
      checked = r;
      ids.assign(d.ids + r * d.width, d.ids + (r + 1) * d.width);
      double sum = 0;
      for (int64_t k = 0; k < d.width; ++k) {
        require(ids[k] >= -1 && ids[k] < p.logits.vocab_size, op, ": draft ids[", r, "][", k,
                "] must be -1 (none) or in [0, ", p.logits.vocab_size, "), got ", ids[k]);
        if (ids[k] >= 0) sum += std::exp(static_cast<double>(d.logprobs[r * d.width + k]));
      }
      require(sum > 0.999 && sum < 1.001, op, ": draft logprobs[", r,
              "] must be those of a distribution over its ids, but the probabilities sum to ", sum);
      std::sort(ids.begin(), ids.end());
      for (int64_t k = 1; k < d.width; ++k) {
        require(ids[k] < 0 || ids[k] != ids[k - 1], op, ": draft ids[", r, "] must be distinct, but ", ids[k],
                " is there twice");
      }
    }
  }
}

template <typename T>
T* output_of(const char* op, const char* name, Tensor& tensor, ScalarType dtype, std::initializer_list<int64_t> shape,
             const Tensor& like) {
  require_tensor(op, name, tensor, dtype, shape, &like);
  return static_cast<T*>(tensor.mutable_data_ptr());
}

template <class Run>
Tensor with_row_descriptor_params(const Tensor& logits, const Tensor& temperature, const Tensor& top_k,
                                  const Tensor& top_p, const Tensor& min_p, const std::optional<Tensor>& bitmask,
                                  const Run& run) {
  constexpr const char* op = "row_descriptor";
  RowDescriptorParams p;
  p.logits = logit_rows(op, logits, bitmask, logits);
  p.filters = row_filters(op, temperature, top_k, top_p, min_p, p.logits.num_rows, logits);
  Tensor out = torch::stable::new_empty(logits, {p.logits.num_rows, kDescriptorColumns}, ScalarType::Float);
  p.descriptors = static_cast<float*>(out.mutable_data_ptr());
  run(p);
  return out;
}

template <class Run>
Tensor with_sample_tokens_params(const Tensor& logits, const Tensor& desc, const Tensor& seeds, const Tensor& positions,
                                 const std::optional<Tensor>& bitmask, const Run& run) {
  constexpr const char* op = "sample_tokens";
  SampleTokensParams p;
  p.logits = logit_rows(op, logits, bitmask, logits);
  const int64_t n = p.logits.num_rows;
  p.descriptors = descriptors_of(op, "desc", desc, p.logits, true, logits);
  p.seeds = vector_of<int64_t>(op, "seeds", seeds, ScalarType::Long, n, logits);
  p.positions = positions_of(op, positions, n, 0, logits);
  Tensor tokens = torch::stable::new_empty(logits, {n}, ScalarType::Int);
  p.tokens = static_cast<int32_t*>(tokens.mutable_data_ptr());
  run(p);
  return tokens;
}

template <class Run>
std::tuple<Tensor, Tensor, Tensor> with_sample_children_params(const Tensor& logits, const Tensor& desc, int64_t k,
                                                               const std::string& mode, bool target_noise,
                                                               const Tensor& seeds, const Tensor& positions,
                                                               const Tensor& streams,
                                                               const std::optional<Tensor>& bitmask, const Run& run) {
  constexpr const char* op = "sample_children";
  SampleChildrenParams p;
  p.logits = logit_rows(op, logits, bitmask, logits);
  const int64_t n = p.logits.num_rows;
  p.descriptors = descriptors_of(op, "desc", desc, p.logits, true, logits);
  require(k >= 1 && k <= kMaxChildren, op, ": k must be in [1, ", kMaxChildren, "], got ", k);
  p.k = k;
  require(mode == "topk" || mode == "iid" || mode == "without_replacement", op,
          ": mode must be 'topk', 'iid' or 'without_replacement', got '", mode, "'");
  p.mode = mode == "topk" ? ChildMode::kTopK : mode == "iid" ? ChildMode::kIid : ChildMode::kWithoutReplacement;
  p.target_noise = target_noise;
  p.seeds = vector_of<int64_t>(op, "seeds", seeds, ScalarType::Long, n, logits);
  p.positions = positions_of(op, positions, n, 0, logits);
  p.streams = vector_of<int32_t>(op, "streams", streams, ScalarType::Int, n, logits);
  for (int64_t r = 0, end = num_seen(logits, n); r < end; ++r) {
    require(p.streams[r] >= 0 && p.streams[r] < (1 << 24), op, ": streams[", r, "] must be in [0, 2^24), got ",
            p.streams[r]);
  }
  Tensor tokens = torch::stable::new_empty(logits, {n, k}, ScalarType::Int);
  Tensor logprobs = torch::stable::new_empty(logits, {n, k}, ScalarType::Float);
  Tensor scores = torch::stable::new_empty(logits, {n, k}, ScalarType::Float);
  p.tokens = static_cast<int32_t*>(tokens.mutable_data_ptr());
  p.logprobs = static_cast<float*>(logprobs.mutable_data_ptr());
  p.scores = static_cast<float*>(scores.mutable_data_ptr());
  run(p);
  return {tokens, logprobs, scores};
}

template <class Run>
void with_verify_params(const std::string& op_name, const std::string& rule, const Tensor& logits, Tensor& desc,
                        const std::optional<Tensor>& temperature, const std::optional<Tensor>& top_k,
                        const std::optional<Tensor>& top_p, const std::optional<Tensor>& min_p,
                        const std::optional<Tensor>& bitmask, const Tensor& tokens, const std::optional<Tensor>& parent,
                        const Tensor& cu_nodes, const Tensor& seeds, const Tensor& positions,
                        const std::optional<Tensor>& coins, const std::optional<Tensor>& draft_logits,
                        const std::optional<Tensor>& draft_desc, const std::optional<Tensor>& draft_ids,
                        const std::optional<Tensor>& draft_logprobs, const std::optional<Tensor>& draft_rows,
                        const std::optional<Tensor>& proposals, double epsilon, double delta, Tensor& num_accepted,
                        Tensor& out_tokens, Tensor& path, std::optional<Tensor>& logprobs, Tensor& status,
                        const Run& run) {
  const char* op = op_name.c_str();
  VerifyParams p;
  p.rule = verify_rule(rule);
  p.logits = logit_rows(op, logits, bitmask, logits);
  const int64_t n = p.logits.num_rows;
  if (temperature) {
    require(top_k && top_p && min_p, op, ": top_k, top_p and min_p come with temperature");
    p.filters = row_filters(op, *temperature, *top_k, *top_p, *min_p, n, logits);
  }
  descriptors_of(op, "desc", desc, p.logits, !temperature.has_value(), logits);
  p.descriptors = static_cast<float*>(desc.mutable_data_ptr());
  p.tokens = vector_of<int32_t>(op, "tokens", tokens, ScalarType::Int, n, logits);
  p.parent = parent ? vector_of<int32_t>(op, "parent", *parent, ScalarType::Int, n, logits) : nullptr;
  require_tensor(op, "cu_nodes", cu_nodes, ScalarType::Int, {kAnySize}, &logits);
  p.num_requests = cu_nodes.size(0) - 1;
  require(p.num_requests >= 0, op, ": cu_nodes must have at least one entry");
  p.cu_nodes = static_cast<const int32_t*>(cu_nodes.const_data_ptr());
  p.seeds = vector_of<int64_t>(op, "seeds", seeds, ScalarType::Long, p.num_requests, logits);
  p.positions = positions_of(op, positions, p.num_requests, kMaxDraftNodes, logits);
  p.coins = nullptr;
  if (coins) {
    p.coins = vector_of<float>(op, "coins", *coins, ScalarType::Float, n, logits);
    for (int64_t v = 0, end = num_seen(logits, n); v < end; ++v) {
      require(p.coins[v] >= 0.0f && p.coins[v] < 1.0f, op, ": coins[", v, "] must be in [0, 1), got ", p.coins[v]);
    }
  }
  p.draft = draft_params(op_name, draft_logits, draft_desc, draft_ids, draft_logprobs, draft_rows, proposals, n,
                         p.logits.vocab_size, logits);
  p.epsilon = static_cast<float>(epsilon);
  p.delta = static_cast<float>(delta);
  const int64_t b = p.num_requests;
  require_tensor(op, "out.tokens", out_tokens, ScalarType::Int, {b, kAnySize}, &logits);
  p.width = out_tokens.size(1);
  p.out_tokens = static_cast<int32_t*>(out_tokens.mutable_data_ptr());
  p.path = output_of<int32_t>(op, "out.path", path, ScalarType::Int, {b, p.width}, logits);
  p.logprobs = nullptr;
  if (logprobs) {
    p.logprobs = output_of<float>(op, "out.logprobs", *logprobs, ScalarType::Float, {b, p.width}, logits);
  }
  p.num_accepted = output_of<int32_t>(op, "out.num_accepted", num_accepted, ScalarType::Int, {b}, logits);
  p.status = output_of<int32_t>(op, "out.status", status, ScalarType::Int, {b}, logits);
  if (logits.is_cpu()) {
    check_nodes(op_name, p, n);
    check_sparse_draft(op_name, p);
  }
  run(p);
}

template <class Run>
std::tuple<Tensor, Tensor> with_token_logprobs_params(const Tensor& logits, const Tensor& desc, const Tensor& rows,
                                                      const Tensor& tokens, bool raw,
                                                      const std::optional<Tensor>& bitmask, const Run& run) {
  constexpr const char* op = "token_logprobs";
  TokenLogprobsParams p;
  p.logits = logit_rows(op, logits, bitmask, logits);
  p.descriptors = descriptors_of(op, "desc", desc, p.logits, false, logits);
  require_tensor(op, "rows", rows, ScalarType::Int, {kAnySize}, &logits);
  p.count = rows.size(0);
  p.rows = static_cast<const int32_t*>(rows.const_data_ptr());
  p.tokens = vector_of<int32_t>(op, "tokens", tokens, ScalarType::Int, p.count, logits);
  for (int64_t i = 0, end = num_seen(logits, p.count); i < end; ++i) {
    require(p.rows[i] >= -1 && p.rows[i] < p.logits.num_rows, op, ": rows[", i, "] must be -1 (none) or in [0, ",
            p.logits.num_rows, "), got ", p.rows[i]);
    require(p.rows[i] < 0 || (p.tokens[i] >= -1 && p.tokens[i] < p.logits.vocab_size), op, ": tokens[", i,
            "] must be -1 (none) or in [0, ", p.logits.vocab_size, "), got ", p.tokens[i]);
  }
  Tensor processed = torch::stable::new_empty(logits, {p.count}, ScalarType::Float);
  Tensor plain = torch::stable::new_empty(logits, {raw ? p.count : 0}, ScalarType::Float);
  p.processed = static_cast<float*>(processed.mutable_data_ptr());
  p.raw = raw ? static_cast<float*>(plain.mutable_data_ptr()) : nullptr;
  run(p);
  return {processed, plain};
}

}  // namespace ttc
