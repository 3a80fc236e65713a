// Where to cut the trie into rectangles.
#pragma once

#include <cstdint>

#include "host/planner.h"
#include "host/trie.h"

namespace ttc {

// Queries of the depth-first rows [row_begin, row_end) against the key positions [k_begin, k_end).
struct Rectangle {
  int32_t row_begin, row_end;
  int32_t k_begin, k_end;
};

// All cover each row's path exactly once, in path order. query_ptr[i] is the first planned query of
// depth-first row i.

// Modelled time of one worker, per KV head, in nanoseconds.
struct CutCosts {
  double best;      // of the cut returned
  double per_node;  // of one rectangle for each node
  double unshared;  // of one rectangle for each row
};

// The cheapest cut. A node's keys are either a rectangle of their own, together with keys that nodes
// above left open, or are left open for each child to read. A rectangle spans at most kMaxSpan nodes.
constexpr int32_t kMaxSpan = 32;
Vector<Rectangle> cut_by_cost(const Trie& trie, const Vector<int32_t>& query_ptr, const PlanOptions& options,
                              CutCosts& costs, std::pmr::memory_resource* memory);

// Cuts at every multiple of PlanOptions::chunk and nowhere else.
Vector<Rectangle> cut_at_chunks(const Trie& trie, const PlanOptions& options, std::pmr::memory_resource* memory);

// The cheapest cut at some of these places. A rectangle that begins a stretch (see plan_layout.h) goes up
// to its end at most, one that begins a row to the end of some stretch, or of the row; others are a chunk.
Vector<Rectangle> cut_folded(const Trie& trie, const Vector<int32_t>& query_ptr, const PlanOptions& options,
                             CutCosts& costs, std::pmr::memory_resource* memory);

// Cuts rectangles along the keys where some worker would otherwise be left with too large a piece.
void split_long(Vector<Rectangle>& rectangles, const Vector<int32_t>& query_ptr, const PlanOptions& options,
                std::pmr::memory_resource* memory);

// The same for those of a folded cut that span several stretches.
void split_stretches(Vector<Rectangle>& rectangles, const Vector<int32_t>& query_ptr, const PlanOptions& options,
                     std::pmr::memory_resource* memory);

}  // namespace ttc
