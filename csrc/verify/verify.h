// Filtered distributions over the vocabulary, described in a few floats; tokens drawn from them; and
// drafts verified against them.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/parallel.h"

namespace ttc {

// Columns of a row descriptor, fp32. With it, for token i of a row with logit l:
//   kept      l > pivot, or l == pivot and i < tie_end
//   p(i)      exp((l - max) / temperature) / z if kept, else 0
// temperature 0 is greedy: only argmax is kept. A row without a distribution (a NaN, a +inf, or
// nothing above -inf) has argmax -1 and keeps nothing.
enum DescriptorColumn {
  kTemperature,
  kPivot,
  kTieEnd,    // the tie quota, as an index: where the kept logits equal to pivot end
  kLogZ,      // log of z
  kArgmax,    // lower index first
  kMax,
  kNumKept,
  kLogZAll,   // kLogZ before the filters
  kZ,         // the sum of exp((l - max) / temperature) over the kept tokens
  kDescriptorColumns,
};

// Logits [num_rows, vocab_size], dense last dimension.
struct LogitRows {
  const char* data = nullptr;
  int64_t stride = 0;  // bytes between rows
  Dtype dtype = Dtype::kFloat32;
  int64_t num_rows = 0;
  int64_t vocab_size = 0;            // at most 2^24: indices are kept in fp32
  const int32_t* bitmask = nullptr;  // [num_rows, mask_words]; token i needs bit i % 32 of word i / 32
  int64_t mask_words = 0;
};

struct RowFilters {
  const float* temperature = nullptr;  // all [num_rows]
  const int32_t* top_k = nullptr;      // 0 = off
  const float* top_p = nullptr;        // 1 = off
  const float* min_p = nullptr;        // 0 = off
};

struct RowDescriptorParams {
  LogitRows logits;
  RowFilters filters;
  float* descriptors;  // [num_rows, kDescriptorColumns]
};

void row_descriptor(const RowDescriptorParams& params, ParallelFor parallel_for);

struct SampleTokensParams {
  LogitRows logits;
  const float* descriptors;
  const int64_t* seeds;      // [num_rows], any bits
  const int64_t* positions;  // [num_rows], in [0, 2^56)
  int32_t* tokens;           // [num_rows], -1 for a row without a distribution
};

void sample_tokens(const SampleTokensParams& params, ParallelFor parallel_for);

enum class ChildMode { kTopK, kIid, kWithoutReplacement };

struct SampleChildrenParams {
  LogitRows logits;
  const float* descriptors;
  const int64_t* seeds;      // [num_rows]
  const int64_t* positions;  // [num_rows]
  const int32_t* streams;    // [num_rows], < 2^24
  int64_t k;                 // at most kMaxChildren
  ChildMode mode;
  bool target_noise;  // kWithoutReplacement: the noise of the target's own sampler
  int32_t* tokens;    // [num_rows, k], -1 where there are no more
  float* logprobs;    // [num_rows, k], log q of each, -inf for none
  float* scores;      // [num_rows, k], what they were ordered by
};

constexpr int64_t kMaxChildren = 256;

void sample_children(const SampleChildrenParams& params, ParallelFor parallel_for);

enum class VerifyRule {
  kGreedy,
  kSampled,
  kTargetOnly,
  kRejection,  // on a chain: the token rule
  kBlock,
  kTraversal,
  kTypical,
};

// How a draft node was chosen among its siblings.
enum class Proposal : int8_t { kOneHot, kIid, kWithoutReplacement };

enum VerifyStatus : int32_t {
  kOk = 0,
  kNoDistribution = 1,  // the walk came to a row without a distribution: its token is -1
  kInvalidTree = 2,     // nothing was verified
};

// What drafts were drawn from: logits with descriptors, or lists of ids, or nothing (one-hot).
struct DraftDist {
  LogitRows logits;                    // data null: not dense
  const float* descriptors = nullptr;  // of logits
  const int32_t* ids = nullptr;        // [num_rows, width], -1 padded; null: not sparse
  const float* logprobs = nullptr;     // [num_rows, width]
  int64_t num_rows = 0;
  int64_t width = 0;
  const int32_t* rows = nullptr;  // [num_nodes]: the row that a node's children were drawn from
  const int8_t* proposals = nullptr;  // [num_nodes], of each node; null: all one-hot
};

constexpr int64_t kMaxDraftNodes = 256;  // of one request

// Requests of draft nodes, packed: nodes cu_nodes[b] to cu_nodes[b + 1] belong to request b, a parent
// before its children. The first is the last committed token, whose row predicts its successor.
//
//   node     0      1      2      3      4          tree of request b, tokens in brackets
//   parent  -1      0      0      1      1          0 [the] +- 1 [cat] +- 3 [sat]
//   tokens  the    cat    dog    sat    is                  |          +- 4 [is]
//                                                           +- 2 [dog]
//
// A request without nodes is padding: its outputs are -1.
struct VerifyParams {
  LogitRows logits;    // a row for every node
  float* descriptors;  // [num_nodes, kDescriptorColumns]; with filters those that had to be made
  RowFilters filters;  // describe a row when the walk comes to it; temperature null: all are there
  const int32_t* tokens;    // [num_nodes]; outside the vocabulary: padding, never accepted
  const int32_t* parent;    // [num_nodes], within the request; null: chains
  const int32_t* cu_nodes;  // [num_requests + 1]
  int64_t num_requests;
  const int64_t* seeds;      // [num_requests]
  const int64_t* positions;  // [num_requests]: of the token that follows node 0
  const float* coins;        // [num_nodes] in place of random numbers, or null
  DraftDist draft;
  VerifyRule rule;
  float epsilon, delta;    // of kTypical
  int64_t width;           // columns of the outputs: the largest depth + 1
  int32_t* num_accepted;   // [num_requests]
  int32_t* out_tokens;     // [num_requests, width], -1 padded: accepted ones and the last
  int32_t* path;           // [num_requests, width], -1 padded: the node whose row gave the token
  float* logprobs;         // [num_requests, width], 0 padded; null: not wanted
  int32_t* status;         // [num_requests], VerifyStatus
};

void verify(const VerifyParams& params, ParallelFor parallel_for);

// Log-probabilities of given tokens in given rows.
struct TokenLogprobsParams {
  LogitRows logits;
  const float* descriptors;
  const int32_t* rows;    // [count], -1: none
  const int32_t* tokens;  // [count]
  int64_t count;
  float* processed;  // [count], under the filtered distribution
  float* raw;        // [count], softmax of the logits as they are; null: not wanted
};

void token_logprobs(const TokenLogprobsParams& params, ParallelFor parallel_for);

}  // namespace ttc
