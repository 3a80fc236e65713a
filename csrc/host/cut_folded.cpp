// The cut of deterministic plans whose kernel folds chunks: which node reads which chunk is a matter of
// cost, the bits are the same.
#include <algorithm>
#include <array>
#include <limits>

#include "common/plan_layout.h"
#include "host/cut.h"

namespace ttc {
namespace {

// Where the keys begin that the nodes above have left to a node: with its first chunk, with that chunk's
// stretch, or with the row.
enum Open { kChunk, kStretch, kRow };
constexpr std::array kOpen = {kChunk, kStretch, kRow};
using PerOpen = std::array<double, kOpen.size()>;

// best(v, from): the least cost of the subtree of v, if keys are open `from` there. Nodes are visited
// children first; of each depth at most one node is unfinished at a time.
class CutFolded {
 public:
  CutFolded(const Trie& trie, const Vector<int32_t>& query_ptr, const PlanOptions& options,
            std::pmr::memory_resource* memory)
      : nodes_(trie.nodes),
        query_ptr_(query_ptr),
        o_(options),
        chunk_(int32_t(options.chunk)),
        memory_(memory),
        leave_(nodes_.size(), memory) {}

  double solve() {
    int32_t deepest = -1, last_queries = -1;
    for (const TrieNode& n : nodes_) deepest = std::max(deepest, n.depth);
    Vector<PerOpen> below(deepest + 2, PerOpen{}, memory_);  // [d + 1]: sums over children of depth d + 1
    ItemCost cost;
    for (auto v = int32_t(nodes_.size()) - 1; v >= 0; --v) {
      const TrieNode& n = nodes_[v];
      const int32_t queries = query_ptr_[n.row_end] - query_ptr_[n.row_begin];
      if (queries != last_queries) cost = ItemCost(o_.cost, o_.tiling, queries);
      last_queries = queries;
      PerOpen& children = below[n.depth + 1];
      for (const Open from : kOpen) {
        double best = std::numeric_limits<double>::infinity();
        for (const Open to : kOpen) {
          if (!may_leave(n, from, to)) continue;
          double sum = children[to];
          for_pieces(n, from, to,
                     [&](int32_t begin, int32_t end) { sum += cost(end - begin, begin > 0 || !n.is_leaf()); });
          if (sum < best) best = sum, leave_[v][from] = to;
        }
        below[n.depth][from] += best;
      }
      children = {};
    }
    return below[0][kChunk];
  }

  Vector<Rectangle> rectangles() const {
    Vector<Rectangle> out(memory_);
    out.reserve(2 * nodes_.size());
    Vector<Open> left(nodes_.size(), memory_);
    for (size_t v = 0; v < nodes_.size(); ++v) {
      const TrieNode& n = nodes_[v];
      const Open from = n.parent < 0 ? kChunk : left[n.parent];
      left[v] = leave_[v][from];
      for_pieces(n, from, left[v],
                 [&](int32_t begin, int32_t end) { out.push_back({n.row_begin, n.row_end, begin, end}); });
    }
    return out;
  }

 private:
  int32_t to_chunk(int64_t page) const { return int32_t(page * o_.page_size) / chunk_ * chunk_; }
  static int32_t to_stretch(int32_t k) { return k / kStretchTokens * kStretchTokens; }

  int32_t begin_of(const TrieNode& n, Open from) const {
    const int32_t k = to_chunk(n.page_begin);
    return from == kChunk ? k : from == kStretch ? to_stretch(k) : 0;
  }

  // What ends inside a node is its own; a chunk that crosses a fork belongs to each child.
  int32_t end_of(const TrieNode& n) const {
    return n.is_leaf() ? int32_t(n.page_end * o_.page_size) : to_chunk(n.page_end);
  }

  bool may_leave(const TrieNode& n, Open from, Open to) const {
    const int32_t begin = begin_of(n, from), end = end_of(n);
    if (to == kChunk) return true;
    if (n.is_leaf()) return false;
    if (to == kRow) return begin == 0;
    // The whole of the last stretch must be open.
    return to_stretch(end) < end && to_stretch(end) >= begin;
  }

  // Calls body(first key, end) for the rectangles of a node: chunks up to the next stretch, stretches, and
  // what is left. From a row's beginning on several stretches are one, to the row's end even all.
  template <class Body>
  void for_pieces(const TrieNode& n, Open from, Open to, const Body& body) const {
    int32_t k = begin_of(n, from);
    const int32_t end = to == kRow ? 0 : to == kStretch ? to_stretch(end_of(n)) : end_of(n);
    const int32_t whole = k > 0 ? 0 : n.is_leaf() ? end : to_stretch(end);
    if (whole > 0) body(0, k = whole);
    while (k < end) {
      const int32_t begin = k, length = k % kStretchTokens == 0 ? kStretchTokens : chunk_;
      body(begin, k = std::min(end, k + length));
    }
  }

  const Vector<TrieNode>& nodes_;
  const Vector<int32_t>& query_ptr_;
  const PlanOptions& o_;
  const int32_t chunk_;
  std::pmr::memory_resource* const memory_;
  Vector<std::array<Open, kOpen.size()>> leave_;  // by node and what is open there: what is left open
};

}  // namespace

Vector<Rectangle> cut_folded(const Trie& trie, const Vector<int32_t>& query_ptr, const PlanOptions& options,
                             CutCosts& costs, std::pmr::memory_resource* memory) {
  CutFolded cut(trie, query_ptr, options, memory);
  costs.best = cut.solve();
  return cut.rectangles();
}

}  // namespace ttc
