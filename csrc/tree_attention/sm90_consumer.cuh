// The consumers of the Hopper kernel: two warp groups that multiply, with rows as the M or the N side.
//
//   many rows (64 a warp group)                    few rows (16 or 32, both warp groups the same ones)
//
//     S[row][key] = Q K^T       from shared          S^T[key][row] = K Q^T     from shared
//     softmax over keys         in a quad of lanes   softmax over keys         lanes, then warps by `exchange`
//     P                         in registers         P[row][key]               to shared, transposed on the way
//     O[row][d] += P V          P as A, V as B       O^T[d][row] += V^T P^T    V as A; a warp group has half of d
//
// A lone query would fill one of 64 rows on the left and fills one of 16 on the right. Deterministic plans
// have one tile class of 64 or more rows, so all their rows take the left way, in which no element of a
// row depends on another row.
#pragma once

#include "tree_attention/cuda_common.cuh"
#include "tree_attention/sm90_tile.cuh"

namespace ttc::sm90 {

template <class T, class KV, int D>
class Consumer {
  using Sizes = Tile<D>;

 public:
  __device__ Consumer(const TreeAttentionCudaParams& p, Shared<KV, D>& shared)
      : p_(p),
        plan_{p.plan, &shared.header},
        sh_(shared),
        group_(threadIdx.x / kGroup - 1),
        warp_(threadIdx.x % kGroup / 32),
        lane_(threadIdx.x % 32) {}

  __device__ __forceinline__ void run() {
    write_empty_states<T, D>(p_, plan_, threadIdx.x - kGroup, kConsumers * kGroup);
    for (;;) {
      ptx::mbarrier_wait(&sh_.q_full[buffer_.index], buffer_.phase);
      const Task& task = sh_.task[buffer_.index];
      if (task.rows == 0) return;
      ptx::fence_proxy_async();  // Q came by ordinary copies
      rows_ = sh_.row[buffer_.index];
      to_log2_ = p_.logits_soft_cap > 0 ? 1.0f : score_scale(task) * kLog2e;
      if (task.few == 0)
        many_rows(task);
      else if (task.few == 16)
        few_rows<16>(task);
      else
        few_rows<32>(task);
      finish(task);
      release(&sh_.q_empty[buffer_.index]);
      buffer_.advance();
    }
  }

 private:
  // This warp is done with a buffer.
  __device__ __forceinline__ void release(uint64_t* empty) const {
    __syncwarp();
    if (lane_ == 0) ptx::mbarrier_arrive(empty);
  }

  // Which of Count keys a row sees, a bit each; key_of gives the key of bit i. A loop, for it is rare and long.
  template <int Count, class KeyOf>
  __device__ __forceinline__ uint32_t visible(int row, KeyOf key_of) const {
    const Row& r = rows_[row];
    uint32_t bits = 0;
#pragma unroll 1
    for (int i = 0; i < Count; ++i) {
      const int32_t key = key_of(i);
      if (key >= r.sight.lo && key < r.sight.hi &&
          (key < r.sight.draft_begin || sees_draft(plan_, r.query, r.sight.draft_begin, key)))
        bits |= 1u << i;
    }
    return bits;
  }
  __device__ __forceinline__ float score_scale(const Task& task) const {
    return p_.sm_scale * (p_.k_scales ? p_.k_scales[task.kv_head] : 1.0f);
  }
  __device__ __forceinline__ static bool has_mask(const Task& task, int k) {
    return k < task.clear_begin || k + kKeys > task.clear_end;
  }
  // Nothing visible so far: any finite shift gives zeros, and lets a NaN through.
  __device__ __forceinline__ static float finite_shift(float top) { return top == -__builtin_inff() ? 0.0f : top; }

  __device__ __forceinline__ void many_rows(const Task& task) {
    float o[D / 2], m[2] = {-__builtin_inff(), -__builtin_inff()}, l[2] = {0.0f, 0.0f};
#pragma unroll
    for (float& x : o) x = 0.0f;
    const int row = 64 * group_ + 16 * warp_ + lane_ / 4;  // and row + 8
    const uint64_t q = ptx::wgmma_descriptor(sh_.q[buffer_.index] + 64 * group_ * Sizes::kLine, 16, Sizes::kAtom,
                                             Sizes::kSwizzle);
    if (64 * group_ >= task.rows) return skip_stages(task);
    float s[kKeys / 2], alpha[2];
    uint32_t p[kKeys / 16][4];
    if constexpr (D == 256) {  // there are no registers for scores beside probabilities
      for (int k = task.start; k < task.end; k += kKeys, stage_.advance()) {
        ptx::mbarrier_wait(&sh_.full[stage_.index], stage_.phase);
        multiply_scores(s, q);
        ptx::wgmma_wait<0>();
        ptx::wgmma_pin(s);
        softmax_of_rows(task, k, row, s, m, l, alpha);
        shrink(o, alpha);
        probabilities(s, p);
        multiply_values(o, p, stage_.index);
        ptx::wgmma_wait<0>();
        ptx::wgmma_pin(o);
        release(&sh_.empty[stage_.index]);
      }
    } else if (task.start < task.end) {
      // Scores of the next stage and values of this one are multiplied in one go; while the values are at it,
      // the scores become probabilities.
      ptx::mbarrier_wait(&sh_.full[stage_.index], stage_.phase);
      multiply_scores(s, q);
      ptx::wgmma_wait<0>();
      ptx::wgmma_pin(s);
      softmax_of_rows(task, task.start, row, s, m, l, alpha);
      probabilities(s, p);
      for (int k = task.start + kKeys; k < task.end; k += kKeys) {
        const int here = stage_.index;
        stage_.advance();
        ptx::mbarrier_wait(&sh_.full[stage_.index], stage_.phase);
        multiply_scores(s, q);
        multiply_values(o, p, here);
        ptx::wgmma_wait<1>();
        ptx::wgmma_pin(s);
        softmax_of_rows(task, k, row, s, m, l, alpha);
        ptx::wgmma_wait<0>();
        ptx::wgmma_pin(o);
        release(&sh_.empty[here]);
        shrink(o, alpha);
        probabilities(s, p);
      }
      multiply_values(o, p, stage_.index);
      ptx::wgmma_wait<0>();
      ptx::wgmma_pin(o);
      release(&sh_.empty[stage_.index]);
      stage_.advance();
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      l[h] += __shfl_xor_sync(~0u, l[h], 1);
      l[h] += __shfl_xor_sync(~0u, l[h], 2);
      // Neighbouring lanes swap pairs: even ones get four columns of block j, odd ones of block j + 1.
      const bool odd = lane_ % 2 == 1;
#pragma unroll
      for (int j = 0; j < D / 8; j += 2) {
        float x[4] = {o[4 * j + 2 * h], o[4 * j + 2 * h + 1], o[4 * j + 2 * h + 4], o[4 * j + 2 * h + 5]};
        swap_with(x[0], x[2], 1, odd);
        swap_with(x[1], x[3], 1, odd);
        write(task, row + 8 * h, 8 * (j + odd) + lane_ % 4 / 2 * 4, {x[0], x[1], x[2], x[3]}, m[h], l[h]);
      }
    }
  }

  // A warp group without rows lets the stages pass.
  __device__ __forceinline__ void skip_stages(const Task& task) {
    for (int k = task.start; k < task.end; k += kKeys, stage_.advance()) {
      ptx::mbarrier_wait(&sh_.full[stage_.index], stage_.phase);
      release(&sh_.empty[stage_.index]);
    }
  }

  __device__ __forceinline__ void multiply_scores(float (&s)[kKeys / 2], uint64_t q) const {
    const uint64_t keys = ptx::wgmma_descriptor(sh_.k[stage_.index], 16, Sizes::kAtom, Sizes::kSwizzle);
    ptx::fence_proxy_async();  // keys and values may have come by ordinary copies
    ptx::wgmma_fence();
#pragma unroll
    for (int d = 0; d < D; d += 16)
      ptx::wgmma_ss<T, kKeys, false, false>(s, q + (Sizes::k_step(Sizes::kQBlock, d) >> 4),
                                            keys + (Sizes::k_step(Sizes::kKvBlock, d) >> 4), d > 0);
    ptx::wgmma_commit();
  }

  __device__ __forceinline__ void multiply_values(float (&o)[D / 2], const uint32_t (&p)[kKeys / 16][4],
                                                  int stage) const {
    const uint64_t values = ptx::wgmma_descriptor(sh_.v[stage], Sizes::kKvBlock, Sizes::kAtom, Sizes::kSwizzle);
    ptx::wgmma_fence();
#pragma unroll
    for (int i = 0; i < kKeys / 16; ++i)
      ptx::wgmma_rs<T, D, true>(o, p[i], values + (16 * i * Sizes::kLine >> 4), true);
    ptx::wgmma_commit();
  }

  __device__ __forceinline__ static void shrink(float (&o)[D / 2], const float (&alpha)[2]) {
#pragma unroll
    for (int i = 0; i < D / 2; ++i) o[i] *= alpha[i / 2 % 2];
  }

  // Probabilities in the layout of A.
  __device__ __forceinline__ static void probabilities(const float (&s)[kKeys / 2], uint32_t (&p)[kKeys / 16][4]) {
#pragma unroll
    for (int i = 0; i < kKeys / 4; ++i) p[i / 4][i % 4] = ptx::pack2<T>(s[2 * i], s[2 * i + 1]);
  }

  // Scores of rows `row` and row + 8 to exponentials; alpha: by what all before shrinks.
  __device__ __forceinline__ void softmax_of_rows(const Task& task, int k, int row, float (&s)[kKeys / 2],
                                                  float (&m)[2], float (&l)[2], float (&alpha)[2]) const {
    if (p_.logits_soft_cap > 0) {
      const float scale = score_scale(task);
#pragma unroll
      for (float& x : s) x = soft_cap(x, scale, p_.logits_soft_cap);
    }
    if (has_mask(task, k)) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int first = k + lane_ % 4 * 2;
        const uint32_t seen = visible<kKeys / 4>(row + 8 * h, [&](int i) { return first + i / 2 * 8 + i % 2; });
#pragma unroll
        for (int i = 0; i < kKeys / 4; ++i)
          if (!(seen >> i & 1)) s[i / 2 * 4 + 2 * h + i % 2] = -__builtin_inff();
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float top = -__builtin_inff();
#pragma unroll
      for (int i = 0; i < kKeys / 4; ++i) top = fmaxf(top, s[i / 2 * 4 + 2 * h + i % 2]);
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
      top = fmaxf(m[h], top * to_log2_);
      const float shift = finite_shift(top);
      alpha[h] = ptx::ex2_approx(m[h] - shift);
      float sum = 0.0f;
#pragma unroll
      for (int i = 0; i < kKeys / 4; ++i) {
        float& x = s[i / 2 * 4 + 2 * h + i % 2];
        x = ptx::ex2_approx(fmaf(x, to_log2_, -shift));
        sum += x;
      }
      m[h] = top;
      l[h] = fmaf(l[h], alpha[h], sum);
    }
  }

  template <int Rows>
  __device__ __forceinline__ void few_rows(const Task& task) {
    constexpr int kParts = D == 256 ? 2 : 1;  // of 64 elements of d, for each warp group
    constexpr int kOwn = Rows / 4;            // rows of a thread: 8j + 2 (lane % 4) and the next
    // Head dimension 64 has work for one warp group only; of 96, both compute 32..63, and one keeps them.
    const int first_d = D == 96 ? 32 * group_ : D / 2 * group_;
    if (D == 64 && group_ == 1) return skip_stages(task);
    float o[kParts][Rows / 2], m[kOwn], l[kOwn];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) m[i] = -__builtin_inff(), l[i] = 0.0f;
#pragma unroll
    for (int i = 0; i < kParts * Rows / 2; ++i) o[i / (Rows / 2)][i % (Rows / 2)] = 0.0f;
    const uint64_t q = ptx::wgmma_descriptor(sh_.q[buffer_.index], 16, Sizes::kAtom, Sizes::kSwizzle);
    const uint64_t p = ptx::wgmma_descriptor(sh_.p[group_], 16, 1024, ptx::Swizzle::k128);
    for (int k = task.start; k < task.end; k += kKeys, stage_.advance()) {
      ptx::mbarrier_wait(&sh_.full[stage_.index], stage_.phase);
      ptx::fence_proxy_async();
      float s[Rows / 2];
      const uint64_t keys = ptx::wgmma_descriptor(sh_.k[stage_.index], 16, Sizes::kAtom, Sizes::kSwizzle);
      ptx::wgmma_fence();
#pragma unroll
      for (int d = 0; d < D; d += 16)
        ptx::wgmma_ss<T, Rows, false, false>(s, keys + (Sizes::k_step(Sizes::kKvBlock, d) >> 4),
                                             q + (Sizes::k_step(Sizes::kQBlock, d) >> 4), d > 0);
      ptx::wgmma_commit();
      ptx::wgmma_wait<0>();
      ptx::wgmma_pin(s);

      softmax_of_columns<Rows>(task, k, s, m, l, o);
      const uint64_t values = ptx::wgmma_descriptor(sh_.v[stage_.index] + first_d / Sizes::kBlock * Sizes::kKvBlock,
                                                    Sizes::kKvBlock, Sizes::kAtom, Sizes::kSwizzle);
      ptx::wgmma_fence();
#pragma unroll
      for (int i = 0; i < kKeys / 16; ++i)
#pragma unroll
        for (int part = 0; part < kParts; ++part)
          ptx::wgmma_ss<T, Rows, true, false>(
              o[part], values + ((part * Sizes::kKvBlock + 16 * i * Sizes::kLine) >> 4), p + (32 * i >> 4), true);
      ptx::wgmma_commit();
      ptx::wgmma_wait<0>();
#pragma unroll
      for (int part = 0; part < kParts; ++part) ptx::wgmma_pin(o[part]);
      release(&sh_.empty[stage_.index]);
    }
    sum_over_warps<Rows>(l);
    // Four lanes with neighbouring d transpose their 4 x 4 values: lane t gets those of row t % 2, d 8 (t / 2).
    const int t = lane_ / 4 % 4;
#pragma unroll
    for (int part = 0; part < kParts; ++part)
#pragma unroll
      for (int j = 0; j < Rows / 8; ++j) {
        float x[4] = {o[part][4 * j], o[part][4 * j + 1], o[part][4 * j + 2], o[part][4 * j + 3]};
        swap_with(x[0], x[1], 4, t & 1);
        swap_with(x[2], x[3], 4, t & 1);
        swap_with(x[0], x[2], 8, t & 2);
        swap_with(x[1], x[3], 8, t & 2);
        const int in_part = 16 * warp_ + t / 2 * 8 + lane_ / 16 * 4;
        if (D == 96 && group_ == 1 && in_part < 32) continue;
        write(task, 8 * j + lane_ % 4 * 2 + t % 2, first_d + 64 * part + in_part, {x[0], x[1], x[2], x[3]},
              t % 2 ? m[2 * j + 1] : m[2 * j], t % 2 ? l[2 * j + 1] : l[2 * j]);
      }
  }

  // Half of a transposition: lanes without `upper` give `b` for the other lane's `a`.
  __device__ __forceinline__ static void swap_with(float& a, float& b, int lanes, bool upper) {
    const float got = __shfl_xor_sync(~0u, upper ? a : b, lanes);
    a = upper ? got : a;
    b = upper ? b : got;
  }

  // Scores [key][row] of this warp's 16 keys to probabilities [row][key] in shared memory.
  template <int Rows, int Parts>
  __device__ __forceinline__ void softmax_of_columns(const Task& task, int k, float (&s)[Rows / 2],
                                                     float (&m)[Rows / 4], float (&l)[Rows / 4],
                                                     float (&o)[Parts][Rows / 2]) {
    const int key = k + 16 * warp_ + lane_ / 4;  // and key + 8
    if (p_.logits_soft_cap > 0) {
      const float scale = score_scale(task);
#pragma unroll
      for (float& x : s) x = soft_cap(x, scale, p_.logits_soft_cap);
    }
    if (has_mask(task, k)) {
#pragma unroll
      for (int i = 0; i < Rows / 4; ++i) {
        const uint32_t seen = visible<2>(i / 2 * 8 + lane_ % 4 * 2 + i % 2, [&](int h) { return key + 8 * h; });
#pragma unroll
        for (int h = 0; h < 2; ++h)
          if (!(seen >> h & 1)) s[i / 2 * 4 + 2 * h + i % 2] = -__builtin_inff();
      }
    }
    float top[Rows / 4];
#pragma unroll
    for (int i = 0; i < Rows / 4; ++i) {
      top[i] = fmaxf(s[i / 2 * 4 + i % 2], s[i / 2 * 4 + 2 + i % 2]);
#pragma unroll
      for (int step = 4; step < 32; step *= 2) top[i] = fmaxf(top[i], __shfl_xor_sync(~0u, top[i], step));
      if (lane_ < 4) sh_.exchange[group_][warp_][i / 2 * 8 + lane_ * 2 + i % 2] = top[i];
    }
    ptx::named_barrier_sync(kBarConsumer + group_, kGroup);
#pragma unroll
    for (int i = 0; i < Rows / 4; ++i) {
      const int row = i / 2 * 8 + lane_ % 4 * 2 + i % 2;
#pragma unroll
      for (int w = 0; w < 4; ++w) top[i] = fmaxf(top[i], sh_.exchange[group_][w][row]);
      top[i] = fmaxf(m[i], top[i] * to_log2_);
      const float shift = finite_shift(top[i]), alpha = ptx::ex2_approx(m[i] - shift);
      float sum = 0.0f;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float& x = s[i / 2 * 4 + 2 * h + i % 2];
        x = ptx::ex2_approx(fmaf(x, to_log2_, -shift));
        sum += x;
#pragma unroll
        for (int part = 0; part < Parts; ++part) o[part][i / 2 * 4 + 2 * h + i % 2] *= alpha;
      }
      m[i] = top[i];
      l[i] = fmaf(l[i], alpha, sum);
    }
    // Of the four matrices, i has keys 8 (i % 2).. of the warp and rows 8 (j + i / 2)..; lane 8i + r gives the
    // address of its row r.
#pragma unroll
    for (int j = 0; j < Rows / 8; j += 2) {
      const int row = 8 * (j + lane_ / 16) + lane_ % 8, chunk = 2 * warp_ + lane_ / 8 % 2;
      uint32_t packed[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) packed[i] = ptx::pack2<T>(s[4 * j + 2 * i], s[4 * j + 2 * i + 1]);
      ptx::stmatrix_trans(sh_.p[group_] + row * 128 + ((chunk ^ (row & 7)) << 4), packed);
    }
    ptx::fence_proxy_async();
    ptx::named_barrier_sync(kBarConsumer + group_, kGroup);
  }

  // Each thread's sums over its own keys to the sums of the warp group.
  template <int Rows>
  __device__ __forceinline__ void sum_over_warps(float (&l)[Rows / 4]) {
    ptx::named_barrier_sync(kBarConsumer + group_, kGroup);  // the last maxima have been read
#pragma unroll
    for (int i = 0; i < Rows / 4; ++i) {
#pragma unroll
      for (int step = 4; step < 32; step *= 2) l[i] += __shfl_xor_sync(~0u, l[i], step);
      if (lane_ < 4) sh_.exchange[group_][warp_][i / 2 * 8 + lane_ * 2 + i % 2] = l[i];
    }
    ptx::named_barrier_sync(kBarConsumer + group_, kGroup);
#pragma unroll
    for (int i = 0; i < Rows / 4; ++i) {
      const int row = i / 2 * 8 + lane_ % 4 * 2 + i % 2;
      l[i] = 0.0f;
#pragma unroll
      for (int w = 0; w < 4; ++w) l[i] += sh_.exchange[group_][w][row];
    }
    ptx::named_barrier_sync(kBarConsumer + group_, kGroup);
  }

  // Four elements of a row, with its state: to its partial, or finished.
  __device__ __forceinline__ void write(const Task& task, int row, int d, float4 x, float m, float l) const {
    if (row >= task.rows) return;
    const Row& to = rows_[row];
    const int64_t head = int64_t(task.kv_head) * p_.group + (task.first_row + row) % p_.group;
    const float scale = p_.v_scale * (p_.v_scales ? p_.v_scales[task.kv_head] : 1.0f);
    x = {x.x * scale, x.y * scale, x.z * scale, x.w * scale};
    if (to.slot >= 0)
      store_partial4(p_, to.slot, head, d, x, m, l);
    else
      finish4<T>(p_, to.token, head, d, x, m, l);
  }

  // All rows are written: queries whose other partials are there already are merged by this block.
  __device__ __forceinline__ void finish(const Task& task) {
    const WorkItem& item = plan_.item(task.item);
    if (item.partial_base < 0 || !task.last) return;
    const int thread = threadIdx.x - kGroup;
    int32_t& count = sh_.num_merges[turn_ ^= 1];  // the other one may still be read
    if (thread == 0) count = 0;
    ptx::threadfence();
    ptx::named_barrier_sync(kBarConsumers, kConsumers * kGroup);
    if (thread < item.q_count) {
      const int32_t q = item.q_begin + thread, merge = plan_.q_merge(q);
      if (arrive(p_, plan_, q, merge, task.kv_head)) sh_.merges[atomicAdd(&count, 1)] = merge;
    }
    ptx::named_barrier_sync(kBarConsumers, kConsumers * kGroup);
    merge_partials<T, D>(p_, plan_, sh_.merges, count, task.kv_head, thread, kConsumers * kGroup);
  }

  const TreeAttentionCudaParams& p_;
  const CudaPlan plan_;
  Shared<KV, D>& sh_;
  const int group_, warp_, lane_;  // warp group among the consumers, warp in it
  const Row* rows_ = nullptr;      // of the task
  float to_log2_ = 1.0f;           // factor of its scores, after the soft cap
  int turn_ = 0;
  Ring<kStages<KV, D>> stage_;
  Ring<Sizes::kQBuffers> buffer_;
};

}  // namespace ttc::sm90
