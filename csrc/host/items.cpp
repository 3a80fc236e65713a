#include "host/items.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace ttc {

Items::Items(const Trie& trie, std::span<const PlanRow> rows, const Queries& queries, const PlanOptions& options,
             std::pmr::memory_resource* memory)
    : trie_(trie),
      rows_(rows),
      queries_(queries),
      o_(options),
      page_runs_(memory),
      runs_(memory),
      items_over_(queries.count + 1, memory),
      slots_of_(queries.count, memory),
      items_(memory),
      costs_(memory),
      ranked_(memory) {}

void Items::add(const Vector<Rectangle>& rectangles) {
  page_runs_.reserve(rectangles.size());
  runs_.reserve(rectangles.size());
  const auto page = int32_t(o_.page_size);
  for (Rectangle r : rectangles) {
    // Keys end where every row does, now and after updates.
    int32_t longest = 0, reserved = 0;
    for (int32_t i = r.row_begin; i < r.row_end && longest < r.k_end; ++i) {
      const PlanRow& row = rows_[trie_.order[i]];
      longest = std::max(longest, int32_t(std::min<int64_t>(row.kv_len, r.k_end)));
      reserved = std::max(reserved, int32_t(std::min<int64_t>(row.reserved_len, r.k_end)));
    }
    r.k_end = std::max(longest, reserved);
    const int32_t tokens = std::max(0, longest - r.k_begin);
    const int32_t first = r.k_begin / page;
    const auto offset = int32_t(num_pages);
    const auto before = runs_.size();
    add_runs(r, offset, tokens);
    if (runs_.size() == before) continue;
    const int32_t count = (r.k_end - 1) / page - first + 1;
    page_runs_.push_back({trie_.order[r.row_begin], first, count});
    num_pages += count;
    covered_tokens_ += tokens;
  }
}

// The queries of a rectangle that see any of its keys, now or later: one run, or several.
void Items::add_runs(const Rectangle& r, int32_t page_offset, int32_t tokens) {
  const int32_t begin = queries_.row_ptr[r.row_begin], end = queries_.row_ptr[r.row_end];
  const auto add = [&](int32_t q_begin, int32_t q_end) {
    runs_.push_back({q_begin, q_end, r.k_begin, r.k_end, page_offset, tokens});
    ++items_over_[q_begin];
    --items_over_[q_end];
  };
  // Decoding without a window: a row below a node sees the node, for it has a page there.
  const bool all_see = queries_.one_each && o_.window_left < 0 && (!o_.chunk || o_.page_size <= o_.chunk);
  if (all_see) return add(begin, end);
  int32_t open = -1;
  for (int32_t q = begin; q < end; ++q) {
    const bool sees = queries_.sees(q, rows_[queries_.row[q]], r.k_begin, r.k_end, o_.window_left);
    if (sees && open < 0) open = q;
    if (!sees && open >= 0) add(std::exchange(open, -1), q);
  }
  if (open >= 0) add(open, end);
}

void Items::finish() {
  for (int64_t q = 0, sum = 0; q <= queries_.count; ++q) items_over_[q] = int32_t(sum += items_over_[q]);
  items_.reserve(runs_.size() + runs_.size() / 4);
  costs_.reserve(items_.capacity());
  for (const Run& run : runs_) {
    if (!o_.chunk || o_.fold) {
      add_tiles(run);
      continue;
    }
    // Whether a query's output is written at once or merged must not depend on its neighbours.
    Run part = run;
    for (int32_t q = run.q_begin; q < run.q_end; q = part.q_end) {
      part.q_begin = q;
      const bool alone = items_over_[q] == 1;
      for (part.q_end = q + 1; part.q_end < run.q_end && (items_over_[part.q_end] == 1) == alone;) ++part.q_end;
      add_tiles(part);
    }
  }
  for (int64_t q = 0; q < queries_.count; ++q) num_merges += slots_of_[q] > 0 || items_over_[q] == 0;
  rank_items();
}

void Items::add_tiles(const Run& run) {
  // Tiles of one run share the cost of reading its keys for the first time.
  const int32_t per_tile = o_.tiling.tile_queries, queries = run.q_end - run.q_begin;
  const int32_t tiles = queries <= per_tile ? 1 : (queries + per_tile - 1) / per_tile;
  const double per_token = (o_.cost.token + o_.cost.token_again * (tiles - 1)) / tiles;
  for (int32_t q = run.q_begin; q < run.q_end; q += int32_t(o_.tiling.tile_queries)) {
    const int32_t count = std::min(int32_t(o_.tiling.tile_queries), run.q_end - q);
    WorkItem item{q, count, run.k_begin, run.k_end, run.page_offset, -1, o_.tiling.class_of(count), 0};
    bool alone = true;
    for (int32_t i = q; i < q + count; ++i) alone &= items_over_[i] == 1;
    if (!alone) {
      item.partial_base = int32_t(num_partials);
      num_partials += count;
      for (int32_t i = q; i < q + count; ++i) ++slots_of_[i];
    }
    int32_t tokens = run.tokens;
    if (!queries_.one_each) {
      // The tile's queries end before the run's keys where they are a row's earlier tokens.
      int64_t last = 0, last_reserved = 0;
      for (int32_t i = q; i < q + count; ++i) {
        const PlanRow& row = rows_[queries_.row[i]];
        last = std::max(last, row.kv_len - queries_.back[i]);
        last_reserved = std::max(last_reserved, row.reserved_len - queries_.back[i]);
      }
      item.k_end = int32_t(std::min<int64_t>(item.k_end, last_reserved));
      tokens = int32_t(std::clamp<int64_t>(last - item.k_begin, 0, tokens));
    }
    for (int32_t i = q; i < q + count && !queries_.draft.empty(); ++i)
      item.has_draft |= queries_.draft[i].row_begin >= 0;
    if (costs_.empty() || items_.back().q_count != count) cost_ = ItemCost(o_.cost, o_.tiling, count);
    cost_.per_token = per_token;
    items_.push_back(item);
    costs_.push_back(float(cost_(tokens, false)));
    read_tokens_ += tokens;
  }
}

// Most expensive first, to within a sixteenth: a counting sort on the leading bits of the cost.
void Items::rank_items() {
  constexpr int32_t kBuckets = 1024;
  const auto key = [](float cost) { return std::bit_cast<int32_t>(cost) >> 19; };
  int32_t top = 0;
  for (const float c : costs_) top = std::max(top, key(c));
  const auto bucket = [&](float c) { return std::min(top - key(c), kBuckets - 1); };
  Vector<int32_t> start(kBuckets + 1, costs_.get_allocator());
  for (const float c : costs_) ++start[bucket(c) + 1];
  for (int32_t b = 0; b < kBuckets; ++b) start[b + 1] += start[b];
  ranked_.resize(items_.size());
  for (size_t i = 0; i < items_.size(); ++i) ranked_[start[bucket(costs_[i])]++] = int32_t(i);
}

void Items::write_items(WorkItem* out) const {
  for (const int32_t i : ranked_) *out++ = items_[i];
}

void Items::write_pages(int32_t* out) const {
  for (const PageRun& run : page_runs_) {
    std::memcpy(out, rows_[run.row].pages + run.first, size_t(run.count) * sizeof(int32_t));
    out += run.count;
  }
}

void Items::write_merges(int32_t* query, int32_t* ptr, int32_t* slot, int32_t* q_merge) const {
  // A query in no item sees nothing: an empty list writes its empty state.
  Vector<int32_t> next(queries_.count, slots_of_.get_allocator());
  int32_t at = 0, count = 0;
  for (int64_t q = 0; q < queries_.count; ++q) {
    next[q] = at;
    const bool merged = slots_of_[q] > 0 || items_over_[q] == 0;
    q_merge[q] = merged ? count++ : -1;
    if (!merged) continue;
    *query++ = int32_t(q);
    *ptr++ = at;
    at += slots_of_[q];
  }
  *ptr = at;
  for (const WorkItem& item : items_) {
    const bool begins_stretch = o_.fold && item.k_begin % kStretchTokens == 0;
    for (int32_t i = 0; item.partial_base >= 0 && i < item.q_count; ++i)
      slot[next[item.q_begin + i]++] = begins_stretch ? ~(item.partial_base + i) : item.partial_base + i;
  }
}

void Items::describe(PlanStats& s) const {
  const auto heads = double(o_.num_kv_heads), workers = double(o_.num_workers);
  const int64_t token_bytes = 2 * o_.num_kv_heads * o_.head_dim * o_.element_bytes;
  s.work_items = num_items();
  s.partials = num_partials;
  s.kv_bytes = covered_tokens_ * token_bytes;
  s.kv_bytes_read = read_tokens_ * token_bytes;
  s.partial_bytes = num_partials * o_.num_q_heads * (o_.head_dim + 2) * 4;
  // Of the m most expensive units, some worker gets at least m / workers, rounded up.
  double total = 0, bound = 0, units = 0;
  for (const int32_t i : ranked_) {
    units += heads;
    total += heads * costs_[i];
    bound = std::max(bound, double(int64_t((units - 1) / workers) + 1) * costs_[i]);
  }
  const double merge = o_.cost.partial * double(num_partials * o_.num_q_heads) / workers;
  const double busy = std::max(bound, total / workers) + merge;
  const double bytes = double(s.kv_bytes) / o_.cost.bytes_per_ns, flops = double(s.flops) / o_.cost.flops_per_ns;
  s.modelled_us = (o_.cost.launch + std::max({busy, bytes, flops})) / 1e3;
}

}  // namespace ttc
