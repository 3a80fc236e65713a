// Rectangles become work items: runs of queries that see something, tiles, partial slots, merge lists.
#pragma once

#include <cstdint>
#include <utility>

#include "host/cut.h"
#include "host/queries.h"

namespace ttc {

// A piece of one row's table, copied into the plan.
struct PageRun {
  int32_t row, first, count;
};

class Items {
 public:
  Items(const Trie& trie, std::span<const PlanRow> rows, const Queries& queries, const PlanOptions& options,
        std::pmr::memory_resource* memory);

  // Takes the rectangles in path order.
  void add(const Vector<Rectangle>& rectangles);
  // Cuts the runs into items and assigns slots.
  void finish();

  void write_items(WorkItem* out) const;  // most expensive first
  void write_pages(int32_t* out) const;
  void write_merges(int32_t* query, int32_t* ptr, int32_t* slot, int32_t* q_merge) const;
  // Adds what the items move and compute to the statistics.
  void describe(PlanStats& stats) const;

  int64_t num_items() const { return int64_t(items_.size()); }
  int64_t num_pages = 0, num_partials = 0, num_merges = 0;

 private:
  // Consecutive queries against a run of keys.
  struct Run {
    int32_t q_begin, q_end, k_begin, k_end, page_offset;
    int32_t tokens;  // keys that exist now
  };
  void add_runs(const Rectangle& r, int32_t page_offset, int32_t tokens);
  void add_tiles(const Run& run);
  void rank_items();

  const Trie& trie_;
  std::span<const PlanRow> rows_;
  const Queries& queries_;
  const PlanOptions& o_;
  Vector<PageRun> page_runs_;
  Vector<Run> runs_;
  Vector<int32_t> items_over_;  // by query
  Vector<int32_t> slots_of_;    // by query
  Vector<WorkItem> items_;      // in path order
  Vector<float> costs_;         // of the items, per KV head and without partials
  Vector<int32_t> ranked_;      // items, most expensive first
  ItemCost cost_{};                  // of the last item's number of queries
  int64_t covered_tokens_ = 0, read_tokens_ = 0;
};

}  // namespace ttc
