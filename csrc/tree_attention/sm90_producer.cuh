// The producer of the Hopper kernel: one warp group that turns the plan into tasks and fills the rings.
//
// A stage is loaded in one of three ways:
//   tensor loads   some row sees each of its 64 keys, and its pages are runs of 8, 16, 32 or 64 keys: a few threads ask,
//                  a box of keys at a time
//   cp.async       otherwise: each warp gathers 16 keys, 16 bytes a thread; keys that no row sees become
//                  zeros, so that nothing stale (0 * NaN) reaches the second product
//   through registers   float8 caches: raw bytes by cp.async to a place of the thread's own, widened from there
#pragma once

#include "tree_attention/cuda_common.cuh"
#include "tree_attention/sm90_tile.cuh"

namespace ttc::sm90 {

// Tensor maps of the caches, [pages, page size, heads, D] from the outermost; box_tokens = 0: there are none.
struct TensorMaps {
  CUtensorMap k, v;
  int32_t box_tokens;
};

template <class T, class KV, int D>
class Producer {
  using Sizes = Tile<D>;
  static constexpr bool kWiden = sizeof(KV) == 1;
  static constexpr int kLoads = D * int(sizeof(KV)) / 32;  // 16-byte loads of a thread for its share of K or V

 public:
  __device__ Producer(const TreeAttentionCudaParams& p, const TensorMaps& maps, Shared<KV, D>& shared)
      : p_(p),
        plan_{p.plan, &shared.header},
        maps_(maps),
        sh_(shared),
        thread_(threadIdx.x),
        warp_(thread_ / 32),
        lane_(thread_ % 32) {}

  __device__ __forceinline__ void run() {
    // With many items a unit is several KV heads, for which rows are looked up once.
    const int32_t items = plan_.header->num_items;
    const int64_t share = int64_t(items) * p_.num_kv_heads / (4 * gridDim.x);
    const int heads = share < 1 ? 1 : int(min(share, int64_t(p_.num_kv_heads)));
    const int spans = (p_.num_kv_heads + heads - 1) / heads;
    for (int32_t unit = blockIdx.x; unit < items * spans;) {
      Task task;
      task.item = unit / spans;
      const int first_head = unit % spans * heads, end_head = min(first_head + heads, p_.num_kv_heads);
      const int32_t drawn = thread_ == 0 ? next_unit(p_) : 0;  // on its way while rows are looked up
      const WorkItem item = plan_.item(task.item);
      const int rows = item.q_count * p_.group;
      pages_ = plan_.pages() + item.page_offset - page_of(p_, item.k_begin);
      for (task.first_row = 0; task.first_row < rows; task.first_row += kRows) {
        task.rows = min(rows - task.first_row, kRows);
        task.few = rows <= item.tile_rows && item.tile_rows <= kFewRows ? item.tile_rows : 0;
        task.last = task.first_row + kRows >= rows;
        const Row row = look_up(item, task, drawn, unit);
        for (task.kv_head = first_head; task.kv_head < end_head; ++task.kv_head) {
          publish(task, row);
          load_keys(task);
        }
      }
    }
    if (thread_ == 0) leave_grid(p_);
    publish(Task{}, Row{});
  }

 private:
  // A row for each thread, and from all of them what keys the task has. Tells all what thread 0 has drawn.
  __device__ __forceinline__ Row look_up(const WorkItem& item, Task& task, int32_t drawn, int32_t& unit) {
    const int r = task.first_row + thread_, index = r / p_.group;
    Row row{{kNoKey, 0, kNoKey}, 0, -1, -1};
    int32_t least_hi = kNoKey, most_lo = 0;
    if (thread_ < task.rows) {
      row.query = item.q_begin + index;
      row.sight = sight_of(plan_, row.query, item.has_draft);
      row.sight.hi = min(row.sight.hi, item.k_end);
      row.token = plan_.q_token(row.query);
      if (item.partial_base >= 0) row.slot = item.partial_base + index;
      least_hi = row.sight.hi, most_lo = row.sight.lo;
    }
    in_group_ = r - index * p_.group;
    int32_t bounds[5] = {row.sight.lo, -row.sight.hi, -most_lo, least_hi, row.sight.draft_begin};
#pragma unroll
    for (int i = 0; i < 5; ++i) {
#pragma unroll
      for (int step = 16; step > 0; step /= 2) bounds[i] = min(bounds[i], __shfl_xor_sync(~0u, bounds[i], step));
      if (lane_ == 0) sh_.bounds[warp_][i] = bounds[i];
    }
    if (thread_ == 0) sh_.next_unit = drawn;
    ptx::named_barrier_sync(kBarProducer, kGroup);
#pragma unroll
    for (int i = 0; i < 5; ++i)
      bounds[i] = min(min(sh_.bounds[0][i], sh_.bounds[1][i]), min(sh_.bounds[2][i], sh_.bounds[3][i]));
    unit = sh_.next_unit;
    ptx::named_barrier_sync(kBarProducer, kGroup);
    task.first = max(bounds[0], item.k_begin);
    task.start = item.k_begin + (task.first - item.k_begin) / kKeys * kKeys;
    task.end = -bounds[1];
    task.clear_begin = -bounds[2];
    task.clear_end = min(bounds[3], bounds[4]);
    return row;
  }

  // Q by cp.async, the rows and the task by ordinary stores: two arrivals of each thread.
  __device__ __forceinline__ void publish(const Task& task, const Row& row) {
    uint64_t* full = &sh_.q_full[buffer_.index];
    ptx::mbarrier_wait(&sh_.q_empty[buffer_.index], buffer_.phase ^ 1);
    sh_.row[buffer_.index][thread_] = row;
    if (thread_ == 0) sh_.task[buffer_.index] = task;
    const int padded = task.few ? task.few : (task.rows + 63) / 64 * 64;
    const T* q = static_cast<const T*>(p_.q);
#pragma unroll 2
    for (int i = 0; i < Sizes::kChunks; ++i) {  // 32 rows of a warp
      const int at = i * 32 + lane_, r = at / Sizes::kChunks, c = at % Sizes::kChunks;
      const int32_t token = __shfl_sync(~0u, row.token, r), in_group = __shfl_sync(~0u, in_group_, r);
      if (warp_ * 32 + r >= padded) continue;
      const bool valid = token >= 0;
      const int64_t head = int64_t(task.kv_head) * p_.group + in_group;
      const int64_t offset = valid ? token * p_.q_token_stride + head * p_.q_head_stride + c * 8 : 0;
      ptx::cp_async_16(sh_.q[buffer_.index] + Sizes::chunk(Sizes::kQBlock, warp_ * 32 + r, c), q + offset, valid);
    }
    ptx::cp_async_mbarrier_arrive(full);
    ptx::mbarrier_arrive(full);
    buffer_.advance();
  }

  __device__ __forceinline__ void load_keys(const Task& task) {
    if constexpr (kWiden) {
      widen_keys(task);
    } else {
      for (int k = task.start; k < task.end; k += kKeys) {
        ptx::mbarrier_wait(&sh_.empty[stage_.index], stage_.phase ^ 1);
        if (maps_.box_tokens > 0 && k % maps_.box_tokens == 0 && k >= task.first && k + kKeys <= task.end)
          load_boxes(task, k);
        else
          gather(task, k);
        stage_.advance();
      }
    }
  }

  // Page and place in it of a position, page -1 if the task does not see it.
  struct Place {
    int32_t page, token;
  };
  __device__ __forceinline__ Place place(const Task& task, int key) const {
    if (key < task.first || key >= task.end) return {-1, 0};
    const int32_t index = page_of(p_, key);
    return {pages_[index], key - index * p_.page_size};
  }

  __device__ __forceinline__ void load_boxes(const Task& task, int k) {
    uint64_t* full = &sh_.full[stage_.index];
    if (thread_ == 0)
      ptx::mbarrier_expect_tx(full, 2 * Sizes::kKvBytes);
    else
      ptx::mbarrier_arrive(full);
    __syncwarp();
    const int tokens = maps_.box_tokens;
    if (thread_ >= kKeys / tokens) return;
    const Place at = place(task, k + thread_ * tokens);
#pragma unroll
    for (int b = 0; b < D / Sizes::kBlock; ++b) {
      const int to = b * Sizes::kKvBlock + thread_ * tokens * Sizes::kLine;
      ptx::tma_load_4d(sh_.k[stage_.index] + to, &maps_.k, full, b * Sizes::kBlock, task.kv_head, at.token, at.page);
      ptx::tma_load_4d(sh_.v[stage_.index] + to, &maps_.v, full, b * Sizes::kBlock, task.kv_head, at.token, at.page);
    }
  }

  // Calls f(i, row, chunk, element offset, exists) for the 16-byte loads of this thread: its warp has the 16
  // keys from k + 16 * warp.
  template <class F>
  __device__ __forceinline__ void for_each_load(const Task& task, int k, F f) const {
    constexpr int per_row = 2 * kLoads, elements = 16 / int(sizeof(KV));
    const Place mine = place(task, k + warp_ * 16 + lane_ % 16);
#pragma unroll 2
    for (int i = 0; i < kLoads; ++i) {
      const int at = i * 32 + lane_, r = at / per_row, c = at % per_row;
      const int64_t page = __shfl_sync(~0u, mine.page, r), token = __shfl_sync(~0u, mine.token, r);
      const bool exists = page >= 0;
      const int64_t from = page * p_.page_stride + token * p_.token_stride + task.kv_head * p_.head_stride;
      f(i, warp_ * 16 + r, c, exists ? from + c * elements : 0, exists);
    }
  }

  __device__ __forceinline__ void gather(const Task& task, int k) {
    const KV* k_cache = static_cast<const KV*>(p_.k_cache);
    const KV* v_cache = static_cast<const KV*>(p_.v_cache);
    char *k_to = sh_.k[stage_.index], *v_to = sh_.v[stage_.index];
    for_each_load(task, k, [&](int, int row, int c, int64_t from, bool exists) {
      const int to = Sizes::chunk(Sizes::kKvBlock, row, c);
      ptx::cp_async_16(k_to + to, k_cache + from, exists);
      ptx::cp_async_16(v_to + to, v_cache + from, exists);
    });
    ptx::cp_async_mbarrier_arrive(&sh_.full[stage_.index]);
  }

  // float8: kRaw tiles in flight, each thread widening the bytes that it asked for.
  __device__ __forceinline__ void widen_keys(const Task& task) {
    const int tiles = (task.end - task.start + kKeys - 1) / kKeys;
    for (int i = 0; i < kRaw - 1; ++i) fetch(task, i, tiles);
    for (int i = 0; i < tiles; ++i) {
      fetch(task, i + kRaw - 1, tiles);
      ptx::cp_async_wait<kRaw - 1>();
      ptx::mbarrier_wait(&sh_.empty[stage_.index], stage_.phase ^ 1);
#pragma unroll 2
      for (int j = 0; j < kLoads; ++j) {
        const int at = j * 32 + lane_, row = warp_ * 16 + at / (2 * kLoads), c = at % (2 * kLoads);
        widen(raw(i, 0, j), sh_.k[stage_.index], row, c);
        widen(raw(i, 1, j), sh_.v[stage_.index], row, c);
      }
      ptx::fence_proxy_async();
      ptx::mbarrier_arrive(&sh_.full[stage_.index]);
      stage_.advance();
    }
    ptx::cp_async_wait<0>();
  }

  __device__ __forceinline__ char* raw(int tile, int is_v, int load) const {
    return sh_.raw[tile % kRaw][is_v] + (load * kGroup + thread_) * 16;
  }

  __device__ __forceinline__ void fetch(const Task& task, int tile, int tiles) {
    if (tile < tiles)
      for_each_load(task, task.start + tile * kKeys, [&](int i, int, int, int64_t from, bool exists) {
        ptx::cp_async_16(raw(tile, 0, i), static_cast<const KV*>(p_.k_cache) + from, exists);
        ptx::cp_async_16(raw(tile, 1, i), static_cast<const KV*>(p_.v_cache) + from, exists);
      });
    ptx::cp_async_commit();
  }

  __device__ __forceinline__ void widen(const char* from, char* to, int row, int c) const {
    const uint4 bytes = *reinterpret_cast<const uint4*>(from);
    const auto half = [](uint32_t low, uint32_t high) {
      return uint4{ptx::fp8x2_e4m3_to<T>(uint16_t(low)), ptx::fp8x2_e4m3_to<T>(uint16_t(low >> 16)),
                   ptx::fp8x2_e4m3_to<T>(uint16_t(high)), ptx::fp8x2_e4m3_to<T>(uint16_t(high >> 16))};
    };
    *reinterpret_cast<uint4*>(to + Sizes::chunk(Sizes::kKvBlock, row, 2 * c)) = half(bytes.x, bytes.y);
    *reinterpret_cast<uint4*>(to + Sizes::chunk(Sizes::kKvBlock, row, 2 * c + 1)) = half(bytes.z, bytes.w);
  }

  const TreeAttentionCudaParams& p_;
  const CudaPlan plan_;
  const TensorMaps& maps_;
  Shared<KV, D>& sh_;
  const int thread_, warp_, lane_;
  const int32_t* pages_ = nullptr;     // page of the item's positions, by position / page size
  int32_t in_group_ = 0;  // head of this thread's row
  Ring<kStages<KV, D>> stage_;
  Ring<Sizes::kQBuffers> buffer_;
};

}  // namespace ttc::sm90
