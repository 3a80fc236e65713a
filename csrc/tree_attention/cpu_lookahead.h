// Where the keys and values of a tile stand, and which memory to ask for next.
//
// A unit reads the cache rows of its tokens in this order, all its KV heads of a token side by side:
//
//   K of tile 0 | V of tile 0 | K of tile 1 | ... | K of the next unit's first tile | V of it
//
// The hardware cannot foresee pages, so lines are asked for some time before their use, a few at a time: a core
// keeps some dozens of requests and drops what is beyond.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/simd.h"
#include "tree_attention/cpu_kernels.h"

namespace ttc {

// The first `count` cache rows from key k of an item on, beginning with a KV head.
template <class Src>
void find_rows(const TileArgs& args, bool values, const WorkItem& item, int kv_head, int64_t k, int count,
               const Src** rows) {
  const auto& p = *args.params;
  const auto* cache = static_cast<const Src*>(values ? p.v_cache : p.k_cache);
  const int64_t page_stride = values ? p.v_page_stride : p.k_page_stride;
  const int64_t token_stride = values ? p.v_token_stride : p.k_token_stride;
  const int64_t page_size = args.plan->header->page_size;
  cache += kv_head * (values ? p.v_head_stride : p.k_head_stride);
  const int32_t* page = args.plan->pages + item.page_offset + (k / page_size - item.k_begin / page_size);
  int64_t offset = k % page_size;
  for (int j = 0; j < count; ++page, offset = 0)
    for (const Src* base = cache + *page * page_stride; offset < page_size && j < count; ++offset, ++j)
      rows[j] = base + offset * token_stride;
}

// Keys of a sibling: up to the last that one of its queries sees. Bounds are known.
inline int sibling_keys(const TileArgs& args, int sibling) {
  const WorkItem& item = args.siblings[sibling];
  int64_t end = 0;
  for (int i = 0; i < item.q_count; ++i) end = std::max(end, args.scratch.hi[sibling * item.q_count + i]);
  return int(std::min<int64_t>(end, item.k_end) - item.k_begin);
}

// What follows a tile of a unit: its next tile, or the first one of the worker's next unit, or nothing.
struct Following {
  const WorkItem* item;
  int kv_head;
  int64_t k;
  int keys;

  Following(const TileArgs& args, int64_t next, int64_t end)
      : item(next < end ? args.item : args.next_item),
        kv_head(next < end ? args.kv_head : args.next_kv_head),
        k(next < end ? next
          : item     ? item->k_begin
                     : 0),
        keys(item ? int(std::min<int64_t>((next < end ? end : item->k_end) - k, kTileKeys)) : 0) {}
};

// For tiles of many rows: the whole next tile is asked for, row after row, during the products.
template <class Src>
class TileLookahead {
 public:
  explicit TileLookahead(const TileArgs& args) : a_(args), row_(args.asked) {
    const auto& p = *args.params;
    const int64_t dim = args.plan->header->head_dim;
    const bool dense = p.k_head_stride == dim && p.v_head_stride == dim;
    row_bytes_ = (dense ? args.num_heads : 1) * dim * int64_t(sizeof(Src));
  }

  // Finds the rows of the tile that begins at key k of an item that ends at `end`, and of what follows.
  void begin_tile(int64_t k, int64_t end) {
    keys_ = int(std::min<int64_t>(end - k, kTileKeys));
    count_ = 0;
    add_tile(*a_.item, a_.kv_head, k, keys_);
    if (const Following next(a_, k + keys_, end); next.item) add_tile(*next.item, next.kv_head, next.k, next.keys);
    next_ = row_end_ = nullptr;
    row_ = std::max(row_, std::min(kLate, 2 * keys_));
  }
  void end_tile() { row_ = row_ > 2 * keys_ ? row_ - 2 * keys_ : 0; }

  int keys() const { return keys_; }
  const Src* const* key_rows() const { return rows_; }
  const Src* const* value_rows() const { return rows_ + keys_; }
  // Whether all rows of this tile were asked for.
  bool tile_asked() const { return row_ >= 2 * keys_; }
  // Rows of the following tile that were asked for.
  int asked() const { return row_; }

  // Lines to ask for at each of `times` times, so that all rows known are asked for then.
  int lines_left(int times) const { return int((count_ - row_) * ((row_bytes_ + 63) / 64) / times) + 1; }

  // Asks for the next cache lines.
  void issue(int lines) {
    for (; lines > 0 && has_row(); --lines, next_ += 64) __builtin_prefetch(next_);
  }

  template <int kLines>
  TTC_INLINE void issue() {
    if (!has_row()) return;
    if (row_end_ - next_ < 64 * kLines) return issue(kLines);
#pragma GCC unroll 16
    for (int i = 0; i < kLines; ++i) __builtin_prefetch(next_ + 64 * i);
    next_ += 64 * kLines;
  }

 private:
  static constexpr int kLate = 32;  // rows at a tile's beginning that it is too late to ask for

  // Moves on to the next row where the present one was asked for; whether there is one.
  TTC_INLINE bool has_row() {
    if (next_ < row_end_) return true;
    if (row_ >= count_) return false;
    next_ = reinterpret_cast<const char*>(rows_[row_++]);
    row_end_ = next_ + row_bytes_;
    return true;
  }

  void add_tile(const WorkItem& item, int kv_head, int64_t k, int keys) {
    for (const bool values : {false, true}) {
      find_rows(a_, values, item, kv_head, k, keys, rows_ + count_);
      count_ += keys;
    }
  }

  const TileArgs& a_;
  int64_t row_bytes_;
  const char *next_ = nullptr, *row_end_ = nullptr;
  int keys_ = 0, count_ = 0, row_;
  const Src* rows_[4 * kTileKeys];
};

// For tiles of few rows, which go through blocks, the rows of W tokens from one KV head on:
//
//             head 0    head 1   ..
//   rows      [block 0] [block 1] ..    W tokens of K, then the next W, ..; then those of V; then
//             ..                        the first of what follows
//
// While a block is used, the one kAhead further on is asked for, line for line: so near that it is still in the
// first-level cache when its turn comes. Where all rows' lines fall into the same set of that cache, they could
// not stay in it, and go to the second level.
template <class Src, int W>
class BlockLookahead {
 public:
  struct Block {
    const Src* const* rows;
    int64_t offset;  // of its head in a row
    bool same_set;

    // The line of row j that holds the head's element at `at`.
    TTC_INLINE void ask(int j, int64_t at) const {
      const Src* line = rows[j] + offset + at;
      if (same_set)
        __builtin_prefetch(line, 0, 2);
      else
        __builtin_prefetch(line);
    }
  };

  explicit BlockLookahead(const TileArgs& args)
      : a_(args), same_set_(args.params->k_token_stride * int64_t(sizeof(Src)) % kSetBytes == 0) {}

  void begin_tile(int64_t k, int64_t end) {
    keys_ = int(std::min<int64_t>(end - k, kTileKeys));
    groups_ = 0;
    for (const bool values : {false, true}) {
      if (a_.num_siblings == 1) {
        add_groups(values, *a_.item, a_.kv_head, k, keys_);
      } else {
        add_groups(values, *a_.item, a_.kv_head, k, a_.shared);
        for (int i = 0; i < a_.num_siblings; ++i)
          add_groups(values, a_.siblings[i], a_.kv_head, k + a_.shared, sibling_keys(a_, i) - a_.shared);
      }
      if (!values) key_groups_ = groups_;
    }
    if (const Following next(a_, k + keys_, end); next.item)
      add_groups(false, *next.item, next.kv_head, next.k, std::min(next.keys, kAhead * W));
  }
  void end_tile() {}

  int keys() const { return keys_; }
  const Src* const* key_rows() const { return rows_; }
  const Src* const* value_rows() const { return rows_ + key_groups_ * W; }
  int asked() const { return 0; }

  // What to ask for while head h is used of the W tokens from the j-th of these rows on.
  Block after_keys(int j, int h) const { return after(j / W, h); }
  Block after_values(int j, int h) const { return after(key_groups_ + j / W, h); }

 private:
  static constexpr int kAhead = 2;
  static constexpr int64_t kSetBytes = 4096;  // lines so far apart share a set
  static int padded(int n) { return (n + W - 1) / W * W; }

  Block after(int group, int h) const {
    const int block = group * a_.num_heads + h + kAhead;
    const int g = std::min(block / a_.num_heads, groups_ - 1);
    const bool is_value = key_groups_ <= g && g < 2 * key_groups_;
    const int64_t head_stride = is_value ? a_.params->v_head_stride : a_.params->k_head_stride;
    return {rows_ + g * W, block % a_.num_heads * head_stride, same_set_};
  }

  // Rows of n tokens, the last one repeated until a group is full.
  void add_groups(bool values, const WorkItem& item, int kv_head, int64_t k, int n) {
    const Src** const rows = rows_ + groups_ * W;
    find_rows(a_, values, item, kv_head, k, n, rows);
    for (int j = n; j < padded(n); ++j) rows[j] = rows[n - 1];
    groups_ += padded(n) / W;
  }

  const TileArgs& a_;
  const bool same_set_;
  int keys_ = 0, groups_ = 0, key_groups_ = 0;
  const Src* rows_[2 * kMaxSiblingKeys + kAhead * W];
};

}  // namespace ttc
