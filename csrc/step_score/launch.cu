#include "step_score/launch.h"

#include <algorithm>

#include "common/cuda_launch.cuh"
#include "step_score/score_steps.cuh"

namespace ttc {

namespace {

int64_t divided(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How shares are cut: two groups each, more for a head of many outputs. The head alone decides.
int64_t share_groups(const ScoreStepsParams& p) {
  const int64_t groups = divided(p.layers[0].rows, kGroupOutputs);
  return groups <= 2 * kMaxShares ? 2 : 4 * divided(groups, 4 * kMaxShares);
}

int64_t num_shares(const ScoreStepsParams& p) {
  return std::max<int64_t>(1, divided(p.layers[0].rows, kGroupOutputs * share_groups(p)));
}

bool aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

ScoreFormats formats_of(const ScoreStepsParams& p) {
  const bool whole = p.width % 8 == 0;
  return {{p.hidden_dtype, whole && aligned(p.hidden) && p.hidden_stride % 16 == 0},
          {p.layers[0].dtype, whole && aligned(p.layers[0].data)},
          whole && aligned(p.norm_weight)};
}

template <class T, int kRowTiles, int kColumnTiles>
cudaError_t launch(const ScoreCudaParams& p, const ScoreFormats& formats, cudaStream_t stream) {
  using Tile = ScoreTile<T, kRowTiles, kColumnTiles>;
  static_assert(sizeof(typename Tile::Shared) <= 48 << 10);
  const int64_t tile_shares = std::max<int64_t>(1, kColumnTiles / p.share_groups);
  const dim3 grid(static_cast<unsigned>(divided(p.score.num_steps, Tile::kRows)),
                  static_cast<unsigned>(divided(p.num_shares, tile_shares)));
  if (grid.x > 1 || grid.y > 1) {
    const int64_t counters = grid.x * (divided(p.num_shares, kSegmentShares) + 1) + 1;
    const auto status = cudaMemsetAsync(p.arrivals, 0, counters * sizeof(int32_t), stream);
    if (status != cudaSuccess) return status;
  }
  return launch_kernel(score_steps_kernel<T, kRowTiles, kColumnTiles>, grid, dim3(kScoreThreads),
                       sizeof(typename Tile::Shared), stream, p, formats);
}

cudaError_t launch(const ScoreCudaParams& p, cudaStream_t stream) {
  if (p.score.width > INT32_MAX / 2) return cudaErrorInvalidValue;  // columns are counted in 32 bits
  const ScoreFormats formats = formats_of(p.score);
  const bool plain = formats.hidden.dtype == formats.weights.dtype && formats.hidden.aligned &&
                     formats.weights.aligned && formats.gain_aligned;
  // Where few rows meet few outputs, more blocks count for more than fewer reads of the weights.
  const bool many = p.score.num_steps > 16 && p.score.layers[0].rows > 16;
  if (plain && formats.hidden.dtype == Dtype::kBFloat16) {
    return many ? launch<__nv_bfloat16, 4, 4>(p, formats, stream) : launch<__nv_bfloat16, 1, 2>(p, formats, stream);
  }
  if (plain && formats.hidden.dtype == Dtype::kFloat16) {
    return many ? launch<__half, 4, 2>(p, formats, stream) : launch<__half, 1, 2>(p, formats, stream);
  }
  return launch<AnyFloat, 1, 2>(p, formats, stream);
}

ScoreCudaParams params_of(const ScoreStepsParams& score, float* floats, int32_t* ints) {
  ScoreCudaParams p{};
  p.score = score;
  p.share_groups = share_groups(score);
  p.num_shares = num_shares(score);
  p.shares = floats;
  p.arrivals = ints;
  return p;
}

}  // namespace

ScoreWorkspace score_workspace(const ScoreStepsParams& p) {
  const int64_t shares = num_shares(p), segments = divided(shares, kSegmentShares);
  return {(shares + segments) * p.num_steps * kShareFloats, divided(p.num_steps, 16) * (segments + 1) + 1};
}

cudaError_t score_steps_cuda(const ScoreStepsParams& params, float* floats, int32_t* ints, cudaStream_t stream) {
  return params.num_steps == 0 ? cudaSuccess : launch(params_of(params, floats, ints), stream);
}

cudaError_t score_round_cuda(const ScoreStepsParams& score, const AggregateStepsParams& aggregate,
                             const SelectTopkParams& select, float* floats, int32_t* ints, cudaStream_t stream) {
  if (score.num_steps == 0) return select_topk_cuda(select, stream);
  ScoreCudaParams p = params_of(score, floats, ints);
  p.is_round = true;
  p.aggregate = aggregate;
  p.select = select;
  return launch(p, stream);
}

cudaError_t aggregate_steps_cuda(const AggregateStepsParams& p, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(divided(p.out.count, kPathThreads)));
  return launch_kernel(aggregate_steps_kernel, grid, dim3(kPathThreads), 0, stream, p);
}

cudaError_t select_topk_cuda(const SelectTopkParams& p, cudaStream_t stream) {
  const int64_t threads = p.num_groups == 0 ? 0 : std::max(p.num_scores, p.num_groups * p.k);
  const dim3 grid(static_cast<unsigned>(divided(threads, kPathThreads)));
  return launch_kernel(select_topk_kernel, grid, dim3(kPathThreads), kPathThreads * sizeof(float), stream, p);
}

}  // namespace ttc
