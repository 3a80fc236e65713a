// The seam between the scheduler (cpu.cpp) and the per-instruction-set files that include cpu_tile.h.
#pragma once

#include "tree_attention/params.h"

namespace ttc {

constexpr int kTileKeys = 128;  // keys handled at once; where chunks are folded, a chunk
static_assert(kStretchTokens % kTileKeys == 0);
// Query rows (a lone GQA group may exceed both):
constexpr int kMaxTileRows = 128;  // of all KV heads of a unit of several, and of the scores at hand
constexpr int kMaxUnitRows = 512;  // of a unit of one KV head, for which keys are packed once
constexpr int kFewRows = 8;        // up to here a tile is limited by its keys rather than by arithmetic
constexpr int kMaxTileHeads = 8;   // KV heads of a unit
// Of a unit of siblings:
constexpr int kMaxSiblingRows = 32;   // per KV head
constexpr int kMaxSiblingKeys = 512;  // the shared ones, and what each has of its own, padded
constexpr int kSharedQuantum = 16;    // shared keys are a multiple of this: whole vectors

// Rows per KV head that tiles of few rows compute, some of them maybe zero.
constexpr int64_t computed_rows(int64_t rows) { return rows <= 2 ? rows : rows <= 4 ? 4 : kFewRows; }

// Packed keys, or values, of one KV head in 32-bit elements, with room for the panels' padding.
constexpr int64_t packed_head(int64_t dim) { return (kTileKeys + 16) * (dim + 16); }

// Of rows that have met some keys: the output, not normalised, the largest score (base 2) and the sum.
struct RowStates {
  float *o, *m, *l;
};

// One worker's memory, all 64-byte aligned.
struct TileScratch {
  void *q, *k, *v, *p;  // packed operands
  float *s, *alpha, *beta;
  RowStates item;          // all keys, or where chunks are folded those of the present chunk,
  RowStates stretch, row;  // ... the chunks before it in its stretch, the stretches before that
  int64_t *lo, *hi;
};

struct TileArgs {
  const TreeAttentionParams* params;
  const PlanView* plan;
  const WorkItem* item;        // all of the unit's queries
  int32_t kv_head, num_heads;  // the unit's KV heads
  // Siblings: items of as many queries and one tile of keys each, whose first `shared` keys are the same.
  const WorkItem* siblings;
  int32_t num_siblings;  // 1: the unit is one item, or several over the same keys
  int32_t shared;
  const WorkItem* next_item;   // the worker's next unit, nullptr: none
  int32_t next_kv_head;
  int32_t asked;  // rows of this unit that the caches were asked for while the unit before it ran
  TileScratch scratch;
  RowStates partials;  // [slots, Hq]
  bool stream_partials;  // past the caches, which they would not fit

  int32_t sibling_queries() const { return item->q_count / num_siblings; }
};

struct CpuKernels {
  const char* isa;  // nullptr: not in this build
  int few_rows;     // rows of a tile of few rows, at most
  int (*tile)(const TileArgs& args);  // returns what the next unit's `asked` shall be
  void (*merge)(const TileArgs& args, int64_t index);
};

CpuKernels kernels_avx512bf16(Dtype dtype);
CpuKernels kernels_avx512(Dtype dtype);
CpuKernels kernels_avx2(Dtype dtype);
CpuKernels kernels_portable(Dtype dtype);

}  // namespace ttc
