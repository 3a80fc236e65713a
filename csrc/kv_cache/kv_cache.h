// Moves of K and V in paged caches [num_pages, page_size, num_kv_heads, head_dim].
#pragma once

#include <cstdint>
#include <vector>

#include "common/dtype.h"
#include "common/parallel.h"

namespace ttc {

// New tokens [num_tokens, num_kv_heads, head_dim]: the last dimension is dense, strides in bytes.
struct NewTokens {
  const char* data;
  int64_t token_stride;
  int64_t head_stride;
};

// What e4m3 caches divide by: a number for all heads, or one for each.
struct KvScale {
  float number;
  const float* per_head;  // [num_kv_heads], or null
};

// Rotary embedding (Su et al., 2021) of the first `dim` elements of every head of K. Pairs are
// (i, i + dim / 2), or interleaved (2i, 2i + 1); in fp32, every product and sum rounded by itself.
struct Rope {
  const int64_t* positions;  // [num_tokens]; null: K is not rotated
  const void* cos_sin;       // [max_position][dim]: dim / 2 cosines, then as many sines
  Dtype dtype;               // of cos_sin
  int64_t dim;
  bool interleaved;
};

struct WriteKvParams {
  NewTokens k;
  NewTokens v;
  char* k_cache;
  char* v_cache;
  const int32_t* slots;  // [num_tokens], page * page_size + offset, -1 writes nothing
  int64_t num_tokens;
  int64_t num_kv_heads;
  int64_t head_dim;
  Dtype dtype;  // of the new tokens, and of the caches unless
  bool to_e4m3;
  KvScale k_scale;
  KvScale v_scale;
  Rope rope;
};

void write_kv(const WriteKvParams& params, ParallelFor parallel_for);

struct CopyPagesParams {
  std::vector<char*> caches;  // K and V of all layers
  const int32_t* copies;      // [num_copies, 3]: src_page, dst_page, num_tokens, run in order
  int64_t num_copies;
  int64_t page_size;
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
