// From block tables to work: the trie of the tables, the cut of the trie into rectangles, the buffer.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ttc {

// One row of the caller's batch: where its pages stand and how much of them counts.
struct PlanRow {
  const int32_t* pages;  // at least ceil(reserved_len / page_size) entries
  int64_t num_table_pages;
  int64_t kv_len;
  int64_t reserved_len;  // how far plan.update() may grow the row; -1: to the end of its last page
  int64_t q_len;
  const int32_t* draft_parents;  // q_len entries or nullptr
};

struct PlanOptions {
  int64_t page_size, num_q_heads, num_kv_heads, head_dim;
  int64_t element_bytes;
  int64_t window_left = -1;
  bool deterministic = false;
  int64_t num_workers = 1;
};

struct PlanStats {
  int64_t unique_kv_tokens = 0, path_kv_tokens = 0;
  int64_t work_items = 0, partials = 0, trie_nodes = 0, cut_nodes = 0;
  int64_t kv_bytes = 0, kv_bytes_read = 0, flops = 0, partial_bytes = 0;
  std::string decision;
};

struct Plan {
  std::vector<int32_t> buffer;        // common/plan_layout.h
  std::vector<int32_t> reserved_lens;  // how far plan.update() may grow each row
  PlanStats stats;
};

// Throws std::invalid_argument with the row and the value for anything inconsistent.
Plan make_plan(std::vector<PlanRow> rows, const PlanOptions& options);

// Deterministic plans cut at multiples of this many tokens and nowhere else.
constexpr int64_t kDeterministicChunk = 256;

// ---- pieces, apart so that each can be read alone -------------------------------------------------

// A node of the trie: the rows [row_begin, row_end) (in depth-first order) share the pages
// [page_begin, page_end) of their tables and nothing after that. Children follow their parent.
//
//      tables           trie
//      A: 4 7 9         [4 7]---[9]     rows A
//      B: 4 7 2 5            \--[2 5]   rows B
struct TrieNode {
  int64_t row_begin, row_end;
  int64_t page_begin, page_end;
  int32_t parent;  // -1: root
};

struct Trie {
  std::vector<int32_t> order;   // depth-first position -> index into rows
  std::vector<TrieNode> nodes;  // preorder; every row ends in a leaf of its own, maybe without pages
};

Trie build_trie(const std::vector<PlanRow>& rows, int64_t page_size);

// Queries of the depth-first rows [row_begin, row_end) against the key positions [k_begin, k_end).
struct Rectangle {
  int64_t row_begin, row_end;
  int64_t k_begin, k_end;
};

// Cuts the trie so that each row's path is covered exactly once, in path order.
// query_ptr[i] is the first planned query of depth-first row i.
std::vector<Rectangle> cut_deterministic(const Trie& trie, const PlanOptions& options);
std::vector<Rectangle> cut_by_cost(const Trie& trie, const std::vector<int64_t>& query_ptr,
                                   const PlanOptions& options);

}  // namespace ttc
