// Where to cut the trie: at fixed positions (deterministic), or where a cost model says so.
#include <algorithm>
#include <array>
#include <limits>

#include "host/planner.h"

namespace ttc {
namespace {

// Time of one work item per KV head, in nanoseconds on one core; the unit cancels, the ratios matter.
// Measured with head_dim 128 in bfloat16 on an AVX-512 core. Work grows with head_dim, so do all terms.
struct CostModel {
  static constexpr double kPerItem = 150;      // fetch, scheduling
  static constexpr double kPerToken = 14;      // read and repack one key and one value
  static constexpr double kPerRowToken = 0.9;  // one query row against one key
  static constexpr double kPerPartial = 45;    // write one row's partial, read it back, merge
  static constexpr int64_t kMinRows = 4;       // fewer rows cost the same

  static double item(int64_t rows, int64_t tokens, bool is_partial) {
    if (tokens == 0) return 0;
    return kPerItem + kPerToken * double(tokens) +
           kPerRowToken * double(std::max(rows, kMinRows)) * double(tokens) +
           (is_partial ? kPerPartial * double(rows) : 0);
  }
};

// A node may leave its tokens to its children; an item then begins at most this many nodes up.
constexpr int kMaxCarry = 8;

}  // namespace

std::vector<Rectangle> cut_deterministic(const Trie& trie, const PlanOptions& options) {
  const int64_t page = options.page_size, chunk = kDeterministicChunk;
  std::vector<Rectangle> out;
  for (const TrieNode& n : trie.nodes) {
    const int64_t begin = n.page_begin * page, end = n.page_end * page;
    // Chunks that end inside this node are read here, from their own beginning on: what a chunk
    // holds above this node is read again for each child rather than cut where the tree forks.
    for (int64_t c = begin / chunk; (c + 1) * chunk <= end; ++c)
      out.push_back({n.row_begin, n.row_end, c * chunk, (c + 1) * chunk});
    const bool is_leaf = n.row_end - n.row_begin == 1;
    if (is_leaf && end % chunk != 0) out.push_back({n.row_begin, n.row_end, end / chunk * chunk, end});
  }
  return out;
}

std::vector<Rectangle> cut_by_cost(const Trie& trie, const std::vector<int64_t>& query_ptr,
                                   const PlanOptions& options) {
  // best[v][l]: cheapest way to finish the subtree of v when the open item begins l nodes above v.
  // Either the item is closed at the end of v, or (inner nodes) every child carries it on.
  const int64_t n = int64_t(trie.nodes.size());
  const int64_t group = options.num_q_heads / options.num_kv_heads;
  std::vector<std::array<double, kMaxCarry>> best(n), carried(n), closed(n);
  for (auto& a : carried) a.fill(0);
  for (auto& a : closed) a.fill(0);
  const auto is_leaf = [&](const TrieNode& t) { return t.row_end - t.row_begin == 1; };
  const auto cost = [&](const TrieNode& t, int64_t begin) {
    const int64_t rows = (query_ptr[t.row_end] - query_ptr[t.row_begin]) * group;
    return CostModel::item(rows, t.page_end * options.page_size - begin, begin > 0 || !is_leaf(t));
  };
  const auto begins = [&](int64_t v) {  // begin position of the item for each carry level of v
    std::array<int64_t, kMaxCarry> at;
    at.fill(-1);
    for (int32_t l = 0, a = int32_t(v); l < kMaxCarry && a >= 0; ++l, a = trie.nodes[a].parent)
      at[l] = trie.nodes[a].page_begin * options.page_size;
    return at;
  };
  std::vector<std::array<bool, kMaxCarry>> close(n);
  for (int64_t v = n - 1; v >= 0; --v) {
    const TrieNode& t = trie.nodes[v];
    const auto at = begins(v);
    for (int l = 0; l < kMaxCarry && at[l] >= 0; ++l) {
      const double here = cost(t, at[l]);
      const double cut = here + closed[v][0], keep = carried[v][l];
      const bool may_carry = !is_leaf(t) && l + 1 < kMaxCarry;
      close[v][l] = !may_carry || cut <= keep;
      best[v][l] = is_leaf(t) ? here : (close[v][l] ? cut : keep);
    }
    if (t.parent < 0) continue;
    closed[t.parent][0] += best[v][0];
    for (int l = 0; l + 1 < kMaxCarry && at[l + 1] >= 0; ++l) carried[t.parent][l] += best[v][l + 1];
  }

  std::vector<Rectangle> out;
  std::vector<int> level(n, 0);  // the carry level each node was reached with
  for (int64_t v = 0; v < n; ++v) {
    const TrieNode& t = trie.nodes[v];
    if (t.parent >= 0) {
      const int up = level[t.parent];
      level[v] = close[t.parent][up] ? 0 : up + 1;
    }
    if (!close[v][level[v]]) continue;
    const int64_t begin = begins(v)[level[v]], end = t.page_end * options.page_size;
    if (end > begin) out.push_back({t.row_begin, t.row_end, begin, end});
  }
  return out;
}

}  // namespace ttc
