// Tree attention on Hopper: shapes of tiles, their place in shared memory, and what passes between the
// producer and the consumers.
//
//   warp group 0   producer   looks up rows and pages, loads Q, K and V
//   warp group 1   consumer   rows 0..63 of a large tile;   half of head_dim of a small one
//   warp group 2   consumer   rows 64..127                   the other half
//
// A block walks its units (an item's rows, some KV heads) as one stream of tasks, a task being one KV head
// of up to 128 rows. Keys and values come in stages of 64 keys, in a ring that does not stop between tasks:
//
//              +--------------------- full: 128 arrivals, and the bytes of tensor loads --------------+
//              |                                                                                      v
//   producer --+--> [ K | V ][ K | V ][ K | V ][ K | V ]   kStages of 64 keys            consumers S = Q K^T, O += P V
//              ^    [ Q, rows, task ][ Q, rows, task ]      kQBuffers of 128 rows                     |
//              +--------------------- empty: an arrival of each of 8 warps ---------------------------+
//
// Q, K and V lie as wgmma and tensor loads have them: blocks of kBlock elements, in which a row is one
// swizzled line of 128 bytes (64 bytes for head_dim 96, which is no multiple of 64 elements):
//
//   K of a stage, head_dim 128:     block 0: elements 0..63        block 1: elements 64..127
//                           key 0   [16 bytes x 8, c ^ (key % 8)]  [ ... ]
//                           key 1   [ ... ]                        [ ... ]
#pragma once

#include <cstdint>

#include "common/ptx.cuh"
#include "tree_attention/cuda_common.cuh"

namespace ttc::sm90 {

constexpr int kKeys = 64;       // keys of a stage
constexpr int kRows = 128;      // query rows of a task at most
constexpr int kFewRows = 32;    // up to here, rows are the N side of wgmma
constexpr int kGroup = 128;     // threads of a warp group
constexpr int kConsumers = 2;   // warp groups
constexpr int kThreads = kGroup * (1 + kConsumers);
// 168 registers a thread at launch; 2 * 216 + 72 = 3 * 168.
constexpr int kProducerRegisters = 72, kConsumerRegisters = 216;
// Named barriers. 0 is __syncthreads.
constexpr int kBarProducer = 1, kBarConsumers = 2, kBarConsumer = 3;  // kBarConsumer + warp group

template <int D>
struct Tile {
  static_assert(D == 64 || D == 96 || D == 128 || D == 256);
  static constexpr int kBlock = D % 64 == 0 ? 64 : 32;
  static constexpr ptx::Swizzle kSwizzle = kBlock == 64 ? ptx::Swizzle::k128 : ptx::Swizzle::k64;
  static constexpr int kLine = 2 * kBlock;         // bytes of a row of a block
  static constexpr int kAtom = 8 * kLine;          // bytes after which the swizzle repeats
  static constexpr int kKvBlock = kKeys * kLine;   // bytes of a block of K or V
  static constexpr int kQBlock = kRows * kLine;    // ... of Q
  static constexpr int kKvBytes = kKeys * D * 2;   // K or V of a stage
  static constexpr int kQBytes = kRows * D * 2;
  static constexpr int kChunks = D / 8;            // 16-byte chunks of a row
  static constexpr int kQBuffers = D == 256 ? 1 : 2;

  // Bytes from the beginning of a tile whose blocks have `block_bytes` to chunk c of a row.
  static __device__ __forceinline__ int chunk(int block_bytes, int row, int c) {
    constexpr int per_line = kLine / 16;
    const int swizzle = per_line == 8 ? row & 7 : (row >> 1) & 3;
    return c / per_line * block_bytes + row * kLine + ((c % per_line ^ swizzle) << 4);
  }
  // Bytes from the beginning of a K-major operand to its elements d, d + 1, ... (d a multiple of 16).
  static __device__ __forceinline__ constexpr int k_step(int block_bytes, int d) {
    return d / kBlock * block_bytes + d % kBlock * 2;
  }
};

// What a query row sees, and where its results go.
struct Row {
  Sight sight;    // hi no further than the item
  int32_t query;  // planned
  int32_t token;  // row of q and out, -1: there is no such row
  int32_t slot;   // of its partial; -1: it is written to out
};

struct Task {
  int32_t rows;          // 0: there are no more tasks
  int32_t few;           // 16 or 32: rows are the N side; 0: the M side
  int32_t item, kv_head;
  int32_t first_row;     // of the item's rows
  int32_t last;          // these are the item's last rows: its queries have all their partials then
  int32_t first, end;    // keys that some row sees
  int32_t start;         // first rounded down to a multiple of kKeys from the item's beginning
  int32_t clear_begin, clear_end;  // keys that every row sees
};

// As many stages as fit beside Q: 64 to 128 KB on their way, where the memory's latency takes 32. Caches of
// 8 bits need room for kRaw tiles of raw bytes.
template <class KV, int D>
constexpr int kStages = D == 64 ? 8 : sizeof(KV) == 2 ? (D == 96 ? 6 : D == 128 ? 4 : 2) : (D == 96 ? 5 : D == 128 ? 3 : 1);
constexpr int kRaw = 2;

template <class KV, int D>
struct Shared {
  static constexpr bool kWiden = sizeof(KV) == 1;

  alignas(1024) char q[Tile<D>::kQBuffers][Tile<D>::kQBytes];
  alignas(1024) char k[kStages<KV, D>][Tile<D>::kKvBytes];
  alignas(1024) char v[kStages<KV, D>][Tile<D>::kKvBytes];
  alignas(1024) char p[kConsumers][kFewRows * kKeys * 2];  // of few rows: [row][key], lines of 128 bytes
  alignas(16) char raw[kWiden ? kRaw : 1][2][kWiden ? kKeys * D : 16];  // float8 K and V
  Row row[Tile<D>::kQBuffers][kRows];
  Task task[Tile<D>::kQBuffers];
  float exchange[kConsumers][4][kFewRows];  // maxima and sums of a warp's keys
  PlanHeader header;
  int32_t next_unit, bounds[4][5];          // what the producer's warps found in their rows
  int32_t merges[kRows], num_merges[2];     // entries of the merge list whose last partial this block wrote
  uint64_t full[kStages<KV, D>], empty[kStages<KV, D>];
  uint64_t q_full[Tile<D>::kQBuffers], q_empty[Tile<D>::kQBuffers];
};

// Where a thread stands in a ring of N buffers.
template <int N>
struct Ring {
  int index = 0;
  uint32_t phase = 0;

  __device__ __forceinline__ void advance() {
    if (++index == N) index = 0, phase ^= 1;
  }
};

}  // namespace ttc::sm90
