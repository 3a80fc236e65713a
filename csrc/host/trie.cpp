#include "host/trie.h"

#include <algorithm>
#include <bit>

#include "host/planner.h"
#include "host/vector.h"

namespace ttc {
namespace {

// Index of the first difference of a and b, or n.
int64_t first_difference(const int32_t* a, const int32_t* b, int64_t n) {
  const auto at = [](const int32_t* p) { return *reinterpret_cast<const Int4*>(p); };
  const auto differ = [](Int4 x) {
    const auto half = reinterpret_cast<Long2>(x);
    return (half[0] | half[1]) != 0;
  };
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const Int4 x = (at(a + i) ^ at(b + i)) | (at(a + i + 4) ^ at(b + i + 4));
    const Int4 y = (at(a + i + 8) ^ at(b + i + 8)) | (at(a + i + 12) ^ at(b + i + 12));
    if (differ(x | y)) break;
  }
  while (i + 4 <= n && !differ(at(a + i) ^ at(b + i))) i += 4;
  while (i < n && a[i] == b[i]) ++i;
  return i;
}

class Builder {
 public:
  Builder(std::span<const PlanRow> rows, std::pmr::memory_resource* memory)
      : rows_(rows),
        trie_{Vector<int32_t>(memory), Vector<TrieNode>(memory)},
        stack_(memory),
        runs_(memory),
        common_(memory),
        moved_(memory),
        ends_(memory),
        table_(memory) {
    trie_.order.reserve(rows.size());
    for (size_t i = 0; i < rows.size(); ++i)
      if (rows[i].num_pages > 0 && rows[i].q_len > 0) trie_.order.push_back(int32_t(i));
    const size_t n = trie_.order.size();
    trie_.nodes.reserve(2 * n);
    stack_.reserve(n);
    runs_.reserve(n + 1);
    common_.resize(n);
    moved_.resize(n);
  }

  Trie build() {
    const auto n = int32_t(trie_.order.size());
    for (int32_t i = 1; i < n; ++i) common_[i] = common_pages(i, 0);
    split(0, n, 0, -1, 0);
    while (!stack_.empty()) {
      TrieNode node = stack_.back();
      stack_.pop_back();
      // All rows of a group agree on as many pages as all neighbours do.
      node.page_end = node.is_leaf() ? int32_t(row_at(node.row_begin).num_pages)
                                     : *std::min_element(&common_[node.row_begin + 1], &common_[node.row_end]);
      trie_.nodes.push_back(node);
      if (!node.is_leaf())
        split(node.row_begin, node.row_end, node.page_end, int32_t(trie_.nodes.size() - 1), node.depth + 1);
    }
    return std::move(trie_);
  }

 private:
  const PlanRow& row_at(int32_t position) const { return rows_[trie_.order[position]]; }

  // How many pages a row has in common with the one before it, of which `known` are known.
  int32_t common_pages(int32_t position, int32_t known) const {
    const PlanRow &row = row_at(position), &before = row_at(position - 1);
    const int64_t limit = std::min(row.num_pages, before.num_pages) - known;
    return known + int32_t(first_difference(row.pages + known, before.pages + known, limit));
  }

  // Makes groups of rows that agree on one page more, in order of first appearance, brings the rows of
  // each together, and stacks the groups. A row that ends here is a group of its own.
  void split(int32_t begin, int32_t end, int32_t page, int32_t parent, int32_t depth) {
    // Rows that belong together mostly stand together already: as few look-ups as there are runs.
    runs_.clear();
    for (int32_t i = begin; i < end; ++i) {
      if (i > begin && common_[i] > page) continue;
      const PlanRow& row = row_at(i);
      runs_.push_back({row.num_pages > page ? row.pages[page] : -1, i, 0});
    }
    const auto num_runs = int32_t(runs_.size());
    start_lookup(num_runs);
    int32_t groups = 0;
    for (Run& run : runs_) {
      run.group = run.page < 0 ? alone(groups) : find(run.page, groups);
      groups += run.group == groups;
    }
    runs_.push_back({-1, end, groups});
    ends_.assign(groups + 1, 0);
    for (int32_t r = 0; r < num_runs; ++r) ends_[runs_[r].group + 1] += runs_[r + 1].begin - runs_[r].begin;
    ends_[0] = begin;
    for (int32_t g = 0; g < groups; ++g) ends_[g + 1] += ends_[g];
    for (int32_t g = groups - 1; g >= 0; --g) stack_.push_back({ends_[g], ends_[g + 1], page, page, parent, depth});
    if (groups < num_runs) gather(begin, end, page, num_runs);
  }

  // Moves runs of one group together; a row with a new neighbour is compared with it.
  void gather(int32_t begin, int32_t end, int32_t page, int32_t num_runs) {
    for (int32_t r = 0; r < num_runs; ++r)
      for (int32_t i = runs_[r].begin; i < runs_[r + 1].begin; ++i) {
        const int32_t to = ends_[runs_[r].group]++;
        moved_[to] = {trie_.order[i], i == runs_[r].begin ? -1 : common_[i]};
      }
    for (int32_t i = begin; i < end; ++i) {
      trie_.order[i] = moved_[i].row;
      common_[i] = moved_[i].common;
      if (common_[i] < 0 && i > begin) common_[i] = common_pages(i, page);
    }
  }

  // A hash table from page to group, open addressing, at most half full; small sets are searched.
  struct Entry {
    int32_t page = -1, group;
  };
  void start_lookup(int32_t n) {
    mask_ = n <= kSmall ? 0 : std::bit_ceil(uint32_t(2 * n)) - 1;
    if (mask_) table_.assign(mask_ + 1, Entry{});
  }
  int32_t alone(int32_t next) {
    if (mask_ == 0) heads_[next] = -1;
    return next;
  }
  // The group of a page; a new page gets the group `next`.
  int32_t find(int32_t page, int32_t next) {
    if (mask_ == 0) {
      for (int32_t g = 0; g < next; ++g)
        if (heads_[g] == page) return g;
      heads_[next] = page;
      return next;
    }
    for (uint32_t at = uint32_t(page) * 0x9E3779B1u >> 7;; ++at) {
      Entry& e = table_[at & mask_];
      if (e.page == page) return e.group;
      if (e.page < 0) {
        e = {page, next};
        return next;
      }
    }
  }

  struct Run {
    int32_t page, begin, group;
  };
  struct Moved {
    int32_t row, common;
  };
  static constexpr int32_t kSmall = 12;
  std::span<const PlanRow> rows_;
  Trie trie_;
  Vector<TrieNode> stack_;
  Vector<Run> runs_;
  Vector<int32_t> common_;  // by position: pages in common with the row before
  Vector<Moved> moved_;
  Vector<int32_t> ends_;
  Vector<Entry> table_;
  int32_t heads_[kSmall];
  uint32_t mask_ = 0;
};

}  // namespace

Trie build_trie(std::span<const PlanRow> rows, std::pmr::memory_resource* memory) {
  return Builder(rows, memory).build();
}

}  // namespace ttc
