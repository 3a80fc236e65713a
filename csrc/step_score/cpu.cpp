#include <algorithm>
#include <cmath>
#include <vector>

#include "step_score/step_score.h"

namespace ttc {

namespace {

// A dot product is 16 interleaved partial sums, added up pairwise at the end. This order is part of
// the result: it is the same for every block shape below, so that the score of a row does not
// depend on which rows are scored beside it.
constexpr int64_t kLanes = 16;
constexpr int64_t kWeightRows = 4;  // widened to fp32 together

// y[r][w] = x[r] . weights[w] for R rows and W weight rows at once; stride in floats.
template <int R, int W, bool kFma>
TTC_ALWAYS_INLINE void dot_block(const float* x, int64_t x_stride, const float* weights, int64_t n,
                                 float (*y)[4]) {
  float sums[R][W][kLanes] = {};
  for (int64_t i = 0; i < n; i += kLanes) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int w = 0; w < W; ++w) {
        for (int64_t j = 0; j < kLanes; ++j) {
          const float a = x[r * x_stride + i + j], b = weights[w * n + i + j];
          sums[r][w][j] = kFma ? __builtin_fmaf(a, b, sums[r][w][j]) : sums[r][w][j] + a * b;
        }
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int w = 0; w < W; ++w) {
      for (int64_t half = kLanes / 2; half > 0; half /= 2) {
        for (int64_t j = 0; j < half; ++j) sums[r][w][j] += sums[r][w][j + half];
      }
      y[r][w] = sums[r][w][0];
    }
  }
}

template <int R, int W, bool kFma>
TTC_ALWAYS_INLINE void dot_rows(const float* x, int64_t num_rows, const float* weights, int64_t n,
                                float* y, int64_t y_stride) {
  float block[4][4];
  int64_t r = 0;
  for (; r + R <= num_rows; r += R) {
    dot_block<R, W, kFma>(x + r * n, n, weights, n, block);
    for (int i = 0; i < R; ++i) {
      for (int w = 0; w < W; ++w) y[(r + i) * y_stride + w] = block[i][w];
    }
  }
  for (; r < num_rows; ++r) {
    dot_block<1, W, kFma>(x + r * n, n, weights, n, block);
    for (int w = 0; w < W; ++w) y[r * y_stride + w] = block[0][w];
  }
}

struct DotsArgs {
  const float* x;  // [num_rows, n]
  int64_t num_rows;
  const float* weights;  // [num_weights, n], at most kWeightRows
  int64_t num_weights;
  int64_t n;  // a multiple of kLanes
  float* y;   // y[r * y_stride + w] = x[r] . weights[w]
  int64_t y_stride;
};

// kBlock x kBlock dot products at a time: as many as the registers hold.
template <int kBlock, bool kFma>
TTC_ALWAYS_INLINE void dots(const DotsArgs& a) {
  int64_t w = 0;
  for (; w + kBlock <= a.num_weights; w += kBlock) {
    dot_rows<kBlock, kBlock, kFma>(a.x, a.num_rows, a.weights + w * a.n, a.n, a.y + w, a.y_stride);
  }
  for (; w < a.num_weights; ++w) {
    dot_rows<kBlock, 1, kFma>(a.x, a.num_rows, a.weights + w * a.n, a.n, a.y + w, a.y_stride);
  }
}

#if TTC_X86
TTC_TARGET_AVX2 void dots_avx2(const DotsArgs& args) { dots<2, true>(args); }
TTC_TARGET_AVX512 void dots_avx512(const DotsArgs& args) { dots<4, true>(args); }
#endif

void dispatch_dots(const DotsArgs& args) {
#if TTC_X86
  if (cpu_isa() == Isa::kAvx512) return dots_avx512(args);
  if (cpu_isa() == Isa::kAvx2) return dots_avx2(args);
#endif
  dots<1, false>(args);
}

int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// Rows of fp32, each padded with zeros to a multiple of kLanes.
struct Rows {
  Rows(int64_t num_rows, int64_t width)
      : count(num_rows), stride(padded(width)), values(num_rows * stride) {}
  float* operator[](int64_t row) { return values.data() + row * stride; }
  int64_t count;
  int64_t stride;
  std::vector<float> values;
};

Rows gather(const ScoreStepsParams& p) {
  Rows x(p.num_steps, p.width);
  for (int64_t s = 0; s < p.num_steps; ++s) {
    widen(p.hidden_dtype, p.hidden + p.rows[s] * p.hidden_stride, p.width, x[s]);
    if (p.norm_weight == nullptr) continue;
    double squares = 0.0;
    for (int64_t i = 0; i < p.width; ++i) squares += static_cast<double>(x[s][i]) * x[s][i];
    const float scale = static_cast<float>(1.0 / std::sqrt(squares / p.width + p.norm_eps));
    for (int64_t i = 0; i < p.width; ++i) x[s][i] *= scale * p.norm_weight[i];
  }
  return x;
}

// x W^T + b. Every weight row is read and widened once, then meets all rows of x.
Rows linear(Rows& x, const Matrix& weight, const float* bias, ParallelFor parallel_for) {
  Rows y(x.count, weight.rows);
  const int64_t blocks = (weight.rows + kWeightRows - 1) / kWeightRows;
  const int64_t block_work = kWeightRows * x.stride * (x.count + 4);
  const int64_t grain = 1 + (1 << 18) / std::max<int64_t>(1, block_work);
  parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
    Rows w(kWeightRows, weight.cols);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = kWeightRows * block;
      const int64_t n = std::min(kWeightRows, weight.rows - first);
      for (int64_t i = 0; i < n; ++i) {
        const int64_t at = (first + i) * weight.cols * dtype_bytes(weight.dtype);
        widen(weight.dtype, static_cast<const char*>(weight.data) + at, weight.cols, w[i]);
      }
      dispatch_dots({x[0], x.count, w[0], n, x.stride, y[0] + first, y.stride});
    }
  });
  if (bias != nullptr) {
    for (int64_t r = 0; r < y.count; ++r) {
      for (int64_t i = 0; i < weight.rows; ++i) y[r][i] += bias[i];
    }
  }
  return y;
}

float sigmoid(float x) {
  // exp of a negative number only: cannot overflow, and keeps small scores exact.
  const float e = std::exp(-std::fabs(x));
  return (x >= 0.0f ? 1.0f : e) / (1.0f + e);
}

}  // namespace

void score_steps(const ScoreStepsParams& p, ParallelFor parallel_for) {
  if (p.num_steps == 0) return;
  Rows x = gather(p);
  Rows logits = linear(x, p.layers[0], p.biases[0], parallel_for);
  if (p.kind == HeadKind::kTwoLogit) {
    // Written so that NaN passes.
    for (float& value : logits.values) value = value < 0.0f ? 0.0f : value;
    logits = linear(logits, p.layers[1], p.biases[1], parallel_for);
  }
  for (int64_t s = 0; s < p.num_steps; ++s) {
    const float* z = logits[s];
    // softmax over two is a sigmoid of their difference
    switch (p.kind) {
      case HeadKind::kTwoLogit: p.scores[s] = sigmoid(z[1] - z[0]); break;
      case HeadKind::kValue: p.scores[s] = sigmoid(z[0]); break;
      case HeadKind::kTokenPair: p.scores[s] = sigmoid(z[0] - z[1]); break;
    }
  }
}

}  // namespace ttc
