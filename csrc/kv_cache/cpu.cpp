#include <algorithm>
#include <cstring>

#include "common/convert.h"
#include "common/float8.h"
#include "kv_cache/kv_cache.h"

namespace ttc {

namespace {

// Less than this takes some 50 us, too little to be worth waking (or waiting for) another thread.
constexpr int64_t kGrainBytes = 4 << 20;

void copy_token(const NewTokens& from, int64_t token, char* to, int64_t heads, int64_t head_bytes) {
  const char* source = from.data + token * from.token_stride;
  if (from.head_stride == head_bytes) {
    std::memcpy(to, source, heads * head_bytes);
    return;
  }
  for (int64_t h = 0; h < heads; ++h) {
    std::memcpy(to + h * head_bytes, source + h * from.head_stride, head_bytes);
  }
}

void rotate(const Rope& rope, const float* cosines, float* x) {
  const int64_t half = rope.dim / 2;
  const float* sines = cosines + half;
  for (int64_t i = 0; i < half; ++i) {
    float& first = x[rope.interleaved ? 2 * i : i];
    float& second = x[rope.interleaved ? 2 * i + 1 : i + half];
    const float rotated = first * cosines[i] - second * sines[i];
    second = second * cosines[i] + first * sines[i];
    first = rotated;
  }
}

void quantise(const float* __restrict row, float unit, int64_t n, uint8_t* __restrict to) {
  for (int64_t d = 0; d < n; ++d) to[d] = float_to_e4m3(row[d] / unit);
}

// One token of K or V by way of fp32; `cosines` is null where nothing is rotated.
void convert_token(const WriteKvParams& p, const NewTokens& from, const KvScale& scale, const float* cosines,
                   int64_t token, char* cache, float* row) {
  const int64_t item = p.to_e4m3 ? 1 : dtype_bytes(p.dtype);
  for (int64_t h = 0; h < p.num_kv_heads; ++h) {
    widen(p.dtype, from.data + token * from.token_stride + h * from.head_stride, p.head_dim, row);
    if (cosines != nullptr) rotate(p.rope, cosines, row);
    char* to = cache + (p.slots[token] * p.num_kv_heads + h) * p.head_dim * item;
    if (p.to_e4m3) {
      const float unit = scale.per_head ? scale.per_head[h] : scale.number;
      quantise(row, unit, p.head_dim, reinterpret_cast<uint8_t*>(to));
    } else {
      narrow(p.dtype, row, p.head_dim, to);
    }
  }
}

void convert_tokens(const WriteKvParams& p, int64_t begin, int64_t end) {
  std::vector<float> row(p.head_dim), cos_sin(p.rope.positions ? p.rope.dim : 0);
  for (int64_t t = begin; t < end; ++t) {
    if (p.slots[t] < 0) continue;
    if (p.rope.positions) {
      const int64_t at = p.rope.positions[t] * p.rope.dim * dtype_bytes(p.rope.dtype);
      widen(p.rope.dtype, static_cast<const char*>(p.rope.cos_sin) + at, p.rope.dim, cos_sin.data());
    }
    convert_token(p, p.k, p.k_scale, p.rope.positions ? cos_sin.data() : nullptr, t, p.k_cache, row.data());
    if (p.to_e4m3) {
      convert_token(p, p.v, p.v_scale, nullptr, t, p.v_cache, row.data());
    } else {
      const int64_t head_bytes = p.head_dim * dtype_bytes(p.dtype);
      char* to = p.v_cache + p.slots[t] * p.num_kv_heads * head_bytes;
      copy_token(p.v, t, to, p.num_kv_heads, head_bytes);
    }
  }
}

void copy_tokens(const WriteKvParams& p, int64_t begin, int64_t end) {
  const int64_t head_bytes = p.head_dim * dtype_bytes(p.dtype);
  for (int64_t t = begin; t < end; ++t) {
    if (p.slots[t] < 0) continue;
    const int64_t at = p.slots[t] * p.num_kv_heads * head_bytes;
    copy_token(p.k, t, p.k_cache + at, p.num_kv_heads, head_bytes);
    copy_token(p.v, t, p.v_cache + at, p.num_kv_heads, head_bytes);
  }
}

}  // namespace

void write_kv(const WriteKvParams& p, ParallelFor parallel_for) {
  const bool as_it_is = !p.to_e4m3 && p.rope.positions == nullptr;
  const int64_t bytes = std::max<int64_t>(1, 2 * p.num_kv_heads * p.head_dim * dtype_bytes(p.dtype));
  const int64_t grain = std::max<int64_t>(1, (as_it_is ? kGrainBytes : kGrainBytes / 8) / bytes);
  parallel_for(0, p.num_tokens, grain, [&](int64_t begin, int64_t end) {
    as_it_is ? copy_tokens(p, begin, end) : convert_tokens(p, begin, end);
  });
}

// Threads share out the caches, not the copies: the copies of one cache depend on their order.
void copy_pages(const CopyPagesParams& p, ParallelFor parallel_for) {
  const int64_t page_bytes = p.page_size * p.token_bytes;
  int64_t bytes_per_cache = 1;
  for (int64_t c = 0; c < p.num_copies; ++c) bytes_per_cache += p.copies[3 * c + 2] * p.token_bytes;
  const int64_t grain = std::max<int64_t>(1, kGrainBytes / bytes_per_cache);
  parallel_for(0, static_cast<int64_t>(p.caches.size()), grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (const int32_t* copy = p.copies; copy != p.copies + 3 * p.num_copies; copy += 3) {
        std::memcpy(p.caches[i] + copy[1] * page_bytes, p.caches[i] + copy[0] * page_bytes,
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
