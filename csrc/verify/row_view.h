// A row of logits as the passes over it see it: block after block, and asked for from memory ahead of them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "common/convert.h"
#include "common/isa.h"
#include "verify/row_math.h"

namespace ttc {

constexpr int64_t kRowLanes = 16;
constexpr int64_t kRowPiece = 64;
constexpr int64_t kRowBlock = kNoiseBlock;
constexpr float kLowest = -std::numeric_limits<float>::infinity();

constexpr int64_t whole_pieces(int64_t n) { return (n + kRowPiece - 1) / kRowPiece * kRowPiece; }

// What was asked for from memory: the row at hand up to `at`, then the next one. Reading a row takes about
// as long as all passes over it: each of them asks for a part of what follows, or memory would idle
// meanwhile, and only few bytes at a time, or the processor would wait for them.
//
//   |---- row at hand ----|        |---- next row ----|
//        ^ here     ^ at, later here: ^
//
struct Ahead {
  static constexpr int64_t kDistance = 8192;  // what memory sends in the time that it takes to answer, and more

  const char* at = nullptr;
  const char* end = nullptr;   // of the row that `at` lies in
  const char* next = nullptr;  // null: there is none, or `at` lies in it
  const char* next_end = nullptr;

  void begin(const char* row, const char* following, int64_t bytes) {
    if (end != row + bytes) at = row, end = row + bytes;
    next = following;
    next_end = following == nullptr ? nullptr : following + bytes;
  }

  TTC_ALWAYS_INLINE void fetch(int64_t bytes) {
    const int64_t count = end - at < bytes ? end - at : bytes;
    for (int64_t i = 0; i < count; i += 64) __builtin_prefetch(at + i);
    at += count;
    if (count < bytes && next != nullptr) {
      at = next;
      end = next_end;
      next = nullptr;
    }
  }

  // While `bytes` from `here` on are scanned; where there are more passes, they do the rest.
  TTC_ALWAYS_INLINE void keep_up(const char* here, int64_t bytes) {
    const int64_t distance = at - here;
    fetch(distance >= 0 && distance < kDistance ? 2 * bytes : bytes / 4);
  }
};

// One row of logits. What `mask` has no bit for counts as -inf.
struct RowView {
  const char* data = nullptr;
  Dtype dtype = Dtype::kFloat32;
  int64_t n = 0;
  const int32_t* mask = nullptr;
  Ahead* ahead = nullptr;

  int64_t num_blocks() const { return (n + kRowBlock - 1) / kRowBlock; }

  TTC_ALWAYS_INLINE void fetch_ahead(int64_t bytes) const {
    if (ahead != nullptr) ahead->fetch(bytes);
  }

  TTC_ALWAYS_INLINE void keep_up(const char* here, int64_t bytes) const {
    if (ahead != nullptr) ahead->keep_up(here, bytes);
  }
};

// 256 logits from `first` on, a multiple of 256: those of the row, or widened into `buffer`; after the
// row's end -inf.
TTC_ALWAYS_INLINE const float* block_of(const RowView& row, int64_t first, float* buffer) {
  const int64_t count = row.n - first < kRowBlock ? row.n - first : kRowBlock;
  const char* source = row.data + first * dtype_bytes(row.dtype);
  if (count == kRowBlock && row.mask == nullptr && row.dtype == Dtype::kFloat32) {
    return reinterpret_cast<const float*>(source);
  }
  if (count == kRowBlock && row.dtype == Dtype::kBFloat16) {
    const auto* bfloats = reinterpret_cast<const uint16_t*>(source);
    for (int64_t i = 0; i < kRowBlock; ++i) buffer[i] = bfloat_to_float(bfloats[i]);
  } else {
    widen(row.dtype, source, count, buffer);
    for (int64_t i = count; i < kRowBlock; ++i) buffer[i] = kLowest;
  }
  if (row.mask != nullptr) {
    for (int64_t i = 0; i < count; ++i) {
      const auto word = static_cast<uint32_t>(row.mask[(first + i) / 32]);
      buffer[i] = (word >> (i % 32) & 1) != 0 ? buffer[i] : kLowest;
    }
  }
  return buffer;
}

}  // namespace ttc
