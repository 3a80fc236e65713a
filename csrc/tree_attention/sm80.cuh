// Tree attention for compute capability 8.0 and newer: mma.sync, ldmatrix, cp.async.
//
// A block of 4 warps takes one unit after the other. Keys and values come in tiles of 64 keys through a
// ring of slots in shared memory, K and V in turn:
//
//   ring    | K0 | V0 | K1 | V1 | ...       kSlots of them; all but the one in use are on their way
//   slot    64 rows (keys) of head_dim elements; the 16-byte chunk c of row r stands at chunk
//           c ^ swizzle(r), so that the 8 rows of an ldmatrix lie in different banks
//
// Rows of a tile are query tokens x heads of the KV head's group. A warp multiplies 16 rows; the warps that
// the rows leave over share the keys of each tile, so that a lone query does not wait for one warp:
//
//   class 16     keys  0-15  16-31  32-47  48-63        class 64     keys 0-63
//   rows 0-15         warp 0 warp 1 warp 2 warp 3       rows  0-15   warp 0
//                                                       rows 16-31   warp 1
//   class 32     keys  0-31  32-63                      rows 32-47   warp 2
//   rows  0-15        warp 0 warp 1                     rows 48-63   warp 3
//   rows 16-31        warp 2 warp 3
//
// The pieces are put together in order when the item ends. Deterministic plans have one class, so that a
// row's arithmetic is the same in every company; masked keys add exact zeros.
#pragma once

#include "tree_attention/sm80_products.cuh"

namespace ttc {

template <class T, bool kFp8, int kHeadDim>
class Sm80Block : Sm80Products<T, kFp8, kHeadDim> {
  using Base = Sm80Products<T, kFp8, kHeadDim>;
  using Base::kOwnSteps;
  using Base::p_, Base::ring_, Base::shared_, Base::plan_, Base::u_, Base::thread_, Base::warp_, Base::lane_;
  using typename Base::L;
  using Row = typename L::Row;
  static constexpr int kWarps = kSm80Threads / 32;
  static constexpr uint32_t kAll = 0xffffffffu;

 public:
  __device__ __forceinline__ explicit Sm80Block(const TreeAttentionCudaParams& params) : Base(params) {}

  __device__ __forceinline__ void run() {
    load_header(p_.plan, &shared_.header, thread_);
    __syncthreads();
    for (int32_t unit = int32_t(blockIdx.x); unit < num_units();) {
      // Asked for now, needed when this unit is done.
      int32_t next = 0x7fffffff;
      if (thread_ == 0 && draws()) next = next_unit(p_);
      constexpr int kItemInts = sizeof(WorkItem) / 4;
      if (thread_ < kItemInts)
        reinterpret_cast<int32_t*>(&u_.item)[thread_] =
            reinterpret_cast<const int32_t*>(&plan_.item(unit / p_.num_kv_heads))[thread_];
      if (thread_ == kItemInts) {
        u_.kv_head = unit % p_.num_kv_heads;
        u_.k_scale = p_.k_scales ? p_.k_scales[u_.kv_head] : 1.0f;
      }
      __syncthreads();
      run_unit();
      if (thread_ == 0) shared_.next_unit = next;
      __syncthreads();
      unit = shared_.next_unit;
    }
    if (draws() && thread_ == 0) leave_grid(p_);
    write_empty_states<T, kHeadDim>(p_, plan_, thread_, kSm80Threads);
  }

 private:
  // What a warp has of its 16 rows: lane 4 g + c holds rows g and g + 8.
  struct State {
    float o[kHeadDim / 8][4];
    float m[2], l[2];
  };

  __device__ __forceinline__ int32_t num_units() const { return shared_.header.num_items * p_.num_kv_heads; }
  // Whether blocks take more units than their first.
  __device__ __forceinline__ bool draws() const { return num_units() > int32_t(gridDim.x); }

  __device__ __forceinline__ void run_unit() {
    const int row_warps = u_.item.tile_rows <= 16 ? 1 : u_.item.tile_rows <= 32 ? 2 : L::kRows / 16;
    if (row_warps == 1)
      run_rows<1>();
    else if (row_warps == 2)
      run_rows<2>();
    else if constexpr (L::kRows == 64)
      run_rows<4>();
    if (u_.item.partial_base >= 0) merge_if_last();
  }

  // The item's rows, 16 * RowWarps at a time.
  template <int RowWarps>
  __device__ __forceinline__ void run_rows() {
    int32_t first_row = 0;
    do {
      find_rows(first_row, 16 * RowWarps);
      run_tiles<RowWarps>();
      first_row = u_.first_row + 16 * RowWarps;
      __syncthreads();
    } while (first_row < u_.item.q_count * p_.group);
  }

  // The rows from first_row on and what they see, and from that the tiles. All threads pass a barrier before
  // they read the unit's tiles.
  __device__ __forceinline__ void find_rows(int32_t first_row, int padded) {
    const int32_t num_rows = min(u_.item.q_count * p_.group - first_row, padded);
    if (thread_ < padded) {
      Row row{kNoKey, 0, kNoKey, 0};
      if (thread_ < num_rows) {
        const int32_t q = u_.item.q_begin + (first_row + thread_) / p_.group;
        const Sight sight = sight_of(plan_, q, u_.item.has_draft != 0);
        row = {sight.lo, min(sight.hi, u_.item.k_end), sight.draft_begin, q};
      }
      shared_.rows[thread_] = row;
    }
    __syncthreads();
    if (warp_ != 0) return;
    int32_t lo = kNoKey, hi = 0;
    for (int i = lane_; i < padded; i += 32) {
      lo = min(lo, shared_.rows[i].lo);
      hi = max(hi, shared_.rows[i].hi);
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      lo = min(lo, __shfl_xor_sync(kAll, lo, step));
      hi = max(hi, __shfl_xor_sync(kAll, hi, step));
    }
    if (lane_ != 0) return;
    const int32_t start = u_.item.k_begin + max(lo - u_.item.k_begin, 0) / L::kKeys * L::kKeys;
    u_.first_row = first_row;
    u_.num_rows = num_rows;
    u_.first_key = lo;
    u_.last_key = hi;
    u_.start = start;
    u_.tiles = hi > start ? (hi - start + L::kKeys - 1) / L::kKeys : 0;
  }

  // --- from global to shared memory -----------------------------------------------------------------

  // The page of this thread's key in a tile, -1 if no row sees that key. Threads past the keys ask for none.
  __device__ __forceinline__ int32_t look_up(int32_t tile) const {
    const int32_t key = u_.start + tile * L::kKeys + thread_;
    if (thread_ >= L::kKeys || tile >= u_.tiles || key < u_.first_key || key >= u_.last_key) return -1;
    return plan_.pages()[u_.item.page_offset + page_of(p_, key) - page_of(p_, u_.item.k_begin)];
  }

  __device__ __forceinline__ void place(int32_t tile, int32_t page) const {
    if (thread_ >= L::kKeys) return;
    const int32_t key = u_.start + tile * L::kKeys + thread_;
    const int64_t in_page = key - page_of(p_, key) * p_.page_size;
    shared_.offset[tile & 1][thread_] =
        page < 0 ? -1 : page * p_.page_stride + in_page * p_.token_stride + u_.kv_head * p_.head_stride;
  }

  // Asks for the i-th slot's worth, K of tile i / 2 or V, to come to a slot. The pages of a tile are looked up while
  // the one before it is multiplied.
  __device__ __forceinline__ void load(int32_t i, int slot_index) {
    if (i < 2 * u_.tiles) {
      const char* const cache = static_cast<const char*>(i & 1 ? p_.v_cache : p_.k_cache);
      char* const slot = ring_ + slot_index * L::kSlotBytes;
      const int64_t* const offset = shared_.offset[i >> 1 & 1];
      const int thread = ptx::unhoisted(thread_);
#pragma unroll(L::kChunks == 32 ? 2 : 16)
      for (int j = 0; j < L::kKeys * L::kChunks / kSm80Threads; ++j) {
        const int at = thread + j * kSm80Threads, row = at / L::kChunks, chunk = at % L::kChunks;
        const int64_t begin = offset[row];
        ptx::cp_async_16(slot + L::chunk_at(row, chunk), cache + (begin < 0 ? 0 : begin * (kFp8 ? 1 : 2) + chunk * 16),
                         begin >= 0);
      }
    }
    ptx::cp_async_commit();
    if (i & 1) {
      place((i >> 1) + 1, page_ahead_);
      page_ahead_ = look_up((i >> 1) + 2);
    }
  }

  // Waits for the i-th slot's worth, and asks for what takes the place of the one before it.
  __device__ __forceinline__ const char* next_slot(int32_t i) {
    ptx::cp_async_wait<L::kSlots - 2>();
    __syncthreads();
    load(i + L::kSlots - 1, use_ == 0 ? L::kSlots - 1 : use_ - 1);
    const char* const slot = ring_ + use_ * L::kSlotBytes;
    use_ = use_ + 1 == L::kSlots ? 0 : use_ + 1;
    return slot;
  }

  // --- scores ---------------------------------------------------------------------------------------

  // Which of its scores this lane's rows see: bit i for row g, bit Keys / 4 + i for row g + 8.
  template <int Keys>
  __device__ __forceinline__ uint32_t visible(const Row (&row)[2], int32_t first) const {
    uint32_t bits = 0;
#pragma unroll 1
    for (int i = 0; i < Keys / 4; ++i) {
      const int32_t key = first + i / 2 * 8 + lane_ % 4 * 2 + i % 2;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        bool sees = key >= row[r].lo && key < row[r].hi;
        if (sees && key >= row[r].draft_begin) sees = sees_draft(plan_, row[r].q, row[r].draft_begin, key);
        bits |= uint32_t(sees) << (r * (Keys / 4) + i);
      }
    }
    return bits;
  }

  // Scores to probabilities, as operand A of the product with V, and the state so far to their scale.
  template <int Keys>
  __device__ __forceinline__ void softmax(const Row (&row)[2], int32_t first, float (&s)[Keys / 8][4],
                                          uint32_t (&p)[Keys / 16][4], State& state) const {
    const float scale = p_.sm_scale * u_.k_scale;
    float to_log2 = scale * kLog2e;
    if (p_.logits_soft_cap > 0) {
#pragma unroll
      for (int n = 0; n < Keys / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) s[n][e] = soft_cap(s[n][e], scale, p_.logits_soft_cap);
      to_log2 = 1;
    }
    bool whole = true;
#pragma unroll
    for (int r = 0; r < 2; ++r)
      whole &= row[r].lo == kNoKey ||
               (row[r].lo <= first && first + Keys <= row[r].hi && first + Keys <= row[r].draft_begin);
    if (!__all_sync(kAll, whole)) {
      const uint32_t bits = visible<Keys>(row, first);
#pragma unroll
      for (int n = 0; n < Keys / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          if (!(bits >> (e / 2 * (Keys / 4) + 2 * n + e % 2) & 1)) s[n][e] = -__builtin_inff();
    }
    float shift[2], alpha[2], sum[2] = {0, 0};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float top = fmaxf(s[0][2 * r], s[0][2 * r + 1]);
#pragma unroll
      for (int n = 1; n < Keys / 8; ++n) top = fmaxf(top, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
      top = fmaxf(top, __shfl_xor_sync(kAll, top, 1));
      top = fmaxf(top, __shfl_xor_sync(kAll, top, 2));
      const float before = state.m[r];
      state.m[r] = fmaxf(before, top * to_log2);
      // Nothing visible so far: any finite shift gives zeros, and lets a NaN through.
      shift[r] = state.m[r] == -__builtin_inff() ? 0.0f : state.m[r];
      alpha[r] = ptx::ex2_approx(before - shift[r]);
    }
#pragma unroll
    for (int n = 0; n < Keys / 8; ++n)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float x = ptx::ex2_approx(fmaf(s[n][2 * r], to_log2, -shift[r]));
        const float y = ptx::ex2_approx(fmaf(s[n][2 * r + 1], to_log2, -shift[r]));
        sum[r] += x + y;
        p[n / 2][n % 2 * 2 + r] = ptx::pack2<T>(x, y);
      }
#pragma unroll
    for (int r = 0; r < 2; ++r) state.l[r] = fmaf(state.l[r], alpha[r], sum[r]);
    if (__any_sync(kAll, alpha[0] != 1 || alpha[1] != 1)) {
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) state.o[n][e] *= alpha[e / 2];
    }
  }

  template <int RowWarps>
  __device__ __forceinline__ void run_tiles() {
    constexpr int Pieces = kWarps / RowWarps, Keys = L::kKeys / Pieces;  // warps that share 16 rows; the keys of each
    const int begin = warp_ % Pieces * Keys, warp_row = warp_ / Pieces * 16;
    use_ = 0;
    __syncthreads();
    place(0, look_up(0));
    page_ahead_ = look_up(1);
    __syncthreads();
    load(0, 0);
    if constexpr (L::kSlots > 2) load(1, 1);
    if constexpr (L::kSlots > 3) {
      __syncthreads();  // the offsets of the second tile
      load(2, 2);
    }
    uint32_t q[kOwnSteps][4];
    Base::load_queries(q, warp_row, begin == 0);
    State state;
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) state.o[n][e] = 0;
    state.m[0] = state.m[1] = -__builtin_inff();
    state.l[0] = state.l[1] = 0;

#pragma unroll 1
    for (int32_t tile = 0; tile < u_.tiles; ++tile) {
      const int32_t first = u_.start + tile * L::kKeys + begin;
      const char* slot = next_slot(2 * tile);
      uint32_t p[Keys / 16][4];
      bool sees = false;
      {
        const Row row[2] = {shared_.rows[warp_row + lane_ / 4], shared_.rows[warp_row + lane_ / 4 + 8]};
        for (int r = 0; r < 2; ++r) sees |= first < row[r].hi && first + Keys > row[r].lo;
        sees = __any_sync(kAll, sees);
        if (sees) {
          float s[Keys / 8][4];
#pragma unroll
          for (int n = 0; n < Keys / 8; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) s[n][e] = 0;
          Base::template multiply_keys<Keys>(slot, begin, q, warp_row, s);
          softmax<Keys>(row, first, s, p, state);
        }
      }
      slot = next_slot(2 * tile + 1);
      if (sees) Base::template multiply_values<Keys>(slot, begin, p, state.o);
    }
    ptx::cp_async_wait<0>();
    __syncthreads();
    stage(state);
    __syncthreads();
    write_rows<Pieces>();
  }

  // --- from registers to the output -----------------------------------------------------------------

  // All warps' states to where the ring was.
  __device__ __forceinline__ void stage(const State& state) const {
    const int g = lane_ / 4, c = lane_ % 4;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = warp_ * 16 + g + 8 * r;
      float l = state.l[r];
      l += __shfl_xor_sync(kAll, l, 1);
      l += __shfl_xor_sync(kAll, l, 2);
      if (c == 0) shared_.ml[row] = {state.m[r], l};
      float* const out = reinterpret_cast<float*>(ring_) + row * L::kPitch;
      if constexpr (kFp8) {
#pragma unroll
        for (int n = 0; n < kHeadDim / 8; n += 2)
          *reinterpret_cast<float4*>(out + 8 * n + 4 * c) = {state.o[n][2 * r], state.o[n + 1][2 * r],
                                                             state.o[n][2 * r + 1], state.o[n + 1][2 * r + 1]};
      } else {
#pragma unroll
        for (int n = 0; n < kHeadDim / 8; ++n)
          *reinterpret_cast<float2*>(out + 8 * n + 2 * c) = {state.o[n][2 * r], state.o[n][2 * r + 1]};
      }
    }
  }

  // The rows' pieces put together in order, to the output or to the item's partials.
  template <int Pieces>
  __device__ __forceinline__ void write_rows() const {
    const float v_scale = p_.v_scale * (p_.v_scales ? p_.v_scales[u_.kv_head] : 1.0f);
    constexpr int kPieces = kHeadDim / 4;
#pragma unroll 1
    for (int i = thread_; i < u_.num_rows * kPieces; i += kSm80Threads) {
      const int r = i / kPieces, d = i % kPieces * 4, staged = r / 16 * Pieces * 16 + r % 16;
      float m = -__builtin_inff(), l = 0;
#pragma unroll
      for (int piece = 0; piece < Pieces; ++piece) m = fmaxf(m, shared_.ml[staged + 16 * piece].x);
      float4 sum = {0, 0, 0, 0};
#pragma unroll
      for (int piece = 0; piece < Pieces; ++piece) {
        const float2 ml = shared_.ml[staged + 16 * piece];
        if (ml.y == 0) continue;
        const float weight = ptx::ex2_approx(ml.x - m);
        const float4 part = *reinterpret_cast<const float4*>(reinterpret_cast<const float*>(ring_) +
                                                             (staged + 16 * piece) * L::kPitch + d);
        sum.x = fmaf(part.x, weight, sum.x);
        sum.y = fmaf(part.y, weight, sum.y);
        sum.z = fmaf(part.z, weight, sum.z);
        sum.w = fmaf(part.w, weight, sum.w);
        l = fmaf(ml.y, weight, l);
      }
      sum = {sum.x * v_scale, sum.y * v_scale, sum.z * v_scale, sum.w * v_scale};
      const int32_t q = shared_.rows[r].q;
      const int64_t head = int64_t(u_.kv_head) * p_.group + (u_.first_row + r) % p_.group;
      if (u_.item.partial_base >= 0)
        store_partial4(p_, u_.item.partial_base + q - u_.item.q_begin, head, d, sum, m, l);
      else
        finish4<T>(p_, plan_.q_token(q), head, d, sum, m, l);
    }
  }

  // Counts the item's queries in, and merges those whose last partial this was.
  __device__ __forceinline__ void merge_if_last() const {
    ptx::threadfence();
    if (thread_ == 0) shared_.num_merges = 0;
    __syncthreads();
    for (int32_t i = thread_; i < u_.item.q_count; i += kSm80Threads) {
      const int32_t q = u_.item.q_begin + i, merge = plan_.q_merge(q);
      if (arrive(p_, plan_, q, merge, u_.kv_head)) shared_.merges[atomicAdd(&shared_.num_merges, 1)] = merge;
    }
    __syncthreads();
    merge_partials<T, kHeadDim>(p_, plan_, shared_.merges, shared_.num_merges, u_.kv_head, thread_, kSm80Threads);
  }

  int use_;  // slot at hand
  int32_t page_ahead_;
};

template <class T, bool kFp8, int kHeadDim>
__global__ void __launch_bounds__(kSm80Threads, Sm80Layout<T, kFp8, kHeadDim>::kBlocks)
    tree_attention_sm80_kernel(const __grid_constant__ TreeAttentionCudaParams params) {
  Sm80Block<T, kFp8, kHeadDim> block(params);
  block.run();
}

}  // namespace ttc
