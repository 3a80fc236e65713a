#include "host/check.h"

#include <algorithm>
#include <limits>

#include "host/vector.h"

namespace ttc {

void check_options(const PlanOptions& o) {
  if (o.page_size < 1) refuse("page_size must be at least 1, got ", o.page_size);
  if (o.num_kv_heads < 1 || o.num_q_heads < 1 || o.num_q_heads % o.num_kv_heads != 0)
    refuse("num_q_heads must be a positive multiple of num_kv_heads, got ", o.num_q_heads, " and ", o.num_kv_heads);
  if (o.head_dim != 64 && o.head_dim != 96 && o.head_dim != 128 && o.head_dim != 256)
    refuse("head_dim must be 64, 96, 128 or 256, got ", o.head_dim);
  if (o.chunk < 0 || o.chunk % 128 != 0) refuse("chunk must be 0 or a multiple of 128, got ", o.chunk);
  if (o.fold && o.chunk != 128) refuse("fold needs chunk 128, got ", o.chunk);
  if (o.window_left < -1) refuse("window_left must be -1 (unlimited) or >= 0, got ", o.window_left);
}

void prepare_row(PlanRow& row, int64_t i, const PlanOptions& o) {
  const auto round_up = [](int64_t x, int64_t to) { return (x + to - 1) / to * to; };
  if (row.q_len < 0) refuse("q_lens[", i, "] must be >= 0, got ", row.q_len);
  if (row.kv_len < 0) refuse("kv_lens[", i, "] must be >= 0, got ", row.kv_len);
  if (row.kv_len != 0 && row.kv_len < row.q_len)
    refuse("kv_lens[", i, "] counts the row's own ", row.q_len, " query tokens, got ", row.kv_len);
  const int64_t present = (row.kv_len + o.page_size - 1) / o.page_size;
  if (present > row.num_table_pages)
    refuse("block_tables[", i, "] must hold ", present, " pages for kv_lens[", i, "] = ", row.kv_len, " at page_size ",
           o.page_size, ", got ", row.num_table_pages);
  if (row.reserved_len == kDefaultReserve) {
    row.reserved_len = present * o.page_size;
    if (o.chunk) row.reserved_len = std::min(row.reserved_len, round_up(row.kv_len, o.chunk));
  }
  if (row.reserved_len < row.kv_len)
    refuse("reserved_lens[", i, "] must be at least kv_lens[", i, "] = ", row.kv_len, ", got ", row.reserved_len);
  row.num_pages = (row.reserved_len + o.page_size - 1) / o.page_size;
  if (row.num_pages > row.num_table_pages)
    refuse("block_tables[", i, "] must hold ", row.num_pages, " pages for reserved_lens[", i, "] = ", row.reserved_len,
           " at page_size ", o.page_size, ", got ", row.num_table_pages);
  if (row.num_pages * o.page_size > std::numeric_limits<int32_t>::max())
    refuse("kv_lens[", i, "] must end before 2^31, the end of its last page included, got ", row.kv_len);
  if (row.draft_parents == nullptr) return;
  if (row.kv_len == 0 && row.q_len > 0) refuse("draft_parents[", i, "] is given for an empty row");
  for (int64_t j = 0; j < row.q_len; ++j)
    if (row.draft_parents[j] < -1 || row.draft_parents[j] >= j)
      refuse("draft_parents[", i, "][", j, "] must name an earlier token or -1, got ", row.draft_parents[j]);
}

namespace {

// The smallest and the largest of the pages of all nodes.
TTC_CLONES void page_range(const Trie& trie, std::span<const PlanRow> rows, int32_t& smallest, int32_t& largest) {
  Int4 low = {0, 0, 0, 0}, high = {-1, -1, -1, -1};
  const auto take = [&](Int4 x) {
    low = x < low ? x : low;
    high = x > high ? x : high;
  };
  for (const TrieNode& n : trie.nodes) {
    const int32_t* page = rows[trie.order[n.row_begin]].pages + n.page_begin;
    const int32_t count = n.page_end - n.page_begin;
    for (int32_t i = 0; i + 4 <= count; i += 4) take(*reinterpret_cast<const Int4*>(page + i));
    if (count >= 4)
      take(*reinterpret_cast<const Int4*>(page + count - 4));  // some of them once more
    else
      for (int32_t i = 0; i < count; ++i) take(Int4{page[i], page[i], page[i], page[i]});
  }
  smallest = std::min(std::min(low[0], low[1]), std::min(low[2], low[3]));
  largest = std::max(std::max(high[0], high[1]), std::max(high[2], high[3]));
}

}  // namespace

int32_t check_pages(const Trie& trie, std::span<const PlanRow> rows) {
  int32_t smallest, largest;
  page_range(trie, rows, smallest, largest);
  if (smallest >= 0) return largest;
  for (size_t i = 0; i < rows.size(); ++i)
    for (int64_t p = 0; p < rows[i].num_pages; ++p)
      if (rows[i].pages[p] < 0) refuse("block_tables[", i, "][", p, "] must be a page id, got ", rows[i].pages[p]);
  return largest;
}

}  // namespace ttc
