// The trie of the block tables, in time linear in the number of table entries.
#include <algorithm>

#include "host/planner.h"

namespace ttc {
namespace {

int64_t pages_of(const PlanRow& row, int64_t page_size) {
  return (row.reserved_len + page_size - 1) / page_size;
}

}  // namespace

Trie build_trie(const std::vector<PlanRow>& rows, int64_t page_size) {
  Trie trie;
  for (size_t i = 0; i < rows.size(); ++i)
    if (rows[i].reserved_len > 0 && rows[i].q_len > 0) trie.order.push_back(int32_t(i));
  std::vector<int64_t> num_pages(rows.size());
  for (size_t i = 0; i < rows.size(); ++i) num_pages[i] = pages_of(rows[i], page_size);

  // A group of rows that agree on their first `page` pages and still need a node.
  struct Group {
    int64_t begin, end, page;
    int32_t parent;
  };
  std::vector<Group> stack;

  // Sorts [begin, end) by the page at `page` (finished rows first, ties in the given order) and
  // stacks the groups so that the first is taken first.
  const auto split = [&](int64_t begin, int64_t end, int64_t page, int32_t parent) {
    const auto key = [&](int32_t r) { return num_pages[r] > page ? rows[r].pages[page] : -1; };
    const auto less = [&](int32_t a, int32_t b) { return key(a) < key(b); };
    const auto first = trie.order.begin();
    if (!std::is_sorted(first + begin, first + end, less))
      std::stable_sort(first + begin, first + end, less);
    for (int64_t hi = end; hi > begin;) {
      const int32_t k = key(trie.order[hi - 1]);
      int64_t lo = hi - 1;
      // A finished row gets a leaf of its own; unfinished rows stay together.
      while (k >= 0 && lo > begin && key(trie.order[lo - 1]) == k) --lo;
      stack.push_back({lo, hi, page, parent});
      hi = lo;
    }
  };

  split(0, int64_t(trie.order.size()), 0, -1);
  while (!stack.empty()) {
    const Group g = stack.back();
    stack.pop_back();
    const PlanRow& head = rows[trie.order[g.begin]];
    int64_t shared = num_pages[trie.order[g.begin]];
    for (int64_t i = g.begin + 1; i < g.end; ++i) {
      const int32_t r = trie.order[i];
      const int64_t limit = std::min(shared, num_pages[r]);
      shared = std::mismatch(head.pages + g.page, head.pages + limit, rows[r].pages + g.page).first -
               head.pages;
    }
    const auto node = int32_t(trie.nodes.size());
    trie.nodes.push_back({g.begin, g.end, g.page, shared, g.parent});
    if (g.end - g.begin > 1) split(g.begin, g.end, shared, node);
  }
  return trie;
}

}  // namespace ttc
