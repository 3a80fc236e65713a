#include "host/trie.h"

#include <algorithm>
#include <bit>

#include "host/planner.h"

namespace ttc {
namespace {

// Index of the first difference of a and b, or n. Whole blocks first, which the compiler vectorises.
int64_t first_difference(const int32_t* a, const int32_t* b, int64_t n) {
  constexpr int64_t kBlock = 16;
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) {
    int32_t different = 0;
    for (int64_t j = 0; j < kBlock; ++j) different |= a[i + j] ^ b[i + j];
    if (different) break;
  }
  while (i < n && a[i] == b[i]) ++i;
  return i;
}

class Builder {
 public:
  explicit Builder(const std::vector<PlanRow>& rows) : rows_(rows) {
    trie_.order.reserve(rows.size());
    for (size_t i = 0; i < rows.size(); ++i)
      if (rows[i].num_pages > 0 && rows[i].q_len > 0) trie_.order.push_back(int32_t(i));
    const size_t n = trie_.order.size();
    trie_.nodes.reserve(2 * n);
    keys_.resize(n);
    ids_.resize(n);
    moved_.resize(n);
  }

  Trie build() {
    split(0, int32_t(trie_.order.size()), 0, -1, 0);
    while (!stack_.empty()) {
      const TrieNode group = stack_.back();
      stack_.pop_back();
      add(group);
    }
    return std::move(trie_);
  }

 private:
  const PlanRow& row_at(int32_t position) const { return rows_[trie_.order[position]]; }

  // Makes a node of a group of rows that agree on the page at page_begin.
  void add(TrieNode node) {
    const PlanRow& head = row_at(node.row_begin);
    int64_t shared = head.num_pages;
    for (int32_t i = node.row_begin + 1; i < node.row_end; ++i) {
      const PlanRow& row = row_at(i);
      const int64_t limit = std::min(shared, row.num_pages);
      shared = node.page_begin +
               first_difference(head.pages + node.page_begin, row.pages + node.page_begin, limit - node.page_begin);
    }
    node.page_end = int32_t(shared);
    trie_.nodes.push_back(node);
    if (!node.is_leaf())
      split(node.row_begin, node.row_end, node.page_end, int32_t(trie_.nodes.size() - 1), node.depth + 1);
  }

  // Brings rows with the same next page together, groups in order of first appearance, and stacks the
  // groups. A row that ends here is a group of its own.
  void split(int32_t begin, int32_t end, int32_t page, int32_t parent, int32_t depth) {
    const int32_t n = end - begin;
    int32_t* order = trie_.order.data() + begin;
    for (int32_t i = 0; i < n; ++i) keys_[i] = rows_[order[i]].num_pages > page ? rows_[order[i]].pages[page] : -1;
    sizes_.clear();
    start_lookup(n);
    bool in_order = true;
    for (int32_t i = 0; i < n; ++i) {
      const int32_t groups = int32_t(sizes_.size());
      const int32_t id = keys_[i] < 0 ? alone(groups) : find(keys_[i], groups);
      if (id == groups) sizes_.push_back(0);
      in_order &= id + 1 >= groups;
      ++sizes_[id];
      ids_[i] = id;
    }
    ends_.resize(sizes_.size());
    for (int32_t g = 0, at = 0; g < int32_t(sizes_.size()); ++g) ends_[g] = at += sizes_[g];
    if (!in_order) {
      for (int32_t i = n - 1; i >= 0; --i) moved_[--ends_[ids_[i]]] = order[i];
      std::copy_n(moved_.begin(), n, order);
      for (size_t g = 0; g < sizes_.size(); ++g) ends_[g] += sizes_[g];
    }
    for (auto g = int32_t(sizes_.size()) - 1; g >= 0; --g)
      stack_.push_back({begin + ends_[g] - sizes_[g], begin + ends_[g], page, page, parent, depth});
  }

  // A hash table from page to group, open addressing, at most half full; small sets are searched.
  struct Entry {
    int32_t page = -1, id;
  };
  void start_lookup(int32_t n) {
    mask_ = n <= kSmall ? 0 : std::bit_ceil(uint32_t(2 * n)) - 1;
    if (mask_) table_.assign(mask_ + 1, Entry{});
  }
  int32_t alone(int32_t next) {
    if (mask_ == 0) heads_[next] = -1;
    return next;
  }
  // The group of a page; a new page gets the id `next`.
  int32_t find(int32_t page, int32_t next) {
    if (mask_ == 0) {
      for (int32_t g = 0; g < next; ++g)
        if (heads_[g] == page) return g;
      heads_[next] = page;
      return next;
    }
    for (uint32_t at = uint32_t(page) * 0x9E3779B1u >> 7;; ++at) {
      Entry& e = table_[at & mask_];
      if (e.page == page) return e.id;
      if (e.page < 0) {
        e = {page, next};
        return next;
      }
    }
  }

  static constexpr int32_t kSmall = 12;
  const std::vector<PlanRow>& rows_;
  Trie trie_;
  std::vector<TrieNode> stack_;
  std::vector<int32_t> keys_, ids_, moved_, sizes_, ends_;
  std::vector<Entry> table_;
  int32_t heads_[kSmall];
  uint32_t mask_ = 0;
};

}  // namespace

Trie build_trie(const std::vector<PlanRow>& rows) { return Builder(rows).build(); }

}  // namespace ttc
