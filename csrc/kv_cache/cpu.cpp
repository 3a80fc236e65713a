#include <algorithm>
#include <cstring>

#include "kv_cache/kv_cache.h"

namespace ttc {

namespace {

// Less than this takes some 50 us, too little to be worth waking (or waiting for) another thread.
constexpr int64_t kGrainBytes = 4 << 20;

void write_token(const NewTokens& from, int64_t token, char* to, int64_t heads,
                 int64_t head_bytes) {
  const char* source = from.data + token * from.token_stride;
  if (from.head_stride == head_bytes) {
    std::memcpy(to, source, heads * head_bytes);
    return;
  }
  for (int64_t h = 0; h < heads; ++h) {
    std::memcpy(to + h * head_bytes, source + h * from.head_stride, head_bytes);
  }
}

}  // namespace

void write_kv(const WriteKvParams& p, ParallelFor parallel_for) {
  const int64_t token_bytes = p.num_kv_heads * p.head_bytes;
  const int64_t grain = std::max<int64_t>(1, kGrainBytes / std::max<int64_t>(1, 2 * token_bytes));
  parallel_for(0, p.num_tokens, grain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      if (p.slots[t] < 0) continue;
      const int64_t at = p.slots[t] * token_bytes;
      write_token(p.k, t, p.k_cache + at, p.num_kv_heads, p.head_bytes);
      write_token(p.v, t, p.v_cache + at, p.num_kv_heads, p.head_bytes);
    }
  });
}

// Threads share out the caches, not the copies: the copies of one cache depend on their order.
void copy_pages(const CopyPagesParams& p, ParallelFor parallel_for) {
  int64_t bytes_per_cache = 1;
  for (int64_t c = 0; c < p.num_copies; ++c) bytes_per_cache += p.copies[3 * c + 2] * p.token_bytes;
  const int64_t grain = std::max<int64_t>(1, kGrainBytes / bytes_per_cache);
  parallel_for(0, static_cast<int64_t>(p.caches.size()), grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (const int32_t* copy = p.copies; copy != p.copies + 3 * p.num_copies; copy += 3) {
        std::memcpy(p.caches[i] + copy[1] * p.page_bytes, p.caches[i] + copy[0] * p.page_bytes,
                    copy[2] * p.token_bytes);
      }
    }
  });
}

void commit_kv(const CommitKvParams& p, ParallelFor parallel_for) {
  const int64_t bytes_per_cache = 1 + p.num_tokens * p.token_bytes;
  const int64_t grain = std::max<int64_t>(1, kGrainBytes / bytes_per_cache);
  parallel_for(0, static_cast<int64_t>(p.caches.size()), grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t t = 0; t < p.num_tokens; ++t) {
        const int64_t src = p.src_slots[t], dst = p.dst_slots[t];
        if (src < 0 || dst < 0 || src == dst) continue;
        std::memcpy(p.caches[i] + dst * p.token_bytes, p.caches[i] + src * p.token_bytes, p.token_bytes);
      }
    }
  });
}

}  // namespace ttc
