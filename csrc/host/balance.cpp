// Long rectangles are cut along the keys, if the machine would otherwise wait for a few of them.
#include <algorithm>
#include <limits>

#include "common/plan_layout.h"
#include "host/cut.h"

namespace ttc {
namespace {

constexpr int64_t kAlign = 128;  // pieces are multiples of this many keys
constexpr double kManyUnits = 8;  // a unit below this part of a worker's share cannot matter
constexpr double kUnlimited = std::numeric_limits<double>::infinity();

// A rectangle as equal units of work: one for each tile of its queries and KV head.
struct Part {
  ItemCost cost;
  double tiles, unit;
  int32_t tokens;
  bool is_partial;

  Part(const Rectangle& r, const Vector<int32_t>& query_ptr, const PlanOptions& o) {
    const int32_t queries = query_ptr[r.row_end] - query_ptr[r.row_begin], per_tile = o.tiling.tile_queries;
    cost = ItemCost(o.cost, o.tiling, queries);
    tiles = queries <= per_tile ? 1 : (queries + per_tile - 1) / per_tile;
    tokens = r.k_end - r.k_begin;
    is_partial = r.k_begin > 0;
    unit = cost(tokens, is_partial) / tiles;
  }

  int32_t length(double limit) const {
    const auto pieces = int64_t(unit / limit) + 1;
    return int32_t((tokens / pieces + (tokens % pieces > 0) + kAlign - 1) / kAlign * kAlign);
  }
};

struct Units {
  double cost, count;
};

// The time in which `workers` finish the units, longest first: of the m most expensive ones, some worker
// gets at least m / workers, rounded up.
double makespan(Vector<Units>& units, double small_work, double workers) {
  std::sort(units.begin(), units.end(), [](const Units& a, const Units& b) { return a.cost > b.cost; });
  double bound = 0, total = small_work, count = 0;
  for (const Units& u : units) {
    total += u.cost * u.count;
    count += u.count;
    bound = std::max(bound, double(int64_t((count - 1) / workers) + 1) * u.cost);
  }
  return std::max(bound, total / workers);
}

}  // namespace

void split_long(Vector<Rectangle>& rectangles, const Vector<int32_t>& query_ptr, const PlanOptions& options,
                std::pmr::memory_resource* memory) {
  const auto workers = double(options.num_workers), heads = double(options.num_kv_heads);
  double total = 0, longest = 0;
  for (const Rectangle& r : rectangles) {
    const Part p(r, query_ptr, options);
    total += p.unit * p.tiles * heads;
    longest = std::max(longest, p.unit);
  }
  const double share = total / workers;  // what each worker would do at best
  if (longest * kManyUnits <= share) return;

  Vector<Part> large(memory);
  double small_work = total;
  for (const Rectangle& r : rectangles) {
    const Part p(r, query_ptr, options);
    if (p.unit * kManyUnits <= share) continue;
    large.push_back(p);
    small_work -= p.unit * p.tiles * heads;
  }
  // Finer pieces balance better and cost more items and partials: the best of a few sizes.
  double best_time = kUnlimited, best_limit = kUnlimited;
  Vector<Units> units(memory);
  for (const double limit : {kUnlimited, share, share / 2, share / 4, share / kManyUnits}) {
    units.clear();
    for (const Part& p : large) {
      const int32_t length = p.length(limit), pieces = p.tokens / length;
      const bool is_partial = p.is_partial || pieces > 1;
      if (pieces > 0) units.push_back({p.cost(length, is_partial) / p.tiles, pieces * p.tiles * heads});
      if (const int32_t rest = p.tokens - pieces * length)
        units.push_back({p.cost(rest, is_partial) / p.tiles, p.tiles * heads});
    }
    const double time = makespan(units, small_work, workers);
    if (time < 0.98 * best_time) best_time = time, best_limit = limit;
  }
  if (best_limit == kUnlimited) return;
  Vector<Rectangle> out(memory);
  out.reserve(rectangles.size() + size_t(kManyUnits * workers));
  for (const Rectangle& r : rectangles) {
    const Part p(r, query_ptr, options);
    const int32_t length = p.unit * kManyUnits <= share ? p.tokens : p.length(best_limit);
    for (int32_t k = r.k_begin; k < r.k_end; k += length)
      out.push_back({r.row_begin, r.row_end, k, k + std::min(length, r.k_end - k)});
  }
  rectangles = std::move(out);
}

void split_stretches(Vector<Rectangle>& rectangles, const Vector<int32_t>& query_ptr, const PlanOptions& options,
                     std::pmr::memory_resource* memory) {
  double total = 0;
  for (const Rectangle& r : rectangles) {
    const Part p(r, query_ptr, options);
    total += p.unit * p.tiles * double(options.num_kv_heads);
  }
  const double largest = total / double(options.num_workers) / 2;  // half of a worker's share
  Vector<Rectangle> out(memory);
  out.reserve(rectangles.size());
  for (Rectangle r : rectangles) {
    const Part p(r, query_ptr, options);
    if (p.tokens > kStretchTokens && p.unit > largest) {
      const auto fit = int32_t(p.tokens * (largest / p.unit)) / kStretchTokens * kStretchTokens;
      for (int32_t end = std::max(fit, kStretchTokens); end < r.k_end; end += kStretchTokens) {
        out.push_back({r.row_begin, r.row_end, r.k_begin, end});
        r.k_begin = end;
      }
    }
    out.push_back(r);
  }
  rectangles = std::move(out);
}

}  // namespace ttc
