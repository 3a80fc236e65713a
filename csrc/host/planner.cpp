// make_plan: check, trie, cut, items, buffer.
#include "host/planner.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <limits>

#include "common/plan_layout.h"
#include "host/check.h"
#include "host/cut.h"
#include "host/items.h"
#include "host/queries.h"
#include "host/trie.h"

namespace ttc {
namespace {

// Keys left of every window are in no rectangle. Deterministic plans keep their chunks whole.
void trim_to_window(Vector<Rectangle>& rectangles, const Queries& queries, std::span<const PlanRow> rows,
                    const PlanOptions& o) {
  if (o.window_left < 0 || o.chunk) return;
  constexpr int64_t kAlign = 128;
  std::erase_if(rectangles, [&](Rectangle& r) {
    int64_t first = r.k_end;
    for (int64_t q = queries.row_ptr[r.row_begin]; q < queries.row_ptr[r.row_end]; ++q)
      first = std::min(first, queries.first_key(q, rows[queries.row[q]], o.window_left));
    r.k_begin = std::max(r.k_begin, int32_t(first / kAlign * kAlign));
    return r.k_begin >= r.k_end;
  });
}

void count_tokens(const Trie& trie, std::span<const PlanRow> rows, const Queries& queries, const PlanOptions& o,
                  PlanStats& s, std::pmr::memory_resource* memory) {
  for (const int32_t r : trie.order) s.path_kv_tokens += rows[r].kv_len;
  // The longest row below each node, children first.
  Vector<int64_t> longest(trie.nodes.size(), memory);
  for (int64_t v = int64_t(trie.nodes.size()) - 1; v >= 0; --v) {
    const TrieNode& n = trie.nodes[v];
    if (n.is_leaf()) longest[v] = rows[trie.order[n.row_begin]].kv_len;
    if (n.parent >= 0) longest[n.parent] = std::max(longest[n.parent], longest[v]);
    const int64_t begin = n.page_begin * o.page_size, end = n.page_end * o.page_size;
    s.unique_kv_tokens += std::clamp<int64_t>(longest[v] - begin, 0, end - begin);
  }
  int64_t pairs = 0;
  for (int64_t q = 0; q < queries.row_ptr.back(); ++q) {
    const PlanRow& row = rows[queries.row[q]];
    pairs += std::max<int64_t>(0, row.kv_len - queries.back[q] - queries.first_key(q, row, o.window_left));
  }
  s.flops = pairs * 4 * o.num_q_heads * o.head_dim;
}

std::string decision(const PlanStats& s, const CutCosts& costs, const PlanOptions& o) {
  if (s.unique_kv_tokens == s.path_kv_tokens) return "nothing to share: every row reads its own keys";
  if (s.kv_bytes == 0) return "nothing to read";
  const auto token_bytes = double(2 * o.num_kv_heads * o.head_dim * o.element_bytes);
  const double times = double(s.kv_bytes) / (double(s.unique_kv_tokens) * token_bytes);
  const double path_times = double(s.path_kv_tokens) / double(s.unique_kv_tokens);
  char text[256];
  const auto us = [&](double ns) { return ns * double(o.num_kv_heads) / double(o.num_workers) / 1e3; };
  if (o.chunk)
    std::snprintf(text, sizeof text,
                  "cut at fixed positions: %lld rectangles over %lld nodes, each key read %.2f times instead of %.2f",
                  static_cast<long long>(s.rectangles), static_cast<long long>(s.trie_nodes), times, path_times);
  else if (costs.best >= costs.unshared)
    std::snprintf(text, sizeof text,
                  "declines to share: one rectangle a row is modelled at %.1f us, one a node at %.1f us; each key read "
                  "%.2f times",
                  us(costs.unshared), us(costs.per_node), times);
  else
    std::snprintf(text, sizeof text,
                  "cut by cost: %lld rectangles over %lld nodes, each key read %.2f times instead of %.2f; "
                  "modelled at %.1f us, one a node at %.1f, unshared at %.1f",
                  static_cast<long long>(s.rectangles), static_cast<long long>(s.trie_nodes), times, path_times,
                  us(costs.best), us(costs.per_node), us(costs.unshared));
  return text;
}

// The buffer's sections, laid out behind each other at multiples of 8 ints.
PlanHeader lay_out(int64_t num_rows, const Queries& queries, const Items& items, const PlanOptions& o) {
  PlanHeader h{};
  int64_t at = kHeaderInts;
  const auto place = [&](int64_t ints) {
    const int64_t begin = at;
    at = (at + ints + 7) / 8 * 8;
    return int32_t(std::min<int64_t>(begin, std::numeric_limits<int32_t>::max()));
  };
  place(num_rows);
  h.items = place(items.num_items() * 8);
  h.pages = place(items.num_pages);
  h.q_token = place(queries.count);
  h.q_row = place(queries.count);
  h.q_back = place(queries.count);
  h.draft = place(int64_t(queries.draft.size()) * 4);
  h.merge_query = place(items.num_merges);
  h.merge_ptr = place(items.num_merges + 1);
  h.merge_slot = place(items.num_partials);
  h.q_merge = place(queries.count);
  if (at > std::numeric_limits<int32_t>::max()) refuse("the plan is too large: ", at, " ints");
  h.magic = kPlanMagic;
  h.total_ints = int32_t(at);
  h.num_rows = int32_t(num_rows);
  h.num_queries = int32_t(queries.count);
  h.num_items = int32_t(items.num_items());
  h.num_pages = int32_t(items.num_pages);
  h.num_partials = int32_t(items.num_partials);
  h.num_merges = int32_t(items.num_merges);
  h.num_merge_slots = int32_t(items.num_partials);
  h.page_size = int32_t(o.page_size);
  h.num_q_heads = int32_t(o.num_q_heads);
  h.num_kv_heads = int32_t(o.num_kv_heads);
  h.head_dim = int32_t(o.head_dim);
  h.window_left = int32_t(std::min<int64_t>(o.window_left, std::numeric_limits<int32_t>::max()));
  h.chunk = int32_t(o.chunk);
  return h;
}

void write(int32_t* out, const PlanHeader& h, std::span<const PlanRow> rows, const Queries& queries,
           const Items& items) {
  std::memcpy(out, &h, sizeof h);
  for (size_t i = 0; i < rows.size(); ++i) out[kHeaderInts + i] = int32_t(rows[i].kv_len);
  items.write_items(reinterpret_cast<WorkItem*>(out + h.items));
  items.write_pages(out + h.pages);
  std::copy(queries.token.begin(), queries.token.end(), out + h.q_token);
  std::copy(queries.row.begin(), queries.row.end(), out + h.q_row);
  std::copy(queries.back.begin(), queries.back.end(), out + h.q_back);
  std::copy(queries.draft.begin(), queries.draft.end(), reinterpret_cast<DraftNode*>(out + h.draft));
  items.write_merges(out + h.merge_query, out + h.merge_ptr, out + h.merge_slot, out + h.q_merge);
  // What lies between the sections is zero, so that equal plans are equal buffers.
  for (const int64_t end :
       {kHeaderInts + h.num_rows, h.items + 8 * h.num_items, h.pages + h.num_pages, h.q_token + h.num_queries,
        h.q_row + h.num_queries, h.q_back + h.num_queries, h.merge_query + h.num_merges, h.merge_ptr + h.num_merges + 1,
        h.merge_slot + h.num_merge_slots, h.q_merge + h.num_queries})
    std::fill(out + end, out + (end + 7) / 8 * 8, 0);
}

}  // namespace

PlanStats make_plan(std::span<PlanRow> rows, const PlanOptions& options, const AllocatePlan& allocate) {
  Scratch scratch;
  std::pmr::memory_resource* const memory = scratch.memory();
  int64_t num_queries = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    prepare_row(rows[i], int64_t(i), options);
    num_queries += rows[i].q_len;
  }
  if (num_queries > std::numeric_limits<int32_t>::max() / 8)
    refuse("q_lens must sum to less than 2^28, got ", num_queries);
  const Trie trie = build_trie(rows, memory);
  const int32_t max_page = check_pages(trie, rows);
  const Queries queries(trie, rows, memory);
  PlanStats stats;
  CutCosts costs{};
  Vector<Rectangle> rectangles = options.fold    ? cut_folded(trie, queries.row_ptr, options, costs, memory)
                                 : options.chunk ? cut_at_chunks(trie, options, memory)
                                                 : cut_by_cost(trie, queries.row_ptr, options, costs, memory);
  stats.trie_nodes = int64_t(trie.nodes.size());
  stats.rectangles = int64_t(rectangles.size());
  trim_to_window(rectangles, queries, rows, options);
  if (!options.chunk) split_long(rectangles, queries.row_ptr, options, memory);
  if (options.fold) split_stretches(rectangles, queries.row_ptr, options, memory);
  Items items(trie, rows, queries, options, memory);
  items.add(rectangles);
  items.finish();
  count_tokens(trie, rows, queries, options, stats, memory);
  items.describe(stats);
  const auto unique_bytes =
      double(stats.unique_kv_tokens * 2 * options.num_kv_heads * options.head_dim * options.element_bytes);
  stats.floor_us =
      std::max(unique_bytes / options.cost.bytes_per_ns, double(stats.flops) / options.cost.flops_per_ns) / 1e3;
  stats.cut_us = costs.best / 1e3;
  stats.decision = decision(stats, costs, options);
  PlanHeader header = lay_out(int64_t(rows.size()), queries, items, options);
  header.max_page = max_page;
  write(allocate({int64_t(rows.size()), queries.count, header.total_ints, items.num_partials}), header, rows, queries,
        items);
  return stats;
}

}  // namespace ttc
