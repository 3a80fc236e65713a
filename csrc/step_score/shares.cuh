// From products of rows and weights to scores: what a group of outputs contributes, and how it adds up.
#pragma once

#include <cmath>

#include "step_score/cuda_params.h"
#include "step_score/pieces.cuh"
#include "step_score/score_math.h"

namespace ttc {

// Softmax: the largest logit, the sum of exp(logit - largest), and of those that are good. Two logits: sums of
// their products. Others: the first outputs.
struct Share {
  float a, b, c;
};

__device__ __forceinline__ Share no_share(HeadKind kind) {
  return {kind == HeadKind::kSoftmax ? -INFINITY : 0.0f, 0.0f, 0.0f};
}

// Adds the share of the outputs that follow.
__device__ __forceinline__ Share add_share(HeadKind kind, Share x, Share y) {
  if (kind != HeadKind::kSoftmax) return {x.a + y.a, x.b + y.b, 0.0f};
  const float top = fmaxf(x.a, y.a);
  const float x_part = exp_negative(x.a - top), y_part = exp_negative(y.a - top);
  return {top, x.b * x_part + y.b * y_part, x.c * x_part + y.c * y_part};
}

// The share of outputs n .. n + 7. dots: the products of a row and their weights; scale: 1 / rms of the row.
__device__ __forceinline__ Share share_of_group(const ScoreStepsParams& p, const float* dots, float scale, int64_t n) {
  const int64_t count = min(kGroupOutputs, p.layers[0].rows - n);
  float z[kGroupOutputs];
#pragma unroll
  for (int i = 0; i < kGroupOutputs; ++i) {
    z[i] = dots[i] * scale;
    if (i < count && p.biases[0] != nullptr) z[i] += p.biases[0][n + i];
  }
  Share share = no_share(p.kind);
  if (p.kind == HeadKind::kTwoLogit) {
    const Matrix& second = p.layers[1];
#pragma unroll
    for (int i = 0; i < kGroupOutputs; ++i) {
      if (i >= count) break;
      const float inner = z[i] < 0.0f ? 0.0f : z[i];  // written so that NaN passes
      share.a += inner * load_float(second.dtype, second.data, n + i);
      share.b += inner * load_float(second.dtype, second.data, second.cols + n + i);
    }
  } else if (p.kind == HeadKind::kSoftmax) {
#pragma unroll
    for (int i = 0; i < kGroupOutputs; ++i) {
      if (i < count && !(z[i] <= share.a)) share.a = z[i];  // NaN stays
    }
#pragma unroll
    for (int i = 0; i < kGroupOutputs; ++i) {
      if (i >= count) break;
      const float e = exp_negative(z[i] - share.a);
      share.b += e;
      share.c += e * p.good[n + i];
    }
  } else if (n == 0) {
    share.a = z[0];
    share.b = count > 1 ? z[1] : 0.0f;
  }
  return share;
}

__device__ __forceinline__ float score_of_share(const ScoreStepsParams& p, Share all) {
  switch (p.kind) {
    case HeadKind::kTwoLogit: return sigmoid((all.b + p.biases[1][1]) - (all.a + p.biases[1][0]));
    case HeadKind::kSoftmax: return all.c / all.b;
    case HeadKind::kTokenPair: return sigmoid(all.a - all.b);
    case HeadKind::kValue: return sigmoid(all.a);
    case HeadKind::kRaw: return all.a;
  }
  return all.a;
}

__device__ __forceinline__ void store_share(const ScoreCudaParams& p, int64_t place, int64_t step, Share share) {
  float* to = p.shares + (place * p.score.num_steps + step) * kShareFloats;
  to[0] = share.a;
  to[1] = share.b;
  to[2] = share.c;
}

// Adds up the shares at places [begin, end) of a step, in order. They come from other blocks.
__device__ __forceinline__ Share sum_shares(const ScoreCudaParams& p, int64_t begin, int64_t end, int64_t step) {
  Share sum = no_share(p.score.kind);
#pragma unroll 8
  for (int64_t place = begin; place < end; ++place) {
    const float* from = p.shares + (place * p.score.num_steps + step) * kShareFloats;
    const Share share = {ptx::load_l2_4(from), ptx::load_l2_4(from + 1), ptx::load_l2_4(from + 2)};
    sum = add_share(p.score.kind, sum, share);
  }
  return sum;
}

}  // namespace ttc
