// score_steps and score_round on a GPU, in one launch.
//
//   grid: row tiles x ranges of outputs
//
//     16 or 64 rows of hidden states ─┐  warp w takes columns 64 (w + 8 i) .. + 63 of both, from global
//                                     ├─ memory into the fragments of its products: no shared memory
//     16 or 32 rows of weights x gain ┘
//                 │ sums of the 8 warps, added up in a fixed order
//                 ▼
//     x 1 / rms, + bias ─> relu, second layer | sums of a softmax ─> shares (cuda_params.h)
//                 last block of a segment: its shares in order ─> last of the row tile: scores
//                 last of all, in a round: aggregates, then the best k (step_paths.cuh)
//
// What a row meets, and in which order, depends on the head and on no other row, nor on the tile's size. The
// norm's gain goes to the weights and not to the rows, since a row is met by many blocks and a weight by one.
#pragma once

#include "common/arrive.cuh"
#include "step_score/shares.cuh"
#include "step_score/step_paths.cuh"

namespace ttc {

constexpr int kScoreThreads = 256;
constexpr int kScoreWarps = kScoreThreads / 32;
static_assert(kScoreThreads == kPathThreads);

// T: the type of hidden states and weights; kRowTiles x 16 rows and kColumnTiles x 8 outputs to a block.
template <class T, int kRowTiles, int kColumnTiles>
struct ScoreTile {
  static constexpr int kRows = 16 * kRowTiles;
  static constexpr int kColumns = 8 * kColumnTiles;
  static constexpr int kSums = kRowTiles * kColumnTiles * 4 + kRowTiles * 2;  // of a lane
  // Weights of so many times 32 columns are on their way, and rows of 32, while 32 columns are multiplied: what the
  // registers hold.
  static constexpr int kAhead = kRowTiles == 1 && kPieces<T> < 3 ? 2 : 1;
  static constexpr int kBlocks = kRowTiles == 1 && kPieces<T> < 3 ? 2 : 1;  // on a multiprocessor

  struct Shared {
    float halves[kScoreWarps / 2][kSums][32];  // of half of the warps on their way to the others
    float dots[kRows][kColumns + 1];
    float scale[kRows];
    Share shares[kColumnTiles][kRows];
    int32_t is_last;
  };
};

// 32 columns of a warp's rows and weights: lane 4 g + c holds columns 8 c .. 8 c + 7 of rows g and g + 8 of each
// row tile and of weight g of each column tile. They are the k of two products of 16 columns; in which order
// they count does not matter, as it is the same on both sides.
template <class T, int kRowTiles>
struct ScoreRows {
  Eight<T> x[kRowTiles][2];
  alignas(16) float gain[8];
};
template <class T, int kColumnTiles>
struct ScoreWeights {
  Eight<T> w[kColumnTiles];
};

template <int kRowTiles, int kColumnTiles>
struct ScoreSums {
  float dots[kRowTiles][kColumnTiles][4] = {};
  float squares[kRowTiles][2] = {};
};

struct ScoreFormats {
  RowFormat hidden, weights;
  bool gain_aligned;
};

// What a lane reads: its rows of hidden states, -1 for none, and its first weights; the weights of the next column
// tile are 8 rows on.
template <int kRowTiles>
struct ScoreSources {
  int row[kRowTiles][2];
  const char* weights;
  int weights_left;  // rows from there to the end
};

// Addresses are made anew at every step: held, they would take the registers of what is loaded.
template <class T, int kRowTiles, int kColumnTiles>
__device__ __forceinline__ void load_weights(const ScoreStepsParams& p, ScoreFormats formats,
                                             const ScoreSources<kRowTiles>& from, int column,
                                             ScoreWeights<T, kColumnTiles>& step) {
  const int k = ptx::unhoisted(column);
  const int64_t tile_bytes = 8 * p.width * (formats.weights.dtype == Dtype::kFloat32 ? 4 : 2);
#pragma unroll
  for (int n = 0; n < kColumnTiles; ++n) {
    const char* weights = 8 * n < from.weights_left ? from.weights + n * tile_bytes : nullptr;
    step.w[n] = load_eight<T>(weights, k, static_cast<int>(p.width), formats.weights);
  }
}

template <class T, int kRowTiles>
__device__ __forceinline__ void load_rows(const ScoreStepsParams& p, ScoreFormats formats,
                                          const ScoreSources<kRowTiles>& from, int column,
                                          ScoreRows<T, kRowTiles>& step) {
  const int width = static_cast<int>(p.width), k = ptx::unhoisted(column);
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = ptx::unhoisted(from.row[m][half]);
      const char* x = row >= 0 ? p.hidden + row * p.hidden_stride : nullptr;
      step.x[m][half] = load_eight<T>(x, k, width, formats.hidden);
    }
  }
  if (p.norm_weight == nullptr) return;
  float4* gain = reinterpret_cast<float4*>(step.gain);
  gain[0] = gain[1] = {0.0f, 0.0f, 0.0f, 0.0f};  // a product of zero and what was in the register may be NaN
  if (!formats.gain_aligned) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (k + i < width) step.gain[i] = p.norm_weight[k + i];
    }
  } else if (k < width) {
    gain[0] = __ldg(reinterpret_cast<const float4*>(p.norm_weight + k));
    gain[1] = __ldg(reinterpret_cast<const float4*>(p.norm_weight + k + 4));
  }
}

// Adds a step's products. The tensor cores round sums of products towards zero, so few are added up there;
// the rest is rounded to nearest. Products of pieces that are too small for fp32 are left out.
template <class T, int kRowTiles, int kColumnTiles>
__device__ __forceinline__ void add_step(const ScoreRows<T, kRowTiles>& rows,
                                         const ScoreWeights<T, kColumnTiles>& weights, bool has_gain,
                                         ScoreSums<kRowTiles, kColumnTiles>& sums) {
  uint32_t x[kRowTiles][2][kPieces<T>][4];
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      split(rows.x[m][half], x[m][half]);
      if (!has_gain) continue;
      float v[8];
      to_floats(rows.x[m][half], v);
#pragma unroll
      for (int i = 0; i < 8; ++i) sums.squares[m][half] = fmaf(v[i], v[i], sums.squares[m][half]);
    }
  }
#pragma unroll
  for (int n = 0; n < kColumnTiles; ++n) {
    uint32_t w[kMaxPieces][4] = {};
    if (has_gain) {
      float v[8];
      to_floats(weights.w[n], v);
#pragma unroll
      for (int i = 0; i < 8; ++i) v[i] *= rows.gain[i];
      split(v, w);
    } else {
      split(weights.w[n], reinterpret_cast<uint32_t(&)[kPieces<T>][4]>(w));
    }
    float dots[kRowTiles][4] = {};
#pragma unroll
    for (int order = kMaxPieces - 1; order >= 0; --order) {  // the small products first
#pragma unroll
      for (int i = kPieces<T> - 1; i >= 0; --i) {
        const int j = order - i;
        if (j < 0 || (j >= kPieces<T> && !has_gain)) continue;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int m = 0; m < kRowTiles; ++m) {
            const uint32_t a[4] = {x[m][0][i][2 * half], x[m][1][i][2 * half], x[m][0][i][2 * half + 1],
                                   x[m][1][i][2 * half + 1]};
            const uint32_t b[2] = {w[j][2 * half], w[j][2 * half + 1]};
            ptx::mma_m16n8k16<__nv_bfloat16>(dots[m], a, b);
          }
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums.dots[m][n][i] += dots[m][i];
    }
  }
}

// All columns that this warp takes.
template <class T, int kRowTiles, int kColumnTiles>
__device__ __forceinline__ ScoreSums<kRowTiles, kColumnTiles> dots_of_warp(const ScoreStepsParams& p,
                                                                           ScoreFormats formats,
                                                                           const ScoreSources<kRowTiles>& from) {
  constexpr int kAhead = ScoreTile<T, kRowTiles, kColumnTiles>::kAhead;
  const int mine = 8 * (threadIdx.x % 4), width = static_cast<int>(p.width);
  const bool has_gain = p.norm_weight != nullptr;
  // Two steps read lines of 128 bytes of 16-bit numbers; then come the columns of the other warps.
  const auto next = [](int k) { return k & 32 ? k + 64 * kScoreWarps - 32 : k + 32; };
  int k = 64 * (threadIdx.x / 32) + mine, weights_k = k;
  ScoreSums<kRowTiles, kColumnTiles> sums;
  ScoreRows<T, kRowTiles> next_rows;
  ScoreWeights<T, kColumnTiles> next_weights[kAhead];
  load_rows(p, formats, from, k, next_rows);
#pragma unroll
  for (int i = 0; i < kAhead; ++i, weights_k = next(weights_k)) {
    load_weights(p, formats, from, weights_k, next_weights[i]);
  }
#pragma unroll 1
  for (; k - mine < width; k = next(k), weights_k = next(weights_k)) {
    const ScoreRows<T, kRowTiles> rows = next_rows;
    const ScoreWeights<T, kColumnTiles> weights = next_weights[0];
    if constexpr (kAhead == 2) next_weights[0] = next_weights[1];
    load_weights(p, formats, from, weights_k, next_weights[kAhead - 1]);
    load_rows(p, formats, from, next(k), next_rows);
    add_step(rows, weights, has_gain, sums);
  }
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float& squares = sums.squares[m][half];
      squares += __shfl_xor_sync(0xffffffffu, squares, 1);
      squares += __shfl_xor_sync(0xffffffffu, squares, 2);
    }
  }
  return sums;
}

// Adds the sums of all warps: pairs first, then pairs of pairs. Warp 0 has the result.
template <class Tile, int kRowTiles, int kColumnTiles>
__device__ __forceinline__ void add_warps(ScoreSums<kRowTiles, kColumnTiles>& sums, typename Tile::Shared& shared) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const auto each = [&](const auto& apply) {
    int place = 0;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) apply(sums.dots[m][n][i], place++);
      }
      apply(sums.squares[m][0], place++);
      apply(sums.squares[m][1], place++);
    }
  };
#pragma unroll
  for (int half = kScoreWarps / 2; half > 0; half /= 2) {
    __syncthreads();
    if (warp >= half && warp < 2 * half) {
      each([&](float& sum, int place) { shared.halves[warp - half][place][lane] = sum; });
    }
    __syncthreads();
    if (warp < half) {
      each([&](float& sum, int place) { sum += shared.halves[warp][place][lane]; });
    }
  }
}

// What the last blocks do: a segment's shares, a row tile's segments, a round. is_last, scratch: shared memory, of
// kScoreThreads floats the latter.
template <int kRows>
__device__ __forceinline__ void finish(const ScoreCudaParams& p, int tile_shares, int32_t& is_last, float* scratch) {
  const int64_t num_steps = p.score.num_steps, step = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.x;
  const bool mine = threadIdx.x < kRows && step < num_steps;
  const int64_t segment_blocks = kSegmentShares / tile_shares;
  const int64_t segments = (p.num_shares + kSegmentShares - 1) / kSegmentShares;
  const int64_t segment = blockIdx.y / segment_blocks;
  const int64_t expected = min(segment_blocks, gridDim.y - segment * segment_blocks);
  int32_t* arrivals = p.arrivals + blockIdx.x * (segments + 1);
  if (!last_to_arrive(arrivals + segment, static_cast<int32_t>(expected), &is_last)) return;
  Share share;
  if (mine) {
    share = sum_shares(p, segment * kSegmentShares, min((segment + 1) * kSegmentShares, p.num_shares), step);
  }
  if (segments > 1) {
    if (mine) store_share(p, p.num_shares + segment, step, share);
    if (!last_to_arrive(arrivals + segments, static_cast<int32_t>(segments), &is_last)) return;
    if (mine) share = sum_shares(p, p.num_shares, p.num_shares + segments, step);
  }
  if (mine) {
    const int row = p.score.rows[step];
    const bool exists = row >= 0 && row < p.score.num_tokens;
    p.score.scores[step] = exists ? score_of_share(p.score, share) : __uint_as_float(0x7fc00000u);
  }
  if (!p.is_round) return;
  if (!last_to_arrive(p.arrivals + gridDim.x * (segments + 1), static_cast<int32_t>(gridDim.x), &is_last)) return;
  for (int64_t i = threadIdx.x; i < num_steps; i += kScoreThreads) aggregate_step(p.aggregate, i);
  __syncthreads();
  for (int64_t i = 0; i < num_steps; i += kScoreThreads) select_scores(p.select, i, scratch);
  for (int64_t i = threadIdx.x; i < p.select.num_groups * p.select.k; i += kScoreThreads) fill_place(p.select, i);
}

template <class T, int kRowTiles, int kColumnTiles>
__global__ void __launch_bounds__(kScoreThreads, ScoreTile<T, kRowTiles, kColumnTiles>::kBlocks)
    score_steps_kernel(const __grid_constant__ ScoreCudaParams p, const ScoreFormats formats) {
  using Tile = ScoreTile<T, kRowTiles, kColumnTiles>;
  auto& shared = *reinterpret_cast<typename Tile::Shared*>(dynamic_smem());
  const ScoreStepsParams& score = p.score;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * Tile::kRows;

  ScoreSources<kRowTiles> from;
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t step = first_row + 16 * m + 8 * half + lane / 4;
      const int row = step < score.num_steps ? score.rows[step] : -1;
      from.row[m][half] = row < score.num_tokens ? row : -1;
    }
  }

  // What follows the products: thread (row, part of the tile).
  const int row = threadIdx.x % Tile::kRows, part = threadIdx.x / Tile::kRows;
  const int64_t step = first_row + row;
  const int64_t share_tiles = max(int64_t{1}, p.share_groups / kColumnTiles);
  const int tile_shares = static_cast<int>(max(int64_t{1}, kColumnTiles / p.share_groups));
  Share share = no_share(score.kind);
  for (int64_t tile = blockIdx.y * share_tiles; tile < (blockIdx.y + 1) * share_tiles; ++tile) {
    const int64_t first = tile * Tile::kColumns;
    if (first >= score.layers[0].rows && tile > 0) break;
    const int64_t output = first + lane / 4, left = score.layers[0].rows - output;
    from.weights = static_cast<const char*>(score.layers[0].data) +
                   output * score.width * (formats.weights.dtype == Dtype::kFloat32 ? 4 : 2);
    from.weights_left = static_cast<int>(max(int64_t{0}, min(left, int64_t{Tile::kColumns})));
    auto sums = dots_of_warp<T, kRowTiles, kColumnTiles>(score, formats, from);
    add_warps<Tile>(sums, shared);
    if (warp == 0) {
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        const int at = 16 * m + lane / 4;
#pragma unroll
        for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) shared.dots[at + i / 2 * 8][8 * n + lane % 4 * 2 + i % 2] = sums.dots[m][n][i];
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float mean = sums.squares[m][half] / static_cast<float>(score.width);
          const float scale = score.norm_weight == nullptr ? 1.0f : 1.0f / sqrtf(mean + score.norm_eps);
          if (lane % 4 == 0) shared.scale[at + 8 * half] = scale;
        }
      }
    }
    __syncthreads();
    if (part < kColumnTiles) {
      shared.shares[part][row] =
          share_of_group(score, shared.dots[row] + 8 * part, shared.scale[row], first + 8 * part);
    }
    __syncthreads();
    if (part < tile_shares) {
      const int groups = kColumnTiles / tile_shares;
      for (int i = 0; i < groups; ++i) share = add_share(score.kind, share, shared.shares[part * groups + i][row]);
    }
  }
  const int64_t place = static_cast<int64_t>(blockIdx.y) * tile_shares + part;
  if (part < tile_shares && place < p.num_shares && step < score.num_steps) store_share(p, place, step, share);

  finish<Tile::kRows>(p, tile_shares, shared.is_last, &shared.halves[0][0][0]);
}

}  // namespace ttc
