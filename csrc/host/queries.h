// Query tokens in depth-first order of the tree, and which keys each may see.
#pragma once

#include <cstdint>
#include <span>

#include "common/plan_layout.h"
#include "host/planner.h"
#include "host/trie.h"

namespace ttc {

// Planned queries: those of the trie's rows in its order, then those of rows without any page.
struct Queries {
  Vector<int32_t> row_ptr;  // first planned query of each depth-first row, and the end of the last
  Vector<int32_t> token, row, back;  // as in plan_layout.h
  Vector<DraftNode> draft;           // empty if no row has a draft tree
  int64_t count = 0;                      // of all rows
  bool one_each = true;                   // every row has exactly one

  Queries(const Trie& trie, std::span<const PlanRow> rows, std::pmr::memory_resource* memory);

  // Whether a query may see a key of [k_begin, k_end) now or after any plan.update().
  bool sees(int64_t q, const PlanRow& row, int64_t k_begin, int64_t k_end, int64_t window_left) const {
    return k_begin < row.reserved_len - back[q] && first_key(q, row, window_left) < k_end;
  }
  // The first key that a query sees; in a draft tree, the first that it may see.
  int64_t first_key(int64_t q, const PlanRow& row, int64_t window_left) const;
};

}  // namespace ttc
