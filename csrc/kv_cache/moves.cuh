// copy_pages and commit_kv on a GPU: tokens move within the caches of all layers, in one launch.
//
// Caches are given by address in the kernel's parameters, so nothing is uploaded and a launch may be
// captured in a graph. Pieces of 16 bytes (or fewer, where something is not aligned) move whatever the
// dtype.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace ttc {

constexpr int kCachesAtOnce = 480;  // parameters of a kernel may have 4 KB

struct CacheTable {
  char* caches[kCachesAtOnce];  // blockIdx.y
};

struct CopyPagesArgs {
  CacheTable table;
  const int32_t* copies;  // [num_copies, 3]
  int64_t num_copies;
  int64_t page_size;
  int64_t token_pieces;
};

struct CommitKvArgs {
  CacheTable table;
  const int32_t* src_slots;
  const int32_t* dst_slots;
  int64_t num_tokens;
  int64_t token_pieces;
};
static_assert(sizeof(CopyPagesArgs) <= 4096 && sizeof(CommitKvArgs) <= 4096);

constexpr int kCopyThreads = 256;
constexpr int kCopyBatch = 8;

// A thread owns one piece of one offset in every page of a cache and runs through the copies in their
// order, so no other thread reads or writes what it does. It reads kCopyBatch pieces before it writes
// them, unless one of the copies begins where an earlier one of these ended.
//
//   page src  [ tok 0 | tok 1 | tok 2 | ...      thread (offset 1, piece 3):
//                        ...#....                  # of src page -> # of dst page, copy after copy
//   page dst  [ tok 0 | tok 1 | tok 2 | ...
template <class Piece>
__global__ void __launch_bounds__(kCopyThreads) copy_pages_kernel(const __grid_constant__ CopyPagesArgs p) {
  const int64_t page_pieces = p.page_size * p.token_pieces;
  const int64_t mine = static_cast<int64_t>(blockIdx.x) * kCopyThreads + threadIdx.x;
  if (mine >= page_pieces) return;
  const int64_t offset = mine / p.token_pieces;
  Piece* cache = reinterpret_cast<Piece*>(p.table.caches[blockIdx.y]) + mine;
  for (int64_t begin = 0; begin < p.num_copies; begin += kCopyBatch) {
    int32_t src[kCopyBatch], dst[kCopyBatch];
    bool ordered = false;
#pragma unroll
    for (int i = 0; i < kCopyBatch; ++i) {
      src[i] = dst[i] = -1;
      if (begin + i >= p.num_copies) continue;
      const int32_t* copy = p.copies + 3 * (begin + i);
      if (offset >= copy[2]) continue;
      src[i] = copy[0];
      dst[i] = copy[1];
#pragma unroll
      for (int j = 0; j < i; ++j) ordered = ordered || src[i] == dst[j];
    }
    if (ordered) {
#pragma unroll
      for (int i = 0; i < kCopyBatch; ++i) {
        if (src[i] >= 0) cache[dst[i] * page_pieces] = cache[src[i] * page_pieces];
      }
      continue;
    }
    Piece held[kCopyBatch];
#pragma unroll
    for (int i = 0; i < kCopyBatch; ++i) {
      if (src[i] >= 0) held[i] = cache[src[i] * page_pieces];
    }
#pragma unroll
    for (int i = 0; i < kCopyBatch; ++i) {
      if (src[i] >= 0) cache[dst[i] * page_pieces] = held[i];
    }
  }
}

constexpr int kCommitPieces = 8;  // of a token, to a block
constexpr int kCommitTokens = 32;
constexpr int kCommitBatch = 4;  // tokens to a thread at a time

// A block owns kCommitPieces pieces of every token of a cache. It reads kCommitTokens * kCommitBatch
// tokens before it writes any of them: a destination may be the source of an earlier token, never of a
// later one.
template <class Piece>
__global__ void __launch_bounds__(kCommitPieces* kCommitTokens)
    commit_kv_kernel(const __grid_constant__ CommitKvArgs p) {
  const int64_t piece = static_cast<int64_t>(blockIdx.x) * kCommitPieces + threadIdx.x;
  Piece* cache = reinterpret_cast<Piece*>(p.table.caches[blockIdx.y]) + piece;
  for (int64_t begin = 0; begin < p.num_tokens; begin += kCommitTokens * kCommitBatch) {
    Piece held[kCommitBatch];
    int64_t dst[kCommitBatch];
#pragma unroll
    for (int i = 0; i < kCommitBatch; ++i) {
      const int64_t t = begin + i * kCommitTokens + threadIdx.y;
      dst[i] = -1;
      if (t >= p.num_tokens || piece >= p.token_pieces) continue;
      const int64_t src = p.src_slots[t], to = p.dst_slots[t];
      if (src < 0 || to < 0 || src == to) continue;
      dst[i] = to;
      held[i] = cache[src * p.token_pieces];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kCommitBatch; ++i) {
      if (dst[i] >= 0) cache[dst[i] * p.token_pieces] = held[i];
    }
  }
}

}  // namespace ttc
