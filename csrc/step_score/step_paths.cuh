// aggregate_steps and select_topk on a GPU: as kernels, and as what the last block of score_round does.
#pragma once

#include "common/ptx.cuh"
#include "step_score/score_math.h"
#include "step_score/step_score.h"

namespace ttc {

constexpr int kPathThreads = 256;

// The aggregates of one step, which walks up its own path: no thread waits for another's result. Sums are
// integers, so the bits are those of a walk down. A link to no earlier step ends the walk and gives NaN.
__device__ __forceinline__ void aggregate_step(const AggregateStepsParams& p, int64_t step) {
  const int64_t n = p.out.count, carried = p.carry_count;
  const float last = ptx::load_l2_4(p.scores + step);
  float least = last;
  int64_t logs = 0, sum = 0, count = 0;
  bool usable = true;
  for (int64_t at = carried + step; at >= 0;) {
    if (at < carried) {
      const float before = p.carry_stats[at];
      usable = usable && before == before;
      least = before < least ? before : least;
      logs += p.carry_state[at];
      sum += p.carry_state[carried + at];
      count += p.carry_state[2 * carried + at];
      break;
    }
    const float score = ptx::load_l2_4(p.scores + (at - carried));
    const int64_t above = p.parent[at - carried];
    if (is_probability(score)) {
      least = score < least ? score : least;
      logs += fixed_log(score);
      sum += fixed_score(score);
    }
    usable = usable && is_probability(score) && above >= -1 && above < at;
    ++count;
    at = above < at ? above : -1;
  }
  const float nan = __uint_as_float(0x7fc00000u);
  p.out.state[step] = logs;
  p.out.state[n + step] = sum;
  p.out.state[2 * n + step] = count;
  p.out.stats[step] = usable ? least : nan;
  p.out.stats[n + step] = usable ? product_of_logs(logs) : nan;
  p.out.stats[2 * n + step] = usable ? mean_of_scores(sum, count) : nan;
  p.out.stats[3 * n + step] = last;
}

// Higher scores, then lower indices; NaN behind everything.
__device__ __forceinline__ bool is_better(float a, int64_t i, float b, int64_t j) {
  if (a != a || b != b) return (a != a) == (b != b) ? i < j : b != b;
  return a != b ? a > b : i < j;
}

// The last group that begins at or before score i, which is in a group.
__device__ __forceinline__ int64_t group_of(const SelectTopkParams& p, int64_t i) {
  int64_t group = 0, above = p.num_groups;
  while (above - group > 1) {
    const int64_t middle = (group + above) / 2;
    (p.group_indptr[middle] <= i ? group : above) = middle;
  }
  return group;
}

// Where a group begins, never outside the scores.
__device__ __forceinline__ int64_t begin_of(const SelectTopkParams& p, int64_t group) {
  const int64_t begin = p.group_indptr[group];
  return begin < 0 ? 0 : begin < p.num_scores ? begin : p.num_scores;
}

// Puts those of the scores first .. first + kPathThreads - 1 that are among the best k of their groups into
// their places. All kPathThreads threads call it; rivals: as many floats of shared memory.
__device__ __forceinline__ void select_scores(const SelectTopkParams& p, int64_t first, float* rivals) {
  const int64_t begin = max(first, begin_of(p, 0));
  const int64_t end = min(first + kPathThreads, begin_of(p, p.num_groups));
  if (begin >= end) return;  // none of these scores is in a group
  const int64_t i = first + threadIdx.x;
  const bool mine = i >= begin && i < end;
  const int64_t group = mine ? group_of(p, i) : -1;
  const int64_t group_begin = mine ? begin_of(p, group) : 0, group_end = mine ? begin_of(p, group + 1) : 0;
  const float score = mine ? ptx::load_l2_4(p.scores + i) : 0.0f;
  const int64_t last = begin_of(p, group_of(p, end - 1) + 1);
  int64_t rank = 0;
  for (int64_t from = begin_of(p, group_of(p, begin)); from < last; from += kPathThreads) {
    __syncthreads();
    if (from + threadIdx.x < last) rivals[threadIdx.x] = ptx::load_l2_4(p.scores + from + threadIdx.x);
    __syncthreads();
    const int64_t to = min(group_end, from + kPathThreads);
    for (int64_t j = max(group_begin, from); j < to; ++j) rank += is_better(rivals[j - from], j, score, i);
  }
  if (mine && rank < p.k) p.selected[group * p.k + rank] = static_cast<int32_t>(i);
}

// Writes -1 to one of the [num_groups, k] places if its group is too small for it.
__device__ __forceinline__ void fill_place(const SelectTopkParams& p, int64_t place) {
  const int64_t group = place / p.k;
  if (place - group * p.k >= begin_of(p, group + 1) - begin_of(p, group)) p.selected[place] = -1;
}

__global__ void __launch_bounds__(kPathThreads) aggregate_steps_kernel(const __grid_constant__ AggregateStepsParams p) {
  const int64_t step = static_cast<int64_t>(blockIdx.x) * kPathThreads + threadIdx.x;
  if (step < p.out.count) aggregate_step(p, step);
}

__global__ void __launch_bounds__(kPathThreads) select_topk_kernel(const __grid_constant__ SelectTopkParams p) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kPathThreads;
  select_scores(p, first, reinterpret_cast<float*>(dynamic_smem()));
  if (first + threadIdx.x < p.num_groups * p.k) fill_place(p, first + threadIdx.x);
}

}  // namespace ttc
