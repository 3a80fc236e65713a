// Where the keys and values of a tile stand, and which memory to ask for next.
//
// A unit reads the cache rows of its tokens in this order, all its KV heads of a token side by side:
//
//   K of tile 0 | V of tile 0 | K of tile 1 | ... | K of the next unit's first tile | V of it
//
// The hardware cannot foresee pages, so lines are asked for some time before their use: by tiles of few rows
// with every line used the line kRows rows further on; by tiles of many rows the whole next tile during the
// products. Always a few lines at a time: a core keeps some dozens of requests and drops what is beyond.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/simd.h"
#include "tree_attention/cpu_kernels.h"

namespace ttc {

template <class Src>
class Lookahead {
 public:
  static constexpr int kRows = 32;

  // whole_tiles: look one whole tile ahead instead of kRows rows.
  Lookahead(const TileArgs& args, bool whole_tiles)
      : a_(args),
        page_size_(args.plan->header->page_size),
        limit_(whole_tiles ? 2 * kTileKeys : kRows),
        row_(args.asked) {
    const auto& p = *args.params;
    const int64_t dim = args.plan->header->head_dim;
    const bool dense = p.k_head_stride == dim && p.v_head_stride == dim;
    row_bytes_ = (dense ? args.num_heads : 1) * dim * int64_t(sizeof(Src));
  }

  // Finds the rows of the tile that begins at key k of an item that ends at `end`, and of what follows.
  void begin_tile(int64_t k, int64_t end) {
    keys_ = int(end - k < kTileKeys ? end - k : kTileKeys);
    count_ = 0;
    add_tile(*a_.item, a_.kv_head, k, keys_, keys_);
    const int64_t left = end - k - keys_;
    const WorkItem* item = left > 0 ? a_.item : a_.next_item;
    if (item) {
      const int64_t begin = left > 0 ? k + keys_ : item->k_begin;
      const int n = int(std::min<int64_t>(left > 0 ? left : item->k_end - begin, kTileKeys));
      const int keys = std::min(n, limit_);
      add_tile(*item, left > 0 ? a_.kv_head : a_.next_kv_head, begin, keys, std::min(n, limit_ - keys));
    }
    next_ = row_end_ = nullptr;
    row_ = std::max(row_, std::min(kRows, 2 * keys_));  // too late for the first ones
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

  // Asks for the next cache lines, row after row.
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
  // Moves on to the next row where the present one was asked for; whether there is one.
  TTC_INLINE bool has_row() {
    if (next_ < row_end_) return true;
    if (row_ >= count_) return false;
    next_ = reinterpret_cast<const char*>(rows_[row_++]);
    row_end_ = next_ + row_bytes_;
    return true;
  }

  // The first key rows and value rows of the tile that begins at key k.
  void add_tile(const WorkItem& item, int kv_head, int64_t k, int keys, int values) {
    const auto& p = *a_.params;
    const int64_t first = item.k_begin / page_size_;
    const auto add = [&](const void* cache, int64_t page_stride, int64_t token_stride, int64_t head_stride, int count) {
      const int32_t* page = a_.plan->pages + item.page_offset + (k / page_size_ - first);
      int64_t offset = k % page_size_;
      for (int j = 0; j < count; ++page, offset = 0) {
        const Src* base = static_cast<const Src*>(cache) + *page * page_stride + kv_head * head_stride;
        for (; offset < page_size_ && j < count; ++offset, ++j) rows_[count_++] = base + offset * token_stride;
      }
    };
    add(p.k_cache, p.k_page_stride, p.k_token_stride, p.k_head_stride, keys);
    add(p.v_cache, p.v_page_stride, p.v_token_stride, p.v_head_stride, values);
  }

  const TileArgs& a_;
  const int64_t page_size_;
  int64_t row_bytes_;
  const char *next_ = nullptr, *row_end_ = nullptr;
  const int limit_;
  int keys_ = 0, count_ = 0, row_;
  const Src* rows_[4 * kTileKeys];
};

}  // namespace ttc
