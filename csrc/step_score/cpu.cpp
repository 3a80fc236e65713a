#include <algorithm>
#include <cmath>
#include <vector>

#include "common/convert.h"
#include "step_score/dots.h"
#include "step_score/score_math.h"
#include "step_score/step_score.h"

namespace ttc {

namespace {

// Outputs that are computed together: a chunk of their weights fits a level-2 cache.
constexpr int64_t kPanel = 64;
constexpr int64_t kRowGroup = 64;     // rows whose chunk fits a level-2 cache beside that
constexpr int64_t kAhead = 2;         // blocks of weights that are on their way from memory
constexpr int64_t kPanelsAtOnce = 64;  // of a softmax, whose sums are kept for each panel and row
constexpr int64_t kFewOutputs = 16;    // heads up to here read the rows once and never write them
constexpr int64_t kPiece = 128;        // elements, whose successors are asked for together
constexpr int64_t kGrain = 1 << 17;    // elements worth waking a thread for

void prefetch(const char* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + i);
}

const char* hidden_row(const ScoreStepsParams& p, int64_t s) { return p.hidden + p.rows[s] * p.hidden_stride; }

const char* weight_at(const Matrix& weight, int64_t row, int64_t col) {
  return static_cast<const char*>(weight.data) + (row * weight.cols + col) * dtype_bytes(weight.dtype);
}

const uint16_t* bfloats(const char* data) { return reinterpret_cast<const uint16_t*>(data); }

// n elements as fp32, and zeros up to a multiple of kLanes.
void widen_padded(Dtype dtype, const void* from, int64_t n, float* to) {
  widen(dtype, from, n, to);
  std::fill(to + n, to + padded(n), 0.0f);
}

// Sixty-four sums of squares of a row, so that the loop is not one chain of additions.
constexpr int64_t kSquares = 4 * kLanes;

// Adds the squares of n elements.
template <bool kFma>
TTC_ALWAYS_INLINE void add_squares(const float* x, int64_t n, float* sums) {
  float lanes[kSquares];
  std::copy(sums, sums + kSquares, lanes);
  int64_t i = 0;
  for (; i + kSquares <= n; i += kSquares) {
    for (int64_t j = 0; j < kSquares; ++j) {
      lanes[j] = kFma ? __builtin_fmaf(x[i + j], x[i + j], lanes[j]) : lanes[j] + x[i + j] * x[i + j];
    }
  }
  std::copy(lanes, lanes + kSquares, sums);
  for (int64_t j = 0; i + j < n; ++j) sums[j] += x[i + j] * x[i + j];
}

#if TTC_X86
TTC_TARGET_AVX2 void add_squares_avx2(const float* x, int64_t n, float* sums) { add_squares<true>(x, n, sums); }
TTC_TARGET_AVX512 void add_squares_avx512(const float* x, int64_t n, float* sums) { add_squares<true>(x, n, sums); }
#endif

void dispatch_add_squares(const float* x, int64_t n, float* sums) {
#if TTC_X86
  if (cpu_isa() == Isa::kAvx512) return add_squares_avx512(x, n, sums);
  if (cpu_isa() == Isa::kAvx2) return add_squares_avx2(x, n, sums);
#endif
  add_squares<false>(x, n, sums);
}

// 1 / rms of step s from its sums of squares; in double where a square is too large for a float.
float norm_scale(const ScoreStepsParams& p, int64_t s, float* sums) {
  for (int64_t half = kSquares / 2; half > 0; half /= 2) {
    for (int64_t j = 0; j < half; ++j) sums[j] += sums[j + half];
  }
  double squares = sums[0];
  if (!std::isfinite(squares)) {
    const int64_t item = dtype_bytes(p.hidden_dtype);
    squares = 0.0;
    for (int64_t i = 0; i < p.width; ++i) {
      float x;
      widen(p.hidden_dtype, hidden_row(p, s) + i * item, 1, &x);
      squares += double{x} * x;
    }
  }
  return static_cast<float>(1.0 / std::sqrt(squares / static_cast<double>(p.width) + p.norm_eps));
}

// The hidden state of step s, normalised, as a row of x.
void gather(const ScoreStepsParams& p, int64_t s, const Rows& x) {
  const int64_t item = dtype_bytes(p.hidden_dtype);
  float squares[kSquares] = {};
  for (int64_t c = 0; c < p.width; c += kChunk) {
    const int64_t n = std::min(kChunk, p.width - c);
    widen_padded(p.hidden_dtype, hidden_row(p, s) + c * item, n, x.at(s, c));
    if (s + 1 < p.num_steps) prefetch(hidden_row(p, s + 1) + c * item, n * item);
    if (p.norm_weight != nullptr) dispatch_add_squares(x.at(s, c), n, squares);
  }
  if (p.norm_weight == nullptr) return;
  const float scale = norm_scale(p, s, squares);
  for (int64_t c = 0; c < p.width; c += kChunk) {
    float* part = x.at(s, c);
    for (int64_t i = 0; i < std::min(kChunk, p.width - c); ++i) part[i] *= scale * p.norm_weight[c + i];
  }
}

// Where blocks of kBlock weight rows by kChunk columns lie, in the order in which a thread reads its rows: of
// `together` rows a chunk, block by block, then the next chunk; then the next rows.
struct TileOrder {
  const Matrix& weight;
  int64_t begin, end, together;  // weight rows

  struct Tile {
    int64_t row, rows, col, cols;
  };
  Tile operator[](int64_t number) const {
    const int64_t high = together / kBlock, wide = std::max<int64_t>(1, (weight.cols + kChunk - 1) / kChunk);
    const int64_t row = begin + number / (high * wide) * together + number % high * kBlock;
    const int64_t col = number / high % wide * kChunk;
    return {row, std::clamp<int64_t>(end - row, 0, kBlock), col, std::min(kChunk, weight.cols - col)};
  }
  int64_t per_panel() const { return kPanel / kBlock * std::max<int64_t>(1, (weight.cols + kChunk - 1) / kChunk); }
  const char* data(const Tile& tile, int64_t j) const { return weight_at(weight, tile.row + j, tile.col); }
};

// Panels of x W^T + b for the weight rows [first, last): finish(panel, first output, outputs, y) gets each,
// in any order. A weight comes from memory once and meets all rows of x:
//
//     panel 0   [ 64 weight rows: chunk 0 ][ chunk 1 ] ..     y: rows of x by outputs of the panel, sums so far
//     panel 1   [                         ][         ] ..     each panel is one thread's, from left to right
//
// Of a chunk, four weight rows at a time are widened; they stay in the level-1 cache while a group of rows of x
// passes by from the level-2 cache. A single row meets weights in bfloat16 as they are.
template <typename Finish>
void for_panels(const Rows& x, const Matrix& weight, int64_t first, int64_t last, const float* bias,
                ParallelFor parallel_for, const Finish& finish) {
  const int64_t panels = (last - first + kPanel - 1) / kPanel;
  const int64_t grain = 1 + kGrain / std::max<int64_t>(1, kPanel * weight.cols);
  // If x as a whole fits a level-2 cache, weight rows are read from end to end, which memory likes better.
  const bool as_they_are = x.count == 1 && weight.dtype == Dtype::kBFloat16 && weight.cols % kLanes == 0;
  const int64_t together = x.count <= kRowGroup && x.count * weight.cols <= (1 << 16) ? kBlock : kPanel;
  parallel_for(0, panels, grain, [&](int64_t begin, int64_t end) {
    const Rows w(kBlock, std::min(kChunk, weight.cols)), y(x.count, kPanel);
    const TileOrder tiles{weight, first + begin * kPanel, std::min(last, first + end * kPanel), together};
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t at = first + panel * kPanel, n = std::min(kPanel, last - at);
      for (int64_t i = 0; i < tiles.per_panel(); ++i) {
        const int64_t number = (panel - begin) * tiles.per_panel() + i;
        const TileOrder::Tile tile = tiles[number], ahead = tiles[number + kAhead];
        if (as_they_are && tile.rows == kBlock && ahead.rows == kBlock && tile.cols == ahead.cols) {
          dots_of_chunk<uint16_t>({x.at(0, tile.col), 1, x.stride, bfloats(tiles.data(tile, 0)), tile.rows, weight.cols,
                                   tile.cols, tile.col == 0, y.at(0, tile.row - at), y.stride,
                                   bfloats(tiles.data(ahead, 0))});
          continue;
        }
        for (int64_t group = 0; tile.rows > 0 && group < x.count; group += kRowGroup) {
          for (int64_t j = 0; j < tile.rows && group == 0; ++j) {
            widen_padded(weight.dtype, tiles.data(tile, j), tile.cols, w.at(j));
            if (j < ahead.rows) prefetch(tiles.data(ahead, j), ahead.cols * dtype_bytes(weight.dtype));
          }
          dots_of_chunk({x.at(group, tile.col), std::min(kRowGroup, x.count - group), x.stride, w.at(0), tile.rows,
                         w.stride, padded(tile.cols), tile.col == 0, y.at(group, tile.row - at), y.stride});
        }
      }
      for (int64_t r = 0; bias != nullptr && r < x.count; ++r) {
        for (int64_t i = 0; i < n; ++i) y.at(r)[i] += bias[at + i];
      }
      finish(panel, at, n, y);
    }
  });
}

// Softmax over logits that come in panels: the largest, and sums of exp(logit - largest).
struct SoftmaxSums {
  float largest = -INFINITY;
  double all = 0.0, good = 0.0;

  static SoftmaxSums of(const float* z, const float* is_good, int64_t n) {
    SoftmaxSums sums;
    for (int64_t i = 0; i < n; ++i) sums.largest = larger(z[i], sums.largest);
    if (sums.largest == -INFINITY) return sums;
    for (int64_t i = 0; i < n; ++i) {
      const float e = exp_negative(z[i] - sums.largest);
      sums.all += e;
      sums.good += e * is_good[i];
    }
    return sums;
  }
  void add(const SoftmaxSums& other) {
    const float top = larger(other.largest, largest);
    if (top == -INFINITY) return;
    const double mine = std::exp(double{largest} - top), theirs = std::exp(double{other.largest} - top);
    all = all * mine + other.all * theirs;
    good = good * mine + other.good * theirs;
    largest = top;
  }
  float score() const { return static_cast<float>(good / all); }
  static float larger(float a, float b) { return a > b || std::isnan(a) ? a : b; }  // NaN stays
};

// The score of a step from all logits of its head.
float score_of(const ScoreStepsParams& p, const float* z) {
  switch (p.kind) {
    // softmax over two is a sigmoid of their difference
    case HeadKind::kTwoLogit: return sigmoid(z[1] - z[0]);
    case HeadKind::kTokenPair: return sigmoid(z[0] - z[1]);
    case HeadKind::kValue: return sigmoid(z[0]);
    case HeadKind::kSoftmax: return SoftmaxSums::of(z, p.good, p.layers[0].rows).score();
    default: return z[0];
  }
}

// The inner layer is never written as a whole: each panel of it is multiplied by its part of the outer one.
void score_two_logit(const ScoreStepsParams& p, const Rows& x, ParallelFor parallel_for) {
  const Matrix &inner = p.layers[0], &outer = p.layers[1];
  const Rows weights(2, inner.rows);
  for (int64_t c = 0; c < inner.rows; c += kChunk) {
    for (int64_t j = 0; j < 2; ++j) {
      widen_padded(outer.dtype, weight_at(outer, j, c), std::min(kChunk, inner.rows - c), weights.at(j, c));
    }
  }
  const int64_t panels = (inner.rows + kPanel - 1) / kPanel;
  std::vector<float> parts(panels * p.num_steps * 2);
  for_panels(x, inner, 0, inner.rows, p.biases[0], parallel_for,
             [&](int64_t panel, int64_t at, int64_t n, const Rows& y) {
               for (int64_t s = 0; s < p.num_steps; ++s) {
                 float* z = y.at(s);
                 for (int64_t i = 0; i < n; ++i) z[i] = z[i] < 0.0f ? 0.0f : z[i];  // NaN passes
                 std::fill(z + n, z + padded(n), 0.0f);
               }
               dots_of_chunk({y.at(0), p.num_steps, y.stride, weights.at(0, at), 2, weights.stride, padded(n), true,
                              parts.data() + panel * p.num_steps * 2, 2});
             });
  for (int64_t s = 0; s < p.num_steps; ++s) {
    float z[2] = {p.biases[1][0], p.biases[1][1]};
    for (int64_t panel = 0; panel < panels; ++panel) {
      for (int64_t j = 0; j < 2; ++j) z[j] += parts[(panel * p.num_steps + s) * 2 + j];
    }
    p.scores[s] = score_of(p, z);
  }
}

void score_softmax(const ScoreStepsParams& p, const Rows& x, ParallelFor parallel_for) {
  const int64_t outputs = p.layers[0].rows;
  std::vector<SoftmaxSums> sums(p.num_steps), parts(kPanelsAtOnce * p.num_steps);
  for (int64_t first = 0; first < outputs; first += kPanelsAtOnce * kPanel) {
    const int64_t last = std::min(first + kPanelsAtOnce * kPanel, outputs);
    for_panels(x, p.layers[0], first, last, p.biases[0], parallel_for,
               [&](int64_t panel, int64_t at, int64_t n, const Rows& y) {
                 for (int64_t s = 0; s < p.num_steps; ++s) {
                   parts[panel * p.num_steps + s] = SoftmaxSums::of(y.at(s), p.good + at, n);
                 }
               });
    for (int64_t panel = 0; panel * kPanel < last - first; ++panel) {
      for (int64_t s = 0; s < p.num_steps; ++s) sums[s].add(parts[panel * p.num_steps + s]);
    }
  }
  for (int64_t s = 0; s < p.num_steps; ++s) p.scores[s] = sums[s].score();
}

// The first kBlock of steps [first, last), with a head of few outputs. The norm's gain is in the weights; its scale
// comes with the sum of squares, when a row's logits are there.
void score_block(const ScoreStepsParams& p, const Rows& weights, int64_t first, int64_t last, const Rows& x,
                 const Rows& logits) {
  const int64_t n = std::min(kBlock, last - first);
  const int64_t outputs = p.layers[0].rows, item = dtype_bytes(p.hidden_dtype);
  float squares[kBlock][kSquares] = {};
  for (int64_t c = 0; c == 0 || c < p.width; c += kChunk) {
    const int64_t length = std::min(kChunk, p.width - c);
    for (int64_t r = 0; r < n; ++r) {
      const char* from = hidden_row(p, first + r) + c * item;
      const char* ahead = hidden_row(p, std::min(first + kBlock + r, last - 1)) + c * item;
      for (int64_t i = 0; i < length; i += kPiece) {
        const int64_t some = std::min(kPiece, length - i);
        widen_padded(p.hidden_dtype, from + i * item, some, x.at(r) + i);
        prefetch(ahead + i * item, some * item);
      }
      if (p.norm_weight != nullptr) dispatch_add_squares(x.at(r), length, squares[r]);
    }
    dots_of_chunk({x.at(0), n, x.stride, weights.at(0, c), outputs, weights.stride, padded(length), c == 0,
                   logits.at(0), logits.stride});
  }
  for (int64_t r = 0; r < n; ++r) {
    const float scale = p.norm_weight != nullptr ? norm_scale(p, first + r, squares[r]) : 1.0f;
    for (int64_t i = 0; i < outputs; ++i) {
      logits.at(r)[i] = logits.at(r)[i] * scale + (p.biases[0] != nullptr ? p.biases[0][i] : 0.0f);
    }
    p.scores[first + r] = score_of(p, logits.at(r));
  }
}

void score_few_outputs(const ScoreStepsParams& p, ParallelFor parallel_for) {
  const int64_t outputs = p.layers[0].rows;
  const Rows weights(outputs, p.width);
  for (int64_t c = 0; c < p.width; c += kChunk) {
    const int64_t n = std::min(kChunk, p.width - c);
    for (int64_t i = 0; i < outputs; ++i) {
      float* w = weights.at(i, c);
      widen_padded(p.layers[0].dtype, weight_at(p.layers[0], i, c), n, w);
      for (int64_t j = 0; p.norm_weight != nullptr && j < n; ++j) w[j] *= p.norm_weight[c + j];
    }
  }
  const int64_t blocks = (p.num_steps + kBlock - 1) / kBlock;
  const int64_t grain = 1 + kGrain / std::max<int64_t>(1, kBlock * p.width);
  parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
    const Rows x(kBlock, std::min(kChunk, p.width)), logits(kBlock, outputs);
    const int64_t last = std::min(kBlock * end, p.num_steps);
    for (int64_t s = kBlock * begin; s < last; s += kBlock) score_block(p, weights, s, last, x, logits);
  });
}

}  // namespace

void score_steps(const ScoreStepsParams& p, ParallelFor parallel_for) {
  if (p.num_steps == 0) return;
  if (p.kind != HeadKind::kTwoLogit && p.layers[0].rows <= kFewOutputs) return score_few_outputs(p, parallel_for);
  const Rows x(p.num_steps, p.width);
  parallel_for(0, p.num_steps, 1 + kGrain / std::max<int64_t>(1, p.width), [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) gather(p, s, x);
  });
  if (p.kind == HeadKind::kTwoLogit) return score_two_logit(p, x, parallel_for);
  score_softmax(p, x, parallel_for);
}

}  // namespace ttc
