// From block tables to work: the trie of the tables, its cut into rectangles, work items, the buffer.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "host/cost.h"

namespace ttc {

// One row of the caller's batch: where its pages stand and how much of them counts.
struct PlanRow {
  const int32_t* pages;
  int64_t num_table_pages;
  int64_t kv_len;
  int64_t q_len;
  int64_t reserved_len;          // how far plan.update() may grow the row; kDefaultReserve: see prepare_row
  const int32_t* draft_parents;  // q_len entries or nullptr
  int64_t num_pages;             // set by prepare_row: the pages that hold reserved_len tokens
};
constexpr int64_t kDefaultReserve = INT64_MIN;

struct PlanOptions {
  int64_t page_size, num_q_heads, num_kv_heads, head_dim;
  int64_t element_bytes;  // of a key or value
  int64_t window_left;    // -1: unlimited
  int64_t chunk;          // deterministic plans cut at multiples of this many tokens only; 0: cut by cost
  bool fold;              // the kernel folds chunks: items may span several, see plan_layout.h
  int64_t num_workers;
  Tiling tiling;
  CostModel cost;
};

struct PlanStats {
  int64_t unique_kv_tokens = 0, path_kv_tokens = 0;
  int64_t work_items = 0, partials = 0, trie_nodes = 0, rectangles = 0;
  int64_t kv_bytes = 0, kv_bytes_read = 0, flops = 0, partial_bytes = 0;
  double modelled_us = 0, floor_us = 0, cut_us = 0;
  std::string decision;
};

// What a plan takes of its buffers.
struct PlanSize {
  int64_t rows, queries, ints, partials;
};

// Plans, asks `allocate` for the buffer (PlanSize::ints long) and writes it. Rows get their default
// reserve. Throws std::invalid_argument with the row and the value for anything inconsistent, before
// `allocate` is called.
using AllocatePlan = std::function<int32_t*(const PlanSize&)>;
PlanStats make_plan(std::span<PlanRow> rows, const PlanOptions& options, const AllocatePlan& allocate);

}  // namespace ttc
