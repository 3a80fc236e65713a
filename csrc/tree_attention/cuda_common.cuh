// What the CUDA kernels of tree attention share: how blocks take units of work, what a query sees, the
// soft cap, and how results are written and merged.
//
// A launch is one persistent grid. A unit is a work item for one KV head:
//
//   block 0   unit 0   unit n    ...         units: items most expensive first, KV heads innermost
//   block 1   unit 1   unit n+1  ...         n: blocks of the grid; later units go to whoever is free
//
// An item that covers its queries' whole path writes their output. The others leave partials in slots of
// their own, then count themselves in at Counters' arrivals; whoever comes last merges a query's partials,
// in path order whoever that is. There is no atomic operation on a float, and every counter is zero again
// when the launch ends.
//
// Nothing here waits for a block or for other threads of its block: kernels put their barriers between
// these functions. `thread` and `threads` say who of how many calls.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/plan_layout.h"
#include "common/ptx.cuh"
#include "tree_attention/cuda_params.h"

namespace ttc {

constexpr float kLog2e = 1.4426950408889634f;
constexpr double kLn2 = 0.69314718055994530942;
constexpr int32_t kNoKey = 0x7fffffff;

// The plan with its header in shared memory, where a kernel has copied it.
struct CudaPlan {
  const int32_t* ints;
  const PlanHeader* header;

  __device__ __forceinline__ const WorkItem& item(int32_t i) const {
    return reinterpret_cast<const WorkItem*>(ints + header->items)[i];
  }
  __device__ __forceinline__ const int32_t* pages() const { return ints + header->pages; }
  __device__ __forceinline__ int32_t kv_len(int32_t row) const { return ints[kHeaderInts + row]; }
  __device__ __forceinline__ int32_t q_token(int32_t q) const { return ints[header->q_token + q]; }
  __device__ __forceinline__ int32_t q_row(int32_t q) const { return ints[header->q_row + q]; }
  __device__ __forceinline__ int32_t q_back(int32_t q) const { return ints[header->q_back + q]; }
  __device__ __forceinline__ int32_t q_merge(int32_t q) const { return ints[header->q_merge + q]; }
  __device__ __forceinline__ int32_t merge_query(int32_t m) const { return ints[header->merge_query + m]; }
  __device__ __forceinline__ int32_t merge_ptr(int32_t m) const { return ints[header->merge_ptr + m]; }
  __device__ __forceinline__ int32_t merge_slot(int32_t i) const { return ints[header->merge_slot + i]; }
  __device__ __forceinline__ const DraftNode* draft() const {
    return reinterpret_cast<const DraftNode*>(ints + header->draft);
  }
};

__device__ __forceinline__ void load_header(const int32_t* plan, PlanHeader* shared, int thread) {
  if (thread < kHeaderInts) reinterpret_cast<int32_t*>(shared)[thread] = plan[thread];
}

// --- units ------------------------------------------------------------------------------------------

// The unit after a block's first one, which is blockIdx.x. One thread of the block calls it.
__device__ __forceinline__ int32_t next_unit(const TreeAttentionCudaParams& p) {
  auto* counters = reinterpret_cast<Counters*>(p.counters);
  return int32_t(gridDim.x) + ptx::atomic_add_acq_rel(&counters->ticket, 1);
}

// One thread of a block calls it when the block draws no more units. The last block restores the counters.
__device__ __forceinline__ void leave_grid(const TreeAttentionCudaParams& p) {
  auto* counters = reinterpret_cast<Counters*>(p.counters);
  if (ptx::atomic_add_acq_rel(&counters->finished, 1) != int32_t(gridDim.x) - 1) return;
  counters->ticket = 0;
  counters->finished = 0;
}

// --- what a query sees ------------------------------------------------------------------------------

// Keys [lo, hi) before draft trees thin them out; those from draft_begin on are of the query's own draft.
struct Sight {
  int32_t lo, hi, draft_begin;
};

__device__ __forceinline__ Sight sight_of(const CudaPlan& plan, int32_t q, bool has_draft) {
  const int32_t hi = plan.kv_len(plan.q_row(q)) - plan.q_back(q);
  int32_t logical = hi - 1, draft_begin = kNoKey;
  if (has_draft) {
    const DraftNode node = plan.draft()[q];
    if (node.row_begin >= 0) {
      draft_begin = hi - 1 - (q - node.row_begin);
      logical = draft_begin + node.depth;
    }
  }
  const int32_t window = plan.header->window_left;
  return {window >= 0 && logical > window ? logical - window : 0, hi, draft_begin};
}

// Whether a query of a draft tree sees a key of its own draft: an ancestor or itself, inside the window.
__device__ __forceinline__ bool sees_draft(const CudaPlan& plan, int32_t q, int32_t draft_begin, int32_t key) {
  const DraftNode* draft = plan.draft();
  const DraftNode node = draft[q], other = draft[node.row_begin + (key - draft_begin)];
  const int32_t window = plan.header->window_left;
  return other.in <= node.in && node.in < other.out && (window < 0 || node.depth - other.depth <= window);
}

// cap * tanh(score / cap) in units of log2; scale is that of the scores.
__device__ __forceinline__ float soft_cap(float score, float scale, float cap) {
  return ptx::tanh_ex2(score * (scale / cap)) * (cap * kLog2e);
}

// key / page_size for 0 <= key < 2^31, without a division.
__device__ __forceinline__ int32_t page_of(const TreeAttentionCudaParams& p, int32_t key) {
  return int32_t((uint64_t(uint32_t(key)) * p.page_factor) >> p.page_shift);
}

// --- results ----------------------------------------------------------------------------------------

template <class T>
__device__ __forceinline__ void store_out4(T* out, float4 x) {
  *reinterpret_cast<uint2*>(out) = {ptx::pack2<T>(x.x, x.y), ptx::pack2<T>(x.z, x.w)};
}

// Four elements of one row from d on: out = x / norm, and with the first ones lse = ln(sum of exponentials).
// m is in units of log2; norm = 0 is the empty state.
template <class T>
__device__ __forceinline__ void finish4(const TreeAttentionCudaParams& p, int64_t token, int64_t head, int d, float4 x,
                                        float m, float norm) {
  const float inverse = norm == 0 ? 0.0f : 1.0f / norm;
  store_out4(static_cast<T*>(p.out) + token * p.out_token_stride + head * p.out_head_stride + d,
             {x.x * inverse, x.y * inverse, x.z * inverse, x.w * inverse});
  if (d == 0)
    p.lse[token * (int64_t(p.group) * p.num_kv_heads) + head] =
        norm == 0 ? -__builtin_inff() : float((double(m) + double(log2f(norm))) * kLn2);
}

// Four elements of one row's partial from d on.
__device__ __forceinline__ void store_partial4(const TreeAttentionCudaParams& p, int32_t slot, int64_t head, int d,
                                               float4 x, float m, float norm) {
  const int64_t state = int64_t(slot) * (int64_t(p.group) * p.num_kv_heads) + head;
  *reinterpret_cast<float4*>(p.partial_out + state * p.head_dim + d) = x;
  if (d == 0) *reinterpret_cast<float2*>(p.partial_ml + state * 2) = {m, norm};
}

// Counts one partial of a query and KV head in. True for the last one: the caller sees to the merge. Before
// the call every thread has executed ptx::threadfence() after its partials, and a barrier has joined them.
__device__ __forceinline__ bool arrive(const TreeAttentionCudaParams& p, const CudaPlan& plan, int32_t q,
                                       int32_t merge, int32_t kv_head) {
  int32_t* const arrivals = p.counters + kArrivals + int64_t(q) * p.num_kv_heads + kv_head;
  const int32_t expected = plan.merge_ptr(merge + 1) - plan.merge_ptr(merge);
  if (ptx::atomic_add_acq_rel(arrivals, 1) != expected - 1) return false;
  *arrivals = 0;
  return true;
}

// Merges the partials of `count` entries of the merge lists for one KV head, each in path order. A barrier
// lies between arrive() and this call. Entries without partials get their empty state.
template <class T, int kHeadDim>
__device__ void merge_partials(const TreeAttentionCudaParams& p, const CudaPlan& plan, const int32_t* merges,
                               int32_t count, int32_t kv_head, int thread, int threads) {
  constexpr int kPieces = kHeadDim / 4;
  const int64_t num_q_heads = int64_t(p.group) * p.num_kv_heads;
  for (int32_t i = thread; i < count * p.group * kPieces; i += threads) {
    const int32_t row = i / kPieces, d = i % kPieces * 4;
    const int32_t merge = merges[row / p.group];
    const int64_t head = int64_t(kv_head) * p.group + row % p.group;
    const int32_t begin = plan.merge_ptr(merge), end = plan.merge_ptr(merge + 1);
    float m = -__builtin_inff();
    for (int32_t s = begin; s < end; ++s)
      m = fmaxf(m, ptx::load_l2_8(p.partial_ml + (plan.merge_slot(s) * num_q_heads + head) * 2).x);
    float4 sum = {0, 0, 0, 0};
    float norm = 0;
    for (int32_t s = begin; s < end; ++s) {
      const int64_t state = plan.merge_slot(s) * num_q_heads + head;
      const float2 ml = ptx::load_l2_8(p.partial_ml + state * 2);
      if (ml.y == 0) continue;
      const float weight = ptx::ex2_approx(ml.x - m);
      const float4 part = ptx::load_l2_16(p.partial_out + state * kHeadDim + d);
      sum.x = fmaf(part.x, weight, sum.x);
      sum.y = fmaf(part.y, weight, sum.y);
      sum.z = fmaf(part.z, weight, sum.z);
      sum.w = fmaf(part.w, weight, sum.w);
      norm = fmaf(ml.y, weight, norm);
    }
    finish4<T>(p, plan.q_token(plan.merge_query(merge)), head, d, sum, m, norm);
  }
}

// Writes the state of the queries that are in no item: out = 0, lse = -inf. All threads of the grid call it.
template <class T, int kHeadDim>
__device__ void write_empty_states(const TreeAttentionCudaParams& p, const CudaPlan& plan, int thread, int threads) {
  const int32_t lane = thread % 32, warp = int32_t(blockIdx.x) * (threads / 32) + thread / 32;
  const int32_t warps = int32_t(gridDim.x) * (threads / 32);
  for (int32_t first = warp * 32; first < plan.header->num_merges; first += warps * 32) {
    const int32_t last = min(first + 32, plan.header->num_merges);
    const bool empty = first + lane < last && plan.merge_ptr(first + lane) == plan.merge_ptr(first + lane + 1);
    for (uint32_t todo = __ballot_sync(0xffffffffu, empty); todo != 0; todo &= todo - 1) {
      const int32_t merge = first + __ffs(int(todo)) - 1;
      for (int32_t kv_head = 0; kv_head < p.num_kv_heads; ++kv_head)
        merge_partials<T, kHeadDim>(p, plan, &merge, 1, kv_head, lane, 32);
    }
  }
}

}  // namespace ttc
