// The trie of the block tables: which rows share which pages.
#pragma once

#include <cstdint>
#include <span>

#include "host/scratch.h"

namespace ttc {

struct PlanRow;

// The rows [row_begin, row_end), in depth-first order, share the pages [page_begin, page_end) of their
// tables and nothing after that. Children follow their parent.
//
//      tables           trie
//      A: 4 7 9         [4 7]---[9]     rows A
//      B: 4 7 2 5            \--[2 5]   rows B
struct TrieNode {
  int32_t row_begin, row_end;
  int32_t page_begin, page_end;
  int32_t parent;  // -1: a root
  int32_t depth;   // 0: a root

  bool is_leaf() const { return row_end - row_begin == 1; }
};

struct Trie {
  Vector<int32_t> order;   // depth-first position -> index into rows
  Vector<TrieNode> nodes;  // preorder; every row ends in a leaf of its own, maybe without pages
};

// Rows without pages or queries are left out. Takes time linear in the table entries.
Trie build_trie(std::span<const PlanRow> rows, std::pmr::memory_resource* memory);

}  // namespace ttc
