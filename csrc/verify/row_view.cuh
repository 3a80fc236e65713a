// A row of logits, as the threads of a block read it.
//
//   row    | 8 logits | 8 logits | 8 logits | ...           a piece: 16 bytes, 32 of fp32
//            thread 0   thread 1   thread 2  ... thread 0    its next piece is on its way
//
// A row that does not begin at a multiple of 16 bytes, and the last piece, are read logit by logit.
#pragma once

#include <limits>

#include "common/block_reduce.cuh"
#include "common/cuda_types.cuh"
#include "common/ptx.cuh"
#include "verify/row_math.h"

namespace ttc {

constexpr int kPiece = 8;  // two draws of Philox
constexpr float kLowest = -std::numeric_limits<float>::infinity();

struct RowView {
  const char* data;
  const int32_t* bitmask;  // of this row, or null
  int size;                // at most 2^24
  Dtype dtype;
  bool aligned;
};

__device__ __forceinline__ RowView row_view(const LogitRows& logits, int64_t r) {
  RowView row;
  row.data = logits.data + r * logits.stride;
  row.bitmask = logits.bitmask == nullptr ? nullptr : logits.bitmask + r * logits.mask_words;
  row.size = static_cast<int>(logits.vocab_size);
  row.dtype = logits.dtype;
  row.aligned = reinterpret_cast<uintptr_t>(row.data) % 16 == 0;
  return row;
}

__device__ __forceinline__ float half_bits_to_float(uint32_t bits) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}

// One logit, whatever the bitmask says.
__device__ __forceinline__ float plain_logit(const RowView& row, int64_t token) {
  if (row.dtype == Dtype::kFloat32) return reinterpret_cast<const float*>(row.data)[token];
  const uint32_t bits = reinterpret_cast<const uint16_t*>(row.data)[token];
  return row.dtype == Dtype::kFloat16 ? half_bits_to_float(bits) : bits_to_float(bits << 16);
}

__device__ __forceinline__ float one_logit(const LogitRows& logits, int64_t r, int64_t token) {
  return is_allowed(logits, r, token) ? plain_logit(row_view(logits, r), token) : kLowest;
}

// What was read of a row, not yet widened.
struct RawPiece {
  uint4 low, high;   // high of fp32 alone
  uint32_t allowed;  // a bit for each logit
};

__device__ __forceinline__ RawPiece load_piece(const RowView& row, int first) {
  RawPiece piece{};
  if (first >= row.size) return piece;
  const int count = row.size - first < kPiece ? row.size - first : kPiece;
  piece.allowed = (1u << count) - 1;
  if (row.bitmask != nullptr) {
    piece.allowed &= static_cast<uint32_t>(row.bitmask[first / 32]) >> (first % 32);
  }
  const bool wide = row.dtype == Dtype::kFloat32;
  const char* from = row.data + static_cast<int64_t>(first) * (wide ? 4 : 2);
  if (row.aligned && count == kPiece) {
    piece.low = ptx::load_global_16(from);
    if (wide) piece.high = ptx::load_global_16(from + 16);
    return piece;
  }
  uint32_t words[kPiece] = {};
  if (wide) {
#pragma unroll
    for (int i = 0; i < kPiece; ++i) {
      if (i < count) words[i] = reinterpret_cast<const uint32_t*>(from)[i];
    }
  } else {
#pragma unroll
    for (int i = 0; i < kPiece; ++i) {
      const uint32_t bits = i < count ? reinterpret_cast<const uint16_t*>(from)[i] : 0;
      words[i / 2] |= bits << (i % 2 * 16);
    }
  }
  piece.low = make_uint4(words[0], words[1], words[2], words[3]);
  piece.high = make_uint4(words[4], words[5], words[6], words[7]);
  return piece;
}

// The logits as fp32, -inf where they are not allowed.
__device__ __forceinline__ void widen_piece(const RawPiece& piece, Dtype dtype, float (&logits)[kPiece]) {
  const uint32_t words[kPiece] = {piece.low.x,  piece.low.y,  piece.low.z,  piece.low.w,
                                  piece.high.x, piece.high.y, piece.high.z, piece.high.w};
  if (dtype == Dtype::kFloat32) {
#pragma unroll
    for (int i = 0; i < kPiece; ++i) logits[i] = bits_to_float(words[i]);
  } else if (dtype == Dtype::kFloat16) {
#pragma unroll
    for (int i = 0; i < kPiece; ++i) logits[i] = half_bits_to_float(words[i / 2] >> (i % 2 * 16) & 0xffff);
  } else {
#pragma unroll
    for (int i = 0; i < kPiece; ++i) logits[i] = bits_to_float(i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16);
  }
  if (piece.allowed == (1u << kPiece) - 1) return;
#pragma unroll
  for (int i = 0; i < kPiece; ++i) logits[i] = piece.allowed >> i & 1 ? logits[i] : kLowest;
}

// Calls body(first, logits) for each piece of the row, -inf behind its end. No barriers in body: threads
// come to it different numbers of times.
template <class Body>
__device__ __forceinline__ void for_pieces(const RowView& row, const Body& body) {
  const int step = static_cast<int>(blockDim.x) * kPiece;
  RawPiece next = load_piece(row, static_cast<int>(threadIdx.x) * kPiece);
#pragma unroll 1
  for (int first = static_cast<int>(threadIdx.x) * kPiece; first < row.size; first += step) {
    float logits[kPiece];
    widen_piece(next, row.dtype, logits);
    next = load_piece(row, first + step);
    body(first, logits);
  }
}

// The order of tokens by falling value, the lower index first on a tie: smaller places come first.
__device__ __forceinline__ uint64_t place_of(float value, int64_t index) {
  const uint32_t bits = float_to_bits(value + 0.0f);  // both zeros are one value
  const uint32_t rising = bits >> 31 ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(~rising) << 24 | static_cast<uint64_t>(index);
}

__device__ __forceinline__ float value_at(uint64_t place) {
  const uint32_t rising = ~static_cast<uint32_t>(place >> 24);
  return bits_to_float(rising >> 31 ? rising & 0x7fffffffu : ~rising);
}

__device__ __forceinline__ int32_t index_at(uint64_t place) { return static_cast<int32_t>(place & 0xffffff); }

constexpr uint64_t kNoPlace = ~uint64_t{0};

struct ReduceScratch {  // shared
  int64_t sums[kMaxWarps];
  uint64_t places[kMaxWarps];
};

}  // namespace ttc
