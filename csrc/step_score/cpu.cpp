#include <algorithm>
#include <cmath>
#include <vector>

#include "step_score/score_math.h"
#include "step_score/step_score.h"

namespace ttc {

namespace {

// A dot product is 16 interleaved partial sums, added up pairwise at the end. This order is part of
// the result: it is the same for every block shape below, so that the score of a row does not
// depend on which rows are scored beside it.
constexpr int64_t kLanes = 16;
constexpr int64_t kPanel = 16;     // weight rows widened to fp32 together: they fit a level-2 cache
constexpr int64_t kFewOutputs = 16;  // heads up to here go row by row, with no copy of the rows
constexpr int64_t kRowBlock = 4;
// Outputs of a softmax are summed up in chunks of this size, which are then added in order.
constexpr int64_t kSoftmaxChunk = 1024;

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

struct DotsArgs {
  const float* x;  // [num_rows, n]
  int64_t num_rows;
  const float* weights;  // [num_weights, n]
  int64_t num_weights;
  int64_t n;  // a multiple of kLanes
  float* y;   // y[r * y_stride + w] = x[r] . weights[w]
  int64_t y_stride;
};

template <int R, int W, bool kFma>
TTC_ALWAYS_INLINE void dot_weights(const DotsArgs& a, int64_t r) {
  float block[4][4];
  int64_t w = 0;
  for (; w + W <= a.num_weights; w += W) {
    dot_block<R, W, kFma>(a.x + r * a.n, a.n, a.weights + w * a.n, a.n, block);
    for (int i = 0; i < R; ++i) {
      for (int j = 0; j < W; ++j) a.y[(r + i) * a.y_stride + w + j] = block[i][j];
    }
  }
  for (; w < a.num_weights; ++w) {
    dot_block<R, 1, kFma>(a.x + r * a.n, a.n, a.weights + w * a.n, a.n, block);
    for (int i = 0; i < R; ++i) a.y[(r + i) * a.y_stride + w] = block[i][0];
  }
}

// kBlock x kBlock dot products at a time: as many as the registers hold.
template <int kBlock, bool kFma>
TTC_ALWAYS_INLINE void dots(const DotsArgs& a) {
  int64_t r = 0;
  for (; r + kBlock <= a.num_rows; r += kBlock) dot_weights<kBlock, kBlock, kFma>(a, r);
  for (; r < a.num_rows; ++r) dot_weights<1, kBlock, kFma>(a, r);
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

// x *= gain / rms(x). Sixteen sums at a time, so that the loop is not one chain of additions.
TTC_ALWAYS_INLINE void normalise(float* x, const float* gain, int64_t width, float eps) {
  double lanes[kLanes] = {};
  for (int64_t i = 0; i < padded(width); i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) lanes[j] += static_cast<double>(x[i + j]) * x[i + j];
  }
  double sum = 0.0;
  for (const double lane : lanes) sum += lane;
  const float scale = static_cast<float>(1.0 / std::sqrt(sum / static_cast<double>(width) + eps));
  for (int64_t i = 0; i < width; ++i) x[i] *= scale * gain[i];
}

#if TTC_X86
TTC_TARGET_AVX2 void normalise_avx2(float* x, const float* gain, int64_t width, float eps) {
  normalise(x, gain, width, eps);
}
TTC_TARGET_AVX512 void normalise_avx512(float* x, const float* gain, int64_t width, float eps) {
  normalise(x, gain, width, eps);
}
#endif

// The hidden state of step s, normalised; x has room for the padded width and zeros at its end.
void gather(const ScoreStepsParams& p, int64_t s, float* x) {
  widen(p.hidden_dtype, p.hidden + p.rows[s] * p.hidden_stride, p.width, x);
  if (p.norm_weight == nullptr) return;
#if TTC_X86
  if (cpu_isa() == Isa::kAvx512) return normalise_avx512(x, p.norm_weight, p.width, p.norm_eps);
  if (cpu_isa() == Isa::kAvx2) return normalise_avx2(x, p.norm_weight, p.width, p.norm_eps);
#endif
  normalise(x, p.norm_weight, p.width, p.norm_eps);
}

void widen_rows(const Matrix& weight, int64_t first, int64_t n, Rows& out) {
  for (int64_t i = 0; i < n; ++i) {
    const int64_t at = (first + i) * weight.cols * dtype_bytes(weight.dtype);
    widen(weight.dtype, static_cast<const char*>(weight.data) + at, weight.cols, out[i]);
  }
}

// x W^T + b. Every weight row is read and widened once, then meets all rows of x.
void linear(Rows& x, const Matrix& weight, int64_t first, int64_t num_out, const float* bias, Rows& y,
            ParallelFor parallel_for) {
  const int64_t panels = (num_out + kPanel - 1) / kPanel;
  const int64_t panel_work = kPanel * x.stride * (x.count + 4);
  const int64_t grain = 1 + (1 << 18) / std::max<int64_t>(1, panel_work);
  parallel_for(0, panels, grain, [&](int64_t begin, int64_t end) {
    Rows w(kPanel, weight.cols);
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t at = kPanel * panel, n = std::min(kPanel, num_out - at);
      widen_rows(weight, first + at, n, w);
      dispatch_dots({x[0], x.count, w[0], n, x.stride, y[0] + at, y.stride});
      if (bias == nullptr) continue;
      for (int64_t r = 0; r < x.count; ++r) {
        for (int64_t i = 0; i < n; ++i) y[r][at + i] += bias[first + at + i];
      }
    }
  });
}

// Softmax over a row of logits that come in chunks: the largest, and sums of exp(logit - largest).
struct SoftmaxSums {
  float largest = -INFINITY;
  double all = 0.0, good = 0.0;
  void add(const float* z, const float* is_good, int64_t n) {
    float top = largest;
    for (int64_t i = 0; i < n; ++i) top = z[i] > top || std::isnan(z[i]) ? z[i] : top;
    if (top == -INFINITY) return;
    const double shrink = exp_negative(largest - top);
    double sum = 0.0, good_sum = 0.0;
    for (int64_t i = 0; i < n; ++i) {
      const float e = exp_negative(z[i] - top);
      sum += e;
      good_sum += e * is_good[i];
    }
    all = all * shrink + sum;
    good = good * shrink + good_sum;
    largest = top;
  }
  float score() const { return static_cast<float>(good / all); }
};

// The score of a step from all logits of its head (kSoftmax: SoftmaxSums does it).
float score_of(HeadKind kind, const float* z) {
  switch (kind) {
    // softmax over two is a sigmoid of their difference
    case HeadKind::kTwoLogit: return sigmoid(z[1] - z[0]);
    case HeadKind::kTokenPair: return sigmoid(z[0] - z[1]);
    case HeadKind::kValue: return sigmoid(z[0]);
    default: return z[0];
  }
}

void score_two_logit(const ScoreStepsParams& p, Rows& x, ParallelFor parallel_for) {
  Rows inner(x.count, p.layers[0].rows), logits(x.count, 2);
  linear(x, p.layers[0], 0, p.layers[0].rows, p.biases[0], inner, parallel_for);
  // Written so that NaN passes.
  for (float& value : inner.values) value = value < 0.0f ? 0.0f : value;
  linear(inner, p.layers[1], 0, 2, p.biases[1], logits, parallel_for);
  for (int64_t s = 0; s < x.count; ++s) p.scores[s] = score_of(p.kind, logits[s]);
}

void score_softmax(const ScoreStepsParams& p, Rows& x, ParallelFor parallel_for) {
  const int64_t outputs = p.layers[0].rows;
  std::vector<SoftmaxSums> sums(x.count);
  Rows logits(x.count, std::min(kSoftmaxChunk, outputs));
  for (int64_t first = 0; first < outputs; first += kSoftmaxChunk) {
    const int64_t n = std::min(kSoftmaxChunk, outputs - first);
    linear(x, p.layers[0], first, n, p.biases[0], logits, parallel_for);
    for (int64_t s = 0; s < x.count; ++s) sums[s].add(logits[s], p.good + first, n);
  }
  for (int64_t s = 0; s < x.count; ++s) p.scores[s] = sums[s].score();
}

// Heads with a few outputs: the rows are read once and never written.
void score_few_outputs(const ScoreStepsParams& p, ParallelFor parallel_for) {
  const int64_t outputs = p.layers[0].rows;
  Rows weights(outputs, p.width);
  widen_rows(p.layers[0], 0, outputs, weights);
  const int64_t blocks = (p.num_steps + kRowBlock - 1) / kRowBlock;
  const int64_t grain = 1 + (1 << 16) / std::max<int64_t>(1, kRowBlock * p.width * (outputs + 2));
  parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
    Rows x(kRowBlock, p.width), logits(kRowBlock, outputs);
    for (int64_t first = kRowBlock * begin; first < std::min(kRowBlock * end, p.num_steps); first += kRowBlock) {
      const int64_t n = std::min(kRowBlock, p.num_steps - first);
      for (int64_t r = 0; r < n; ++r) gather(p, first + r, x[r]);
      dispatch_dots({x[0], n, weights[0], outputs, x.stride, logits[0], logits.stride});
      for (int64_t r = 0; r < n; ++r) {
        for (int64_t i = 0; p.biases[0] != nullptr && i < outputs; ++i) logits[r][i] += p.biases[0][i];
        SoftmaxSums sums;
        if (p.kind == HeadKind::kSoftmax) sums.add(logits[r], p.good, outputs);
        p.scores[first + r] = p.kind == HeadKind::kSoftmax ? sums.score() : score_of(p.kind, logits[r]);
      }
    }
  });
}

}  // namespace

void score_steps(const ScoreStepsParams& p, ParallelFor parallel_for) {
  if (p.num_steps == 0) return;
  if (p.kind != HeadKind::kTwoLogit && p.layers[0].rows <= kFewOutputs) return score_few_outputs(p, parallel_for);
  Rows x(p.num_steps, p.width);
  parallel_for(0, p.num_steps, 1 + (1 << 16) / std::max<int64_t>(1, p.width), [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) gather(p, s, x[s]);
  });
  if (p.kind == HeadKind::kTwoLogit) return score_two_logit(p, x, parallel_for);
  score_softmax(p, x, parallel_for);
}

}  // namespace ttc
