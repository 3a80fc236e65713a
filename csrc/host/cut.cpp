#include "host/cut.h"

#include <algorithm>
#include <array>
#include <limits>

#include "host/vector.h"

namespace ttc {

Vector<Rectangle> cut_at_chunks(const Trie& trie, const PlanOptions& options, std::pmr::memory_resource* memory) {
  const int64_t page = options.page_size, chunk = options.chunk;
  Vector<Rectangle> out(memory);
  out.reserve(2 * trie.nodes.size());
  const auto add = [&](const TrieNode& n, int64_t begin, int64_t end) {
    out.push_back({n.row_begin, n.row_end, int32_t(begin), int32_t(end)});
  };
  for (const TrieNode& n : trie.nodes) {
    const int64_t begin = n.page_begin * page, end = n.page_end * page;
    // Chunks that end inside this node are read here, from their own beginning on: what a chunk
    // holds above this node is read again for each child rather than cut where the tree forks.
    for (int64_t c = begin / chunk; (c + 1) * chunk <= end; ++c) add(n, c * chunk, (c + 1) * chunk);
    if (n.is_leaf() && end % chunk != 0) add(n, end / chunk * chunk, end);
  }
  return out;
}

namespace {

// One number per ancestor that an open rectangle may begin at; the one at depth a has slot a % kMaxSpan.
using PerBegin = std::array<double, kMaxSpan>;
constexpr double kNever = std::numeric_limits<double>::infinity();
constexpr uint32_t slot(int32_t depth) { return uint32_t(depth) % kMaxSpan; }

// The costs of rectangles that end at `end` with a node's keys, for each of the positions where they may
// begin. Part of a row's path is a partial; `whole_fixed` is for one that begins at 0.
TTC_CLONES void close_costs(const ItemCost& cost, int32_t end, double whole_fixed, double below, const int32_t* begin,
                            int32_t count, double* out) {
  const double fixed = cost.fixed + cost.partial, per_token = cost.per_token, per_key = cost.per_key;
  const auto quantum = int32_t(cost.key_quantum);
  for (int32_t i = 0; i < count; ++i) {
    const int32_t tokens = end - begin[i];
    const double read = per_token * tokens, multiply = per_key * ((tokens + quantum - 1) & -quantum);
    const double work = read + multiply + (begin[i] == 0 ? whole_fixed : fixed);
    out[i] = below + (tokens == 0 ? 0 : work);
  }
}

// best(v, a): the least cost of the subtree of v if the open rectangle begins with v's ancestor at depth
// a. Nodes are visited children first; of each depth at most one node is unfinished at a time, so the
// sums over children are kept per depth.
class CutByCost {
 public:
  CutByCost(const Trie& trie, const Vector<int32_t>& query_ptr, const PlanOptions& options,
            std::pmr::memory_resource* memory)
      : nodes_(trie.nodes),
        query_ptr_(query_ptr),
        o_(options),
        memory_(memory),
        levels_(memory),
        path_(memory),
        begin_(memory),
        close_(nodes_.size(), memory) {
    int32_t deepest = 0;
    for (const TrieNode& n : nodes_) deepest = std::max(deepest, n.depth);
    levels_.resize(deepest + 2);
    path_.assign(deepest + 1, -1);
    begin_.resize(deepest + 1);
  }

  TTC_CLONES CutCosts solve() {
    CutCosts costs{};
    ItemCost cost;
    int32_t last_queries = -1;
    for (auto v = int32_t(nodes_.size()) - 1; v >= 0; --v) {
      const TrieNode& n = nodes_[v];
      follow(v);
      const int32_t queries = query_ptr_[n.row_end] - query_ptr_[n.row_begin];
      if (queries != last_queries) cost = ItemCost(o_.cost, o_.tiling, queries);
      last_queries = queries;
      Level &here = levels_[n.depth + 1], &above = levels_[n.depth];
      const auto end = int32_t(position(n.page_end)), own = int32_t(position(n.page_begin));
      const bool keys_below = here.has_keys;
      // A rectangle open from further up than `first` would span too many nodes.
      const int32_t first = std::max(0, n.depth + 1 - kMaxSpan), count = n.depth + 1 - first;
      double closed[kMaxSpan];
      close_costs(cost, end, cost.fixed + (keys_below ? cost.partial : 0), here.closed, begin_.data() + first, count,
                  closed);
      double best = closed[count - 1];
      if (n.is_leaf()) {
        close_[v] = ~0u;
        costs.unshared += cost(end, false);
        if (first == 0) {
          for (int32_t i = 0; i < count; ++i) above.carried[i] += closed[i];
        } else {
          for (int32_t i = 0; i < count; ++i) above.carried[slot(first + i)] += closed[i];
        }
      } else {
        uint32_t close = 0;
        for (int32_t i = 0; i < count; ++i) {
          const uint32_t s = slot(first + i);
          const double carried = i == 0 && count == kMaxSpan ? kNever : here.carried[s];
          close |= uint32_t(closed[i] <= carried) << s;
          best = std::min(closed[i], carried);
          above.carried[s] += best;
        }
        close_[v] = close;
        here.closed = 0;
        here.has_keys = false;
        for (int32_t i = 0; i <= count; ++i) here.carried[slot(first + i)] = 0;
      }
      above.closed += best;
      above.has_keys |= keys_below || end > own;
      costs.per_node += cost(end - own, own > 0 || keys_below);
    }
    costs.best = levels_[0].closed;
    return costs;
  }

  Vector<Rectangle> rectangles() {
    Vector<Rectangle> out(memory_);
    out.reserve(nodes_.size());
    Vector<int32_t> first(nodes_.size(), memory_);  // depth at which the open rectangle begins
    for (size_t v = 0; v < nodes_.size(); ++v) {
      const TrieNode& n = nodes_[v];
      path_[n.depth] = int32_t(v);
      const bool carries = n.parent >= 0 && !closes(n.parent, first[n.parent]);
      first[v] = carries ? first[n.parent] : n.depth;
      const int64_t begin = position(nodes_[path_[first[v]]].page_begin), end = position(n.page_end);
      if (closes(int32_t(v), first[v]) && end > begin)
        out.push_back({n.row_begin, n.row_end, int32_t(begin), int32_t(end)});
    }
    return out;
  }

 private:
  int64_t position(int64_t page) const { return page * o_.page_size; }
  bool closes(int32_t v, int32_t depth) const { return close_[v] >> slot(depth) & 1; }

  // Makes path_ and begin_ those of v. Most of them are the last node's.
  void follow(int32_t v) {
    for (int32_t a = nodes_[v].depth, up = v; a >= 0 && path_[a] != up; --a, up = nodes_[up].parent) {
      path_[a] = up;
      begin_[a] = int32_t(position(nodes_[up].page_begin));
    }
  }

  struct Level {
    double closed = 0;      // sum over children that begin a rectangle of their own
    PerBegin carried = {};  // sum over children that carry an open one on
    bool has_keys = false;  // some child has pages
  };
  const Vector<TrieNode>& nodes_;
  const Vector<int32_t>& query_ptr_;
  const PlanOptions& o_;
  std::pmr::memory_resource* const memory_;
  Vector<Level> levels_;    // [d + 1]: children of the unfinished node at depth d
  Vector<int32_t> path_;    // by depth: the ancestors of the node at hand
  Vector<int32_t> begin_;   // ... and their first keys
  Vector<uint32_t> close_;  // by node: a bit per slot
};

}  // namespace

Vector<Rectangle> cut_by_cost(const Trie& trie, const Vector<int32_t>& query_ptr, const PlanOptions& options,
                              CutCosts& costs, std::pmr::memory_resource* memory) {
  CutByCost cut(trie, query_ptr, options, memory);
  costs = cut.solve();
  return cut.rectangles();
}

}  // namespace ttc
