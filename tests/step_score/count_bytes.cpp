// How many bytes of the weights and of the hidden states score_steps reads: every read of a matrix goes through
// `widen`, which counts here.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "common/convert.h"

namespace ttc {

static const char* matrices[3];  // hidden states, first and second weights
static int64_t sizes[3], counts[3];

static void counting_widen(Dtype dtype, const void* src, int64_t n, float* dst) {
  const char* from = static_cast<const char*>(src);
  for (int m = 0; m < 3; ++m) {
    if (from >= matrices[m] && from < matrices[m] + sizes[m]) counts[m] += n * dtype_bytes(dtype);
  }
  widen(dtype, src, n, dst);
}

}  // namespace ttc

#define widen counting_widen
#include "step_score/cpu.cpp"

// Arguments: kind of head, outputs of its first matrix, width, tokens, steps, value of every hidden state.
int main(int, char** argv) {
  using namespace ttc;
  const int64_t outputs = std::atoll(argv[2]), width = std::atoll(argv[3]), tokens = std::atoll(argv[4]);
  const int64_t steps = std::atoll(argv[5]);
  std::vector<uint16_t> hidden(tokens * width, float_to_bfloat(std::strtof(argv[6], nullptr)));
  std::vector<uint16_t> first(outputs * width, float_to_bfloat(0.01f)), second(2 * outputs, float_to_bfloat(0.01f));
  std::vector<float> ones(std::max(width, outputs), 1.0f), scores(steps);
  std::vector<int32_t> rows(steps);
  for (int64_t s = 0; s < steps; ++s) rows[s] = static_cast<int32_t>(s * 7 % tokens);
  ScoreStepsParams p = {};
  p.hidden = reinterpret_cast<const char*>(hidden.data());
  p.hidden_stride = width * 2;
  p.hidden_dtype = Dtype::kBFloat16;
  p.rows = rows.data();
  p.num_steps = steps;
  p.width = width;
  p.kind = static_cast<HeadKind>(std::atoi(argv[1]));
  p.layers[0] = {first.data(), Dtype::kBFloat16, outputs, width};
  p.layers[1] = {second.data(), Dtype::kBFloat16, 2, outputs};
  p.biases[0] = p.biases[1] = p.good = p.norm_weight = ones.data();
  p.norm_eps = 1e-6f;
  p.scores = scores.data();
  const std::vector<uint16_t>* buffers[3] = {&hidden, &first, &second};
  for (int m = 0; m < 3; ++m) {
    matrices[m] = reinterpret_cast<const char*>(buffers[m]->data());
    sizes[m] = 2 * static_cast<int64_t>(buffers[m]->size());
  }
  score_steps(p, serial_for);
  std::printf("%lld %lld %lld\n", static_cast<long long>(counts[0]), static_cast<long long>(counts[1]),
              static_cast<long long>(counts[2]));
}
