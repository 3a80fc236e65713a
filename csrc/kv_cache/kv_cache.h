// Moves of K and V in paged caches [num_pages, page_size, num_kv_heads, head_dim]. Bytes are copied
// as they are, whatever the dtype.
#pragma once

#include <cstdint>
#include <vector>

#include "common/parallel.h"

namespace ttc {

// New tokens [num_tokens, num_kv_heads, head_dim]: the last dimension is dense, strides in bytes.
struct NewTokens {
  const char* data;
  int64_t token_stride;
  int64_t head_stride;
};

struct WriteKvParams {
  NewTokens k;
  NewTokens v;
  char* k_cache;
  char* v_cache;
  const int32_t* slots;  // [num_tokens], page * page_size + offset, -1 writes nothing
  int64_t num_tokens;
  int64_t num_kv_heads;
  int64_t head_bytes;
};

void write_kv(const WriteKvParams& params, ParallelFor parallel_for);

struct CopyPagesParams {
  std::vector<char*> caches;  // K and V of all layers
  const int32_t* copies;      // [num_copies, 3]: src_page, dst_page, num_tokens, run in order
  int64_t num_copies;
  int64_t page_bytes;
  int64_t token_bytes;
};

void copy_pages(const CopyPagesParams& params, ParallelFor parallel_for);

struct CommitKvParams {
  std::vector<char*> caches;  // K and V of all layers
  const int32_t* src_slots;   // [num_tokens], page * page_size + offset; -1 in either skips
  const int32_t* dst_slots;   // [num_tokens]
  int64_t num_tokens;
  int64_t token_bytes;
};

// Moves tokens in order; no destination is the source of a later token.
void commit_kv(const CommitKvParams& params, ParallelFor parallel_for);

}  // namespace ttc
