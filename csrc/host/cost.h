// What a work item costs: the model that the cut minimises and that plan.stats reports.
#pragma once

#include <algorithm>
#include <cstdint>

namespace ttc {

// Constants of one kind of device, for one dtype and head_dim. Times are nanoseconds of one worker (a
// thread, or a resident block of a GPU) for one KV head; they come from ttc_kernels/plan_costs.json.
struct CostModel {
  double launch;         // a call, whatever is in it
  double item;           // an item: fetching it, filling the pipeline
  double row;           // a row of the item: loading the query, writing the output
  double token;          // reading one key and one value and making them ready
  double token_again;    // ... for each further tile of queries over the same keys
  double row_token;     // one row of the tile against one key, as far as it is not hidden behind reading
  double partial;        // writing one row's partial, reading it back, merging it
  double bytes_per_ns;   // memory bandwidth of the whole device
  double flops_per_ns;   // matrix products of the whole device
  int32_t row_quantum;   // rows are padded to a multiple of this power of two; 0: to the tile class
  int32_t key_quantum;   // keys are padded to a multiple of this power of two
};

inline int64_t pad(int64_t x, int64_t power_of_two) { return (x + power_of_two - 1) & -power_of_two; }

// 16, 32, 64 or 128 rows: the smallest that holds `rows`.
inline int32_t tile_class(int64_t rows) { return rows <= 16 ? 16 : rows <= 32 ? 32 : rows <= 64 ? 64 : 128; }

// How query tokens become tiles: rows are query tokens x query heads of one KV head.
struct Tiling {
  int32_t group;         // query heads of a KV head
  int32_t tile_queries;  // query tokens of a full tile
  int32_t fixed_class;   // the one tile class of a deterministic plan; 0: each item has its own

  int32_t class_of(int64_t queries) const { return fixed_class ? fixed_class : tile_class(queries * group); }
};

// The cost of an item as a function of its keys, for a fixed number of query tokens.
struct ItemCost {
  double fixed = 0, partial = 0, per_token = 0, per_key = 0;
  int64_t key_quantum = 1;

  ItemCost() = default;
  ItemCost(const CostModel& c, const Tiling& t, int32_t queries) : key_quantum(c.key_quantum) {
    const int32_t full = queries < t.tile_queries ? 0 : queries / t.tile_queries;
    const int32_t rest = queries - full * t.tile_queries, tiles = full + (rest > 0);
    const auto padded = [&](int32_t q) -> int64_t {
      return c.row_quantum == 0 ? t.class_of(q) : pad(int64_t(q) * t.group, c.row_quantum);
    };
    int64_t rows = rest > 0 ? padded(rest) : 0;
    if (full > 0) rows += full * padded(t.tile_queries);
    fixed = c.item * tiles + c.row * double(int64_t(queries) * t.group);
    partial = c.partial * double(int64_t(queries) * t.group);
    per_token = c.token + c.token_again * (tiles - 1);
    per_key = c.row_token * double(rows);
  }

  double operator()(int64_t tokens, bool is_partial) const {
    if (tokens == 0) return 0;
    const double read = per_token * double(tokens), multiply = per_key * double(pad(tokens, key_quantum));
    return fixed + (is_partial ? partial : 0) + read + multiply;
  }
};

}  // namespace ttc
