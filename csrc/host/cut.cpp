#include "host/cut.h"

#include <algorithm>
#include <array>
#include <limits>

namespace ttc {

std::vector<Rectangle> cut_deterministic(const Trie& trie, const PlanOptions& options) {
  const int64_t page = options.page_size, chunk = kDeterministicChunk;
  std::vector<Rectangle> out;
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

// Sums per ancestor that an open rectangle may begin at: slot a % kMaxSpan belongs to depth a.
using PerBegin = std::array<double, kMaxSpan>;

// best(v, a): the least cost of the subtree of v if the open rectangle begins with v's ancestor at depth
// a. Nodes are visited children first; of each depth at most one node is unfinished at a time, so the
// sums over children are kept per depth.
class CutByCost {
 public:
  CutByCost(const Trie& trie, const std::vector<int32_t>& query_ptr, const PlanOptions& options)
      : nodes_(trie.nodes), query_ptr_(query_ptr), o_(options) {
    int32_t deepest = 0;
    for (const TrieNode& n : nodes_) deepest = std::max(deepest, n.depth);
    levels_.resize(deepest + 2);
    path_.assign(deepest + 1, -1);
    close_.resize(nodes_.size());
  }

  CutCosts solve() {
    CutCosts costs{};
    for (auto v = int32_t(nodes_.size()) - 1; v >= 0; --v) {
      const TrieNode& n = nodes_[v];
      for (int32_t a = n.depth, up = v; a >= 0 && path_[a] != up; --a, up = nodes_[up].parent) path_[a] = up;
      Level &here = levels_[n.depth + 1], &above = levels_[n.depth];
      const ItemCost cost(o_.cost, o_.tiling, query_ptr_[n.row_end] - query_ptr_[n.row_begin]);
      const int64_t end = position(n.page_end);
      const bool leaf = n.is_leaf(), keys_below = here.has_keys;
      const int32_t top = std::max(0, n.depth - kMaxSpan + 1);
      uint32_t close = 0;
      double best = 0;
      for (int32_t a = top; a <= n.depth; ++a) {
        const int64_t begin = position(nodes_[path_[a]].page_begin);
        best = cost(end - begin, begin > 0 || keys_below) + here.closed;
        const bool may_carry = !leaf && a > n.depth + 1 - kMaxSpan;
        if (may_carry && here.carried[a % kMaxSpan] < best)
          best = here.carried[a % kMaxSpan];
        else
          close |= 1u << (a % kMaxSpan);
        above.carried[a % kMaxSpan] += best;
      }
      above.closed += best;  // the last one began with this node itself
      above.has_keys |= keys_below || n.page_end > n.page_begin;
      costs.per_node += cost(end - position(n.page_begin), n.page_begin > 0 || keys_below);
      if (leaf) costs.unshared += cost(end, false);
      close_[v] = close;
      if (!leaf) here = Level{};
    }
    costs.best = levels_[0].closed;
    return costs;
  }

  std::vector<Rectangle> rectangles() {
    std::vector<Rectangle> out;
    std::vector<int32_t> first(nodes_.size());  // depth at which the open rectangle begins
    for (size_t v = 0; v < nodes_.size(); ++v) {
      const TrieNode& n = nodes_[v];
      path_[n.depth] = int32_t(v);
      const bool carries = n.parent >= 0 && !closed(n.parent, first[n.parent]);
      first[v] = carries ? first[n.parent] : n.depth;
      const int64_t begin = position(nodes_[path_[first[v]]].page_begin), end = position(n.page_end);
      if (closed(int32_t(v), first[v]) && end > begin)
        out.push_back({n.row_begin, n.row_end, int32_t(begin), int32_t(end)});
    }
    return out;
  }

 private:
  int64_t position(int64_t page) const { return page * o_.page_size; }
  bool closed(int32_t v, int32_t a) const { return close_[v] >> (a % kMaxSpan) & 1; }

  struct Level {
    double closed = 0;      // sum over children that begin a rectangle of their own
    PerBegin carried = {};  // sum over children that carry an open one on
    bool has_keys = false;  // some child has pages
  };
  const std::vector<TrieNode>& nodes_;
  const std::vector<int32_t>& query_ptr_;
  const PlanOptions& o_;
  std::vector<Level> levels_;    // [d + 1]: children of the unfinished node at depth d
  std::vector<int32_t> path_;    // by depth: the ancestors of the node at hand
  std::vector<uint32_t> close_;  // by node, a bit per beginning
};

}  // namespace

std::vector<Rectangle> cut_by_cost(const Trie& trie, const std::vector<int32_t>& query_ptr, const PlanOptions& options,
                                   CutCosts& costs) {
  CutByCost cut(trie, query_ptr, options);
  costs = cut.solve();
  return cut.rectangles();
}

namespace {

// A group of equal work units: one for each tile of a rectangle and KV head.
struct Units {
  double cost;
  double count;
};

// Lower bound of the time in which `workers` finish the units, and what a longest-first order comes
// close to: of the m most expensive units, some worker gets at least m / workers, rounded up.
double makespan(std::vector<Units>& units, double workers) {
  std::sort(units.begin(), units.end(), [](const Units& a, const Units& b) { return a.cost > b.cost; });
  double bound = 0, total = 0, count = 0;
  for (const Units& u : units) {
    total += u.cost * u.count;
    count += u.count;
    bound = std::max(bound, double(int64_t((count - 1) / workers) + 1) * u.cost);
  }
  return std::max(bound, total / workers);
}

}  // namespace

void split_long(std::vector<Rectangle>& rectangles, const std::vector<int32_t>& query_ptr, const PlanOptions& options) {
  constexpr int64_t kAlign = 128, kManyUnits = 8;
  const auto workers = double(options.num_workers), heads = double(options.num_kv_heads);
  struct Part {
    ItemCost cost;
    double tiles, whole;
    int64_t tokens;
    bool is_partial;
  };
  std::vector<Part> parts;
  parts.reserve(rectangles.size());
  double total = 0, longest = 0;
  for (const Rectangle& r : rectangles) {
    const int64_t queries = query_ptr[r.row_end] - query_ptr[r.row_begin];
    const int64_t tiles = (queries + options.tiling.tile_queries - 1) / options.tiling.tile_queries;
    Part p{ItemCost(options.cost, options.tiling, queries), double(tiles), 0, r.k_end - r.k_begin, r.k_begin > 0};
    p.whole = p.cost(p.tokens, p.is_partial) / p.tiles;
    total += p.whole * p.tiles;
    longest = std::max(longest, p.whole);
    parts.push_back(p);
  }
  const double share = total * heads / workers;  // what each worker would do at best
  if (longest * kManyUnits <= share) return;

  // Tries limits on a unit's cost. Only units that some limit touches, or nearly so, can matter to the
  // bound; the others fill the gaps.
  const auto pieces_of = [&](const Part& p, double limit) {
    const auto wanted = int64_t(p.whole / limit) + 1;
    const int64_t length = ((p.tokens + wanted - 1) / wanted + kAlign - 1) / kAlign * kAlign;
    return std::max<int64_t>(1, (p.tokens + length - 1) / length);
  };
  double best_time = 0, best_limit = std::numeric_limits<double>::infinity();
  std::vector<Units> units;
  for (const double limit : {std::numeric_limits<double>::infinity(), share, share / 2, share / 4, share / kManyUnits}) {
    units.clear();
    double small = 0;
    for (const Part& p : parts) {
      if (p.whole * kManyUnits <= share) {
        small += p.whole * p.tiles * heads;
        continue;
      }
      const int64_t pieces = pieces_of(p, limit);
      const double piece = p.cost((p.tokens + pieces - 1) / pieces, p.is_partial || pieces > 1) / p.tiles;
      units.push_back({piece, double(pieces) * p.tiles * heads});
    }
    double sum = small;
    for (const Units& u : units) sum += u.cost * u.count;
    const double time = std::max(makespan(units, workers), sum / workers);
    if (best_time == 0 || time < 0.98 * best_time) best_time = time, best_limit = limit;
  }
  if (best_limit == std::numeric_limits<double>::infinity()) return;
  std::vector<Rectangle> out;
  for (size_t i = 0; i < rectangles.size(); ++i) {
    const Rectangle& r = rectangles[i];
    const bool is_small = parts[i].whole * kManyUnits <= share;
    const int64_t pieces = is_small ? 1 : pieces_of(parts[i], best_limit);
    const int64_t length = ((parts[i].tokens + pieces - 1) / pieces + kAlign - 1) / kAlign * kAlign;
    if (pieces == 1) {
      out.push_back(r);
      continue;
    }
    for (int64_t k = r.k_begin; k < r.k_end; k += length)
      out.push_back({r.row_begin, r.row_end, int32_t(k), int32_t(std::min<int64_t>(k + length, r.k_end))});
  }
  rectangles = std::move(out);
}

}  // namespace ttc
