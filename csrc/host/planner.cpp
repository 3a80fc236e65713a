// Rectangles cut to tiles, partial slots, merge lists, statistics, and the buffer that holds them.
#include "host/planner.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>
#include <sstream>
#include <stdexcept>

#include "common/plan_layout.h"

namespace ttc {
namespace {

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  text << "plan_tree_attention: ";
  (text << ... << parts);
  throw std::invalid_argument(text.str());
}

void check_options(const PlanOptions& o) {
  if (o.page_size < 1) fail("page_size must be at least 1, got ", o.page_size);
  if (o.num_kv_heads < 1 || o.num_q_heads < 1 || o.num_q_heads % o.num_kv_heads != 0)
    fail("num_q_heads must be a positive multiple of num_kv_heads, got ", o.num_q_heads, " and ",
         o.num_kv_heads);
  if (o.head_dim != 64 && o.head_dim != 96 && o.head_dim != 128 && o.head_dim != 256)
    fail("head_dim must be 64, 96, 128 or 256, got ", o.head_dim);
  if (o.window_left < -1) fail("window_left must be -1 (unlimited) or >= 0, got ", o.window_left);
}

void check_row(const PlanRow& row, size_t i, int64_t page_size) {
  if (row.q_len < 0) fail("q_lens[", i, "] must be >= 0, got ", row.q_len);
  if (row.kv_len < 0) fail("kv_lens[", i, "] must be >= 0, got ", row.kv_len);
  if (row.kv_len != 0 && row.kv_len < row.q_len)
    fail("kv_lens[", i, "] counts the row's own ", row.q_len, " query tokens, got ", row.kv_len);
  if (row.reserved_len >= 0 && row.reserved_len < row.kv_len)
    fail("reserved_lens[", i, "] must be at least kv_lens[", i, "] = ", row.kv_len, ", got ", row.reserved_len);
  const int64_t pages = (std::max(row.kv_len, row.reserved_len) + page_size - 1) / page_size;
  if (pages > row.num_table_pages && row.reserved_len > row.kv_len)
    fail("block_tables[", i, "] must hold ", pages, " pages for reserved_lens[", i, "] = ", row.reserved_len,
         " at page_size ", page_size, ", got ", row.num_table_pages);
  if (pages > row.num_table_pages)
    fail("block_tables[", i, "] must hold ", pages, " pages for kv_lens[", i, "] = ", row.kv_len,
         " at page_size ", page_size, ", got ", row.num_table_pages);
  for (int64_t p = 0; p < pages; ++p)
    if (row.pages[p] < 0) fail("block_tables[", i, "][", p, "] must be a page id, got ", row.pages[p]);
  if (row.draft_parents == nullptr) return;
  if (row.kv_len == 0 && row.q_len > 0) fail("draft_parents[", i, "] is given for an empty row");
  for (int64_t j = 0; j < row.q_len; ++j)
    if (row.draft_parents[j] < -1 || row.draft_parents[j] >= j)
      fail("draft_parents[", i, "][", j, "] must name an earlier token or -1, got ", row.draft_parents[j]);
}

// Preorder intervals and depths of one draft tree, parents before children.
void encode_draft(const int32_t* parent, int64_t n, int32_t row_begin, DraftNode* out) {
  std::vector<int32_t> size(n, 1), next(n + 1);
  for (int64_t j = n - 1; j >= 0; --j)
    if (parent[j] >= 0) size[parent[j]] += size[j];
  int32_t root_next = 0;
  for (int64_t j = 0; j < n; ++j) {
    int32_t& cursor = parent[j] >= 0 ? next[parent[j]] : root_next;
    const int32_t depth = parent[j] >= 0 ? out[parent[j]].depth + 1 : 0;
    out[j] = {row_begin, cursor, cursor + size[j], depth};
    next[j] = cursor + 1;
    cursor += size[j];
  }
}

int32_t tile_class(int64_t rows) {
  for (const int32_t c : {16, 32, 64})
    if (rows <= c) return c;
  return 128;
}

// Collects the sections, then lays them out behind the header.
class Builder {
 public:
  Builder(const std::vector<PlanRow>& rows, const PlanOptions& options)
      : rows_(rows), o_(options), trie_(build_trie(rows, options.page_size)) {
    order_queries();
  }

  Plan build() {
    plan_.stats.trie_nodes = int64_t(trie_.nodes.size());
    auto rectangles =
        o_.deterministic ? cut_deterministic(trie_, o_) : cut_by_cost(trie_, query_ptr_, o_);
    plan_.stats.cut_nodes = int64_t(rectangles.size());
    drop_out_of_window(rectangles);
    if (!o_.deterministic) split_long(rectangles);
    for (const Rectangle& r : rectangles) add_items(r);
    assign_partials();
    count_tokens();
    finish();
    return std::move(plan_);
  }

 private:
  const PlanRow& row_at(int64_t position) const { return rows_[trie_.order[position]]; }

  // Planned queries: rows in depth-first order, then the rows that see nothing.
  void order_queries() {
    std::vector<int64_t> token_begin(rows_.size() + 1, 0);
    for (size_t i = 0; i < rows_.size(); ++i) token_begin[i + 1] = token_begin[i] + rows_[i].q_len;
    num_queries_ = token_begin.back();
    std::vector<int32_t> order = trie_.order;
    for (size_t i = 0; i < rows_.size(); ++i) {
      if (rows_[i].reserved_len == 0 && rows_[i].q_len > 0) order.push_back(int32_t(i));
      has_draft_ |= rows_[i].draft_parents != nullptr;
    }
    if (has_draft_) draft_.resize(num_queries_);
    query_ptr_.assign(1, 0);
    for (const int32_t r : order) {
      const auto begin = int32_t(q_token_.size());
      for (int64_t j = 0; j < rows_[r].q_len; ++j) {
        q_token_.push_back(int32_t(token_begin[r] + j));
        q_row_.push_back(r);
        q_back_.push_back(int32_t(rows_[r].q_len - 1 - j));
        if (has_draft_) draft_[begin + j] = {-1, 0, 0, 0};
      }
      if (rows_[r].draft_parents)
        encode_draft(rows_[r].draft_parents, rows_[r].q_len, begin, draft_.data() + begin);
      query_ptr_.push_back(int64_t(q_token_.size()));
    }
  }

  // First and one past the last key that a planned query may see (draft trees: an upper bound).
  int64_t first_visible(int64_t q) const {
    if (o_.window_left < 0) return 0;
    const PlanRow& row = rows_[q_row_[q]];
    const bool draft = has_draft_ && draft_[q].row_begin >= 0;
    const int64_t position = draft ? row.kv_len - row.q_len + draft_[q].depth : row.kv_len - 1 - q_back_[q];
    return std::max<int64_t>(0, position - o_.window_left);
  }

  void drop_out_of_window(std::vector<Rectangle>& rectangles) const {
    if (o_.window_left < 0) return;
    std::erase_if(rectangles, [&](const Rectangle& r) {
      int64_t lo = std::numeric_limits<int64_t>::max();
      for (int64_t q = query_ptr_[r.row_begin]; q < query_ptr_[r.row_end]; ++q)
        lo = std::min(lo, first_visible(q));
      return r.k_end <= lo;
    });
  }

  int64_t tile_queries() const { return std::max<int64_t>(1, 128 / (o_.num_q_heads / o_.num_kv_heads)); }

  // Cuts rectangles along the keys until no tile takes more than its share of one worker's time.
  void split_long(std::vector<Rectangle>& rectangles) const {
    constexpr int64_t kAlign = 256, kTilesPerWorker = 4;
    const auto work = [&](const Rectangle& r, int64_t queries) { return double(queries + 4) * double(r.k_end - r.k_begin); };
    double total = 0;
    for (const auto& r : rectangles) total += work(r, query_ptr_[r.row_end] - query_ptr_[r.row_begin]);
    const double limit = total * double(o_.num_kv_heads) / double(o_.num_workers * kTilesPerWorker);
    std::vector<Rectangle> out;
    for (const auto& r : rectangles) {
      const int64_t queries = std::min(tile_queries(), query_ptr_[r.row_end] - query_ptr_[r.row_begin]);
      const auto pieces = int64_t(work(r, queries) / std::max(limit, 1.0)) + 1;
      const int64_t length = ((r.k_end - r.k_begin) / pieces + kAlign) / kAlign * kAlign;
      for (int64_t k = r.k_begin; k < r.k_end; k += length)
        out.push_back({r.row_begin, r.row_end, k, std::min(k + length, r.k_end)});
    }
    rectangles = std::move(out);
  }

  void add_items(const Rectangle& r) {
    const int64_t first_page = r.k_begin / o_.page_size;
    const int64_t last_page = (r.k_end - 1) / o_.page_size;
    const auto offset = int32_t(pages_.size());
    const int32_t* table = row_at(r.row_begin).pages;
    pages_.insert(pages_.end(), table + first_page, table + last_page + 1);
    const int64_t token_bytes = 2 * o_.num_kv_heads * o_.head_dim * o_.element_bytes;
    int64_t longest = 0;
    for (int64_t i = r.row_begin; i < r.row_end; ++i) longest = std::max(longest, row_at(i).kv_len);
    const int64_t bytes = std::max<int64_t>(0, std::min(r.k_end, longest) - r.k_begin) * token_bytes;
    plan_.stats.kv_bytes += bytes;
    const int64_t group = o_.num_q_heads / o_.num_kv_heads, step = tile_queries();
    for (int64_t q = query_ptr_[r.row_begin], end = query_ptr_[r.row_end]; q < end; q += step) {
      const int64_t count = std::min(step, end - q);
      bool draft = false;
      for (int64_t i = q; has_draft_ && i < q + count; ++i) draft |= draft_[i].row_begin >= 0;
      items_.push_back({int32_t(q), int32_t(count), int32_t(r.k_begin), int32_t(r.k_end), offset, -1,
                        tile_class(count * group), draft});
      plan_.stats.kv_bytes_read += bytes;
    }
  }

  // A query below one item only is written by it; all others go through ranked fp32 slots.
  void assign_partials() {
    std::vector<int32_t> items_over(num_queries_, 0);
    for (const WorkItem& item : items_)
      for (int32_t q = 0; q < item.q_count; ++q) ++items_over[item.q_begin + q];
    int64_t slots = 0;
    std::vector<std::vector<int32_t>> slots_of(num_queries_);
    for (WorkItem& item : items_) {
      bool alone = true;
      for (int32_t q = 0; q < item.q_count; ++q) alone &= items_over[item.q_begin + q] == 1;
      if (alone) continue;
      item.partial_base = int32_t(slots);
      for (int32_t q = 0; q < item.q_count; ++q) slots_of[item.q_begin + q].push_back(int32_t(slots++));
    }
    merge_ptr_.push_back(0);
    for (int64_t q = 0; q < num_queries_; ++q) {
      if (slots_of[q].empty() && items_over[q] == 1) continue;
      merge_query_.push_back(int32_t(q));
      merge_slot_.insert(merge_slot_.end(), slots_of[q].begin(), slots_of[q].end());
      merge_ptr_.push_back(int32_t(merge_slot_.size()));
    }
    plan_.stats.partials = slots;
    plan_.stats.partial_bytes = slots * o_.num_q_heads * (o_.head_dim + 2) * 4;
    const auto area = [](const WorkItem& w) { return int64_t(w.q_count + 4) * (w.k_end - w.k_begin); };
    std::stable_sort(items_.begin(), items_.end(),
                     [&](const WorkItem& a, const WorkItem& b) { return area(a) > area(b); });
  }

  void count_tokens() {
    PlanStats& s = plan_.stats;
    for (const int32_t r : trie_.order) s.path_kv_tokens += rows_[r].kv_len;
    for (const TrieNode& n : trie_.nodes) {
      int64_t longest = 0;
      for (int64_t i = n.row_begin; i < n.row_end; ++i) longest = std::max(longest, row_at(i).kv_len);
      s.unique_kv_tokens += std::clamp<int64_t>(longest - n.page_begin * o_.page_size, 0,
                                                (n.page_end - n.page_begin) * o_.page_size);
    }
    for (int64_t q = 0; q < query_ptr_[trie_.order.size()]; ++q)
      s.flops += (rows_[q_row_[q]].kv_len - q_back_[q] - first_visible(q)) * 4 * o_.num_q_heads * o_.head_dim;
    s.work_items = int64_t(items_.size());
    std::ostringstream text;
    if (s.unique_kv_tokens == s.path_kv_tokens)
      text << "nothing to share: every row reads its own keys";
    else if (s.kv_bytes * s.unique_kv_tokens > 0)
      text << (o_.deterministic ? "cut at fixed positions" : "cut by cost") << ": " << s.cut_nodes
           << " rectangles over " << s.trie_nodes << " nodes, each key read "
           << double(s.kv_bytes) / double(s.unique_kv_tokens * 2 * o_.num_kv_heads * o_.head_dim * o_.element_bytes)
           << " times instead of " << double(s.path_kv_tokens) / double(s.unique_kv_tokens);
    s.decision = text.str();
  }

  void finish() {
    PlanHeader h{};
    std::vector<int32_t>& out = plan_.buffer;
    out.resize(kHeaderInts);
    const auto append = [&](const void* data, size_t ints) {
      const size_t at = out.size();
      out.resize((at + ints + 7) / 8 * 8);  // sections start on 32 bytes
      if (ints) std::memcpy(out.data() + at, data, ints * 4);
      return int32_t(at);
    };
    std::vector<int32_t> kv_lens;
    for (const PlanRow& row : rows_) {
      kv_lens.push_back(int32_t(row.kv_len));
      plan_.reserved_lens.push_back(int32_t(row.reserved_len));
    }
    h.magic = kPlanMagic;
    h.num_rows = int32_t(rows_.size());
    h.num_queries = int32_t(num_queries_);
    h.num_items = int32_t(items_.size());
    h.num_pages = int32_t(pages_.size());
    h.num_partials = int32_t(plan_.stats.partials);
    h.num_merges = int32_t(merge_query_.size());
    h.num_merge_slots = int32_t(merge_slot_.size());
    h.page_size = int32_t(o_.page_size);
    h.num_q_heads = int32_t(o_.num_q_heads);
    h.num_kv_heads = int32_t(o_.num_kv_heads);
    h.head_dim = int32_t(o_.head_dim);
    h.window_left = int32_t(std::min<int64_t>(o_.window_left, std::numeric_limits<int32_t>::max()));
    h.max_page = pages_.empty() ? -1 : *std::max_element(pages_.begin(), pages_.end());
    h.deterministic = o_.deterministic;
    append(kv_lens.data(), kv_lens.size());
    h.items = append(items_.data(), items_.size() * 8);
    h.pages = append(pages_.data(), pages_.size());
    h.q_token = append(q_token_.data(), q_token_.size());
    h.q_row = append(q_row_.data(), q_row_.size());
    h.q_back = append(q_back_.data(), q_back_.size());
    h.draft = append(draft_.data(), draft_.size() * 4);
    h.merge_query = append(merge_query_.data(), merge_query_.size());
    h.merge_ptr = append(merge_ptr_.data(), merge_ptr_.size());
    h.merge_slot = append(merge_slot_.data(), merge_slot_.size());
    if (out.size() > size_t(std::numeric_limits<int32_t>::max())) fail("the plan is too large: ", out.size(), " ints");
    h.total_ints = int32_t(out.size());
    std::memcpy(out.data(), &h, sizeof h);
  }

  const std::vector<PlanRow>& rows_;
  const PlanOptions& o_;
  const Trie trie_;
  Plan plan_;
  int64_t num_queries_ = 0;
  bool has_draft_ = false;
  std::vector<int64_t> query_ptr_;  // by depth-first row
  std::vector<WorkItem> items_;
  std::vector<DraftNode> draft_;
  std::vector<int32_t> pages_, q_token_, q_row_, q_back_, merge_query_, merge_ptr_, merge_slot_;
};

}  // namespace

Plan make_plan(std::vector<PlanRow> rows, const PlanOptions& options) {
  check_options(options);
  const auto round_up = [](int64_t x, int64_t to) { return (x + to - 1) / to * to; };
  for (size_t i = 0; i < rows.size(); ++i) {
    PlanRow& row = rows[i];
    check_row(row, i, options.page_size);
    if (row.reserved_len >= 0) continue;
    row.reserved_len = round_up(row.kv_len, options.page_size);
    if (options.deterministic) row.reserved_len = std::min(row.reserved_len, round_up(row.kv_len, kDeterministicChunk));
  }
  return Builder(rows, options).build();
}

}  // namespace ttc
