#include <algorithm>
#include <cmath>
#include <vector>

#include "common/convert.h"
#include "step_score/score_math.h"
#include "step_score/step_score.h"

namespace ttc {

namespace {

// A dot product is 16 interleaved partial sums, added up pairwise at the end. This order is part of
// the result: it is the same for every block shape below, so that the score of a row does not
// depend on which rows are scored beside it.
constexpr int64_t kLanes = 16;
constexpr int64_t kPanel = 16;       // weight rows widened to fp32 together: they fit a level-2 cache
constexpr int64_t kChunk = 256;      // of a row at a time: 16 weight rows of it fit a level-1 cache
constexpr int64_t kRowGroup = 64;    // rows whose partial sums are kept from chunk to chunk
constexpr int64_t kFewOutputs = 16;  // heads up to here go row by row, with no copy of the rows
constexpr int64_t kRowBlock = 4;
// Outputs of a softmax are summed up in chunks of this size, which are then added in order.
constexpr int64_t kSoftmaxChunk = 1024;

struct DotsArgs {
  const float* x;  // [num_rows, n]
  int64_t num_rows;
  int64_t x_stride;
  const float* weights;  // [num_weights, n]
  int64_t num_weights;
  int64_t weight_stride;
  int64_t n;    // a multiple of kLanes
  float* sums;  // room for [min(num_rows, kRowGroup), num_weights, kLanes]
  float* y;     // y[r * y_stride + w] = x[r] . weights[w]
  int64_t y_stride;
};

// Adds elements [first, first + n) of R x W dot products to their partial sums; R rows of x and W of
// the weights are read together. `sums` and `sums_stride` (between rows) are in floats.
template <int R, int W, bool kFma>
TTC_ALWAYS_INLINE void dot_block(const DotsArgs& a, int64_t row, int64_t weight, int64_t first, int64_t n,
                                 float* out) {
  const float* x = a.x + row * a.x_stride + first;
  const float* w = a.weights + weight * a.weight_stride + first;
  float sums[R][W][kLanes];
  for (int r = 0; r < R; ++r) {
    for (int j = 0; j < W; ++j) {
      const float* before = out + (r * a.num_weights + j) * kLanes;
      for (int64_t i = 0; i < kLanes; ++i) sums[r][j][i] = first == 0 ? 0.0f : before[i];
    }
  }
  for (int64_t i = 0; i < n; i += kLanes) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int j = 0; j < W; ++j) {
        for (int64_t l = 0; l < kLanes; ++l) {
          const float u = x[r * a.x_stride + i + l], v = w[j * a.weight_stride + i + l];
          sums[r][j][l] = kFma ? __builtin_fmaf(u, v, sums[r][j][l]) : sums[r][j][l] + u * v;
        }
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int j = 0; j < W; ++j) {
      std::copy(sums[r][j], sums[r][j] + kLanes, out + (r * a.num_weights + j) * kLanes);
    }
  }
}

template <int R, int W, bool kFma>
TTC_ALWAYS_INLINE void dot_weights(const DotsArgs& a, int64_t row, int64_t first, int64_t n, float* out) {
  int64_t w = 0;
  for (; w + W <= a.num_weights; w += W) dot_block<R, W, kFma>(a, row, w, first, n, out + w * kLanes);
  for (; w < a.num_weights; ++w) dot_block<R, 1, kFma>(a, row, w, first, n, out + w * kLanes);
}

// kBlock x kBlock dot products at a time: as many as the registers hold.
template <int kBlock, bool kFma>
TTC_ALWAYS_INLINE void dots(const DotsArgs& a) {
  const int64_t row_sums = a.num_weights * kLanes;
  const int64_t chunk = a.num_rows <= kBlock ? a.n : kChunk;  // few rows use what they read only once
  for (int64_t group = 0; group < a.num_rows; group += kRowGroup) {
    const int64_t end = std::min(group + kRowGroup, a.num_rows);
    for (int64_t first = 0; first < a.n; first += chunk) {
      const int64_t n = std::min(chunk, a.n - first);
      int64_t r = group;
      for (; r + kBlock <= end; r += kBlock) {
        dot_weights<kBlock, kBlock, kFma>(a, r, first, n, a.sums + (r - group) * row_sums);
      }
      for (; r < end; ++r) dot_weights<1, kBlock, kFma>(a, r, first, n, a.sums + (r - group) * row_sums);
    }
    for (int64_t r = group; r < end; ++r) {
      for (int64_t w = 0; w < a.num_weights; ++w) {
        float* sums = a.sums + (r - group) * row_sums + w * kLanes;
        for (int64_t half = kLanes / 2; half > 0; half /= 2) {
          for (int64_t j = 0; j < half; ++j) sums[j] += sums[j + half];
        }
        a.y[r * a.y_stride + w] = sums[0];
      }
    }
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

// Rows of fp32, each padded with zeros to a multiple of kLanes. Rows begin a chunk apart in a
// level-1 cache, or 16 of them, a power of two apart, would push each other out.
struct Rows {
  Rows(int64_t num_rows, int64_t row_width)
      : count(num_rows), width(padded(row_width)), stride(spread(width)), values(num_rows * stride) {}
  float* operator[](int64_t row) { return values.data() + row * stride; }
  static int64_t spread(int64_t width) {
    return width < 4 * kChunk ? width : width + (5 * kChunk - width % (4 * kChunk)) % (4 * kChunk);
  }
  int64_t count;
  int64_t width;
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
  const int64_t panel_work = kPanel * x.width * (x.count + 4);
  const int64_t grain = 1 + (1 << 18) / std::max<int64_t>(1, panel_work);
  parallel_for(0, panels, grain, [&](int64_t begin, int64_t end) {
    Rows w(kPanel, weight.cols);
    std::vector<float> sums(std::min(kRowGroup, x.count) * kPanel * kLanes);
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t at = kPanel * panel, n = std::min(kPanel, num_out - at);
      widen_rows(weight, first + at, n, w);
      dispatch_dots({x[0], x.count, x.stride, w[0], n, w.stride, x.width, sums.data(), y[0] + at, y.stride});
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
    std::vector<float> sums(kRowBlock * outputs * kLanes);
    for (int64_t first = kRowBlock * begin; first < std::min(kRowBlock * end, p.num_steps); first += kRowBlock) {
      const int64_t n = std::min(kRowBlock, p.num_steps - first);
      for (int64_t r = 0; r < n; ++r) gather(p, first + r, x[r]);
      dispatch_dots({x[0], n, x.stride, weights[0], outputs, weights.stride, x.width, sums.data(), logits[0],
                     logits.stride});
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
