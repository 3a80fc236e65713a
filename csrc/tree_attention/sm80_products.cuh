// A warp's products on the tensor cores, and where everything stands in shared memory.
//
// Fragments of S = Q K^T are those of P in P V: scores stay in registers. An e4m3 chunk of 16 head
// dimensions arrives as 4 bytes a lane; even and odd bytes become two operands, and the queries (for K) and
// outputs (for V) are permuted to match.
#pragma once

#include <cstdint>

#include "tree_attention/cuda_common.cuh"

namespace ttc {

constexpr int kSm80Threads = 128;

template <class T, bool kFp8, int kHeadDim>
struct Sm80Layout {
  static constexpr int kKeys = 64;
  static constexpr int kRows = kHeadDim == 256 ? 32 : 64;  // as many as the registers hold
  static constexpr int kRowBytes = kHeadDim * (kFp8 ? 1 : 2);
  static constexpr int kChunks = kRowBytes / 16;
  static constexpr int kSlotBytes = kKeys * kRowBytes;
  static constexpr int kSlots = kFp8 || kHeadDim < 256 ? 4 : 2;
  // Of the queries' fragments the last ones stand in shared memory where registers are short.
  static constexpr int kSharedSteps = kHeadDim == 256 ? 8 : 0;
  // At the end the ring's place is taken by the outputs of all warps, [64][kPitch] floats.
  static constexpr int kPitch = kHeadDim + (kFp8 ? 16 : 8);
  static constexpr int kRingBytes = kSlots * kSlotBytes > 256 * kPitch ? kSlots * kSlotBytes : 256 * kPitch;
  static constexpr int kBlocks = kHeadDim == 64 ? 3 : 2;  // per multiprocessor

  struct Row {
    int32_t lo, hi, draft_begin;  // Sight; a row that is none: kNoKey, 0, kNoKey
    int32_t q;
  };
  // The unit at hand, and of it up to kRows rows and the tiles of keys that they see. What is looked at
  // once a tile stands here, for registers are short.
  struct Unit {
    WorkItem item;
    int32_t kv_head;
    float k_scale;
    int32_t first_row, num_rows;
    int32_t first_key, last_key;  // seen by any row: [first_key, last_key)
    int32_t start, tiles;         // tiles begin at key `start`
  };
  struct Shared {
    PlanHeader header;
    Unit unit;
    Row rows[kRows];
    union {
      int64_t offset[2][kKeys];  // of a tile's keys in the caches, in elements; -1: zeros are read
      int32_t merges[128];       // entries of the merge lists that this block completes
    };
    uint4 queries[kSharedSteps > 0 ? kRows / 16 * kSharedSteps * 32 : 1];  // [16 rows][step][lane]
    float2 ml[64];
    int32_t next_unit, num_merges;
  };
  static constexpr int kSharedBytes = kRingBytes + int(sizeof(Shared));

  static __device__ __forceinline__ int chunk_at(int row, int chunk) {
    constexpr int kSpan = kChunks % 8 == 0 ? 8 : kChunks % 4 == 0 ? 4 : 2;
    return row * kRowBytes + (chunk ^ (row / (8 / kSpan) & (kSpan - 1))) * 16;
  }
};

template <class T, bool kFp8, int kHeadDim>
class Sm80Products {
 protected:
  using L = Sm80Layout<T, kFp8, kHeadDim>;
  static constexpr int kSteps = kHeadDim / 16, kOwnSteps = kSteps - L::kSharedSteps;

  __device__ __forceinline__ explicit Sm80Products(const TreeAttentionCudaParams& params)
      : p_(params),
        ring_(dynamic_smem()),
        shared_(*reinterpret_cast<typename L::Shared*>(ring_ + L::kRingBytes)),
        plan_{params.plan, &shared_.header},
        u_(shared_.unit),
        thread_(int(threadIdx.x)),
        warp_(thread_ / 32),
        lane_(thread_ % 32) {}

  __device__ __forceinline__ int query_at(int warp_row, int k) const {
    return (warp_row / 16 * L::kSharedSteps + k - kOwnSteps) * 32 + lane_;
  }

  // The warp's 16 queries as operand A of the products with K: the first steps to registers, the others, if
  // the warp stores them, to shared memory.
  __device__ __forceinline__ void load_queries(uint32_t (&a)[kOwnSteps][4], int warp_row, bool stores) const {
    const int g = lane_ / 4, c = lane_ % 4;
    const char* q[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = warp_row + g + 8 * half;
      q[half] = nullptr;
      if (r >= u_.num_rows) continue;
      const int64_t head = int64_t(u_.kv_head) * p_.group + (u_.first_row + r) % p_.group;
      q[half] = static_cast<const char*>(p_.q) +
                2 * (plan_.q_token(shared_.rows[r].q) * p_.q_token_stride + head * p_.q_head_stride);
    }
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      uint32_t x[4] = {0, 0, 0, 0};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (!q[half]) continue;
        if constexpr (kFp8) {
          // Dimensions 4c and 4c + 2 of 16, then 4c + 1 and 4c + 3.
          const uint2 four = *reinterpret_cast<const uint2*>(q[half] + 32 * k + 8 * c);
          x[half] = (four.x & 0xffffu) | four.y << 16;
          x[2 + half] = four.x >> 16 | (four.y & 0xffff0000u);
        } else {
          x[half] = *reinterpret_cast<const uint32_t*>(q[half] + 32 * k + 4 * c);
          x[2 + half] = *reinterpret_cast<const uint32_t*>(q[half] + 32 * k + 4 * c + 16);
        }
      }
      if (k < kOwnSteps) {
#pragma unroll
        for (int i = 0; i < 4; ++i) a[k][i] = x[i];
      } else {
        if (stores) shared_.queries[query_at(warp_row, k)] = {x[0], x[1], x[2], x[3]};
      }
    }
  }

  __device__ __forceinline__ void query_step(const uint32_t (&q)[kOwnSteps][4], int warp_row, int k,
                                             uint32_t (&a)[4]) const {
    if (k < kOwnSteps) {
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = q[k][i];
    } else {
      const uint4 x = shared_.queries[query_at(warp_row, k)];
      a[0] = x.x, a[1] = x.y, a[2] = x.z, a[3] = x.w;
    }
  }

  // s = Q K^T for the warp's Keys keys, which begin at row `begin` of the slot.
  template <int Keys>
  __device__ __forceinline__ void multiply_keys(const char* slot, int begin, const uint32_t (&q)[kOwnSteps][4],
                                                int warp_row, float (&s)[Keys / 8][4]) const {
    const int lane = ptx::unhoisted(lane_);
    const int row = begin + lane % 8 + lane / 16 * 8, chunk = lane / 8 % 2;
#pragma unroll
    for (int k = 0; k < L::kChunks / 2; ++k) {
      uint32_t a[kFp8 ? 2 : 1][4];
#pragma unroll
      for (int h = 0; h < (kFp8 ? 2 : 1); ++h) query_step(q, warp_row, (kFp8 ? 2 : 1) * k + h, a[h]);
#pragma unroll
      for (int n = 0; n < Keys / 16; ++n) {
        uint32_t r[4];
        ptx::ldmatrix<4>(r, slot + L::chunk_at(row + 16 * n, 2 * k + chunk));
        if constexpr (kFp8) {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const uint32_t b0[2] = {ptx::e4m3_bytes_to<T>(r[h]), ptx::e4m3_bytes_to<T>(r[h] >> 8)};
            const uint32_t b1[2] = {ptx::e4m3_bytes_to<T>(r[2 + h]), ptx::e4m3_bytes_to<T>(r[2 + h] >> 8)};
            ptx::mma_m16n8k16<T>(s[2 * n], a[h], b0);
            ptx::mma_m16n8k16<T>(s[2 * n + 1], a[h], b1);
          }
        } else {
          const uint32_t b0[2] = {r[0], r[1]}, b1[2] = {r[2], r[3]};
          ptx::mma_m16n8k16<T>(s[2 * n], a[0], b0);
          ptx::mma_m16n8k16<T>(s[2 * n + 1], a[0], b1);
        }
      }
    }
  }

  // o += P V
  template <int Keys>
  __device__ __forceinline__ void multiply_values(const char* slot, int begin, const uint32_t (&p)[Keys / 16][4],
                                                  float (&o)[kHeadDim / 8][4]) const {
    const int lane = ptx::unhoisted(lane_);
    const int row = begin + lane % 16, chunk = lane / 16;
#pragma unroll
    for (int n = 0; n < Keys / 16; ++n)
#pragma unroll
      for (int k = 0; k < L::kChunks / 2; ++k) {
        uint32_t r[4];
        ptx::ldmatrix_trans<4>(r, slot + L::chunk_at(row + 16 * n, 2 * k + chunk));
        if constexpr (kFp8) {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const uint32_t even[2] = {ptx::e4m3_bytes_to<T>(r[2 * h]), ptx::e4m3_bytes_to<T>(r[2 * h + 1])};
            const uint32_t odd[2] = {ptx::e4m3_bytes_to<T>(r[2 * h] >> 8), ptx::e4m3_bytes_to<T>(r[2 * h + 1] >> 8)};
            ptx::mma_m16n8k16<T>(o[4 * k + 2 * h], p[n], even);
            ptx::mma_m16n8k16<T>(o[4 * k + 2 * h + 1], p[n], odd);
          }
        } else {
          const uint32_t b0[2] = {r[0], r[1]}, b1[2] = {r[2], r[3]};
          ptx::mma_m16n8k16<T>(o[2 * k], p[n], b0);
          ptx::mma_m16n8k16<T>(o[2 * k + 1], p[n], b1);
        }
      }
  }

  const TreeAttentionCudaParams& p_;
  char* const ring_;
  typename L::Shared& shared_;
  const CudaPlan plan_;
  typename L::Unit& u_;
  const int thread_, warp_, lane_;
};

}  // namespace ttc
