#include "merge_states/merge_states.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "common/convert.h"

namespace ttc {

namespace {

constexpr float kEmpty = -std::numeric_limits<float>::infinity();

// States are added in their order, so that a result depends on nothing but its own row.
void merge_row(const MergeStatesParams& p, int64_t row, float* sum, float* part) {
  float max = kEmpty;
  for (int64_t s = 0; s < p.num_states; ++s) max = std::max(max, p.lses[s * p.num_rows + row]);
  std::fill_n(sum, p.head_dim, 0.0f);
  float total = 0.0f;
  for (int64_t s = 0; s < p.num_states; ++s) {
    const float lse = p.lses[s * p.num_rows + row];
    if (lse == kEmpty) continue;  // its output is not read: it need not be a number
    const float weight = std::exp(lse - max);
    const int64_t at = (s * p.num_rows + row) * p.head_dim * dtype_bytes(p.dtype);
    widen(p.dtype, static_cast<const char*>(p.outs) + at, p.head_dim, part);
    for (int64_t d = 0; d < p.head_dim; ++d) sum[d] += weight * part[d];
    total += weight;
  }
  p.lse[row] = total == 0.0f ? kEmpty : max + std::log(total);
  const float scale = total == 0.0f ? 0.0f : 1.0f / total;
  for (int64_t d = 0; d < p.head_dim; ++d) sum[d] *= scale;
  const int64_t at = row * p.head_dim * dtype_bytes(p.dtype);
  narrow(p.dtype, sum, p.head_dim, static_cast<char*>(p.out) + at);
}

}  // namespace

void merge_states(const MergeStatesParams& p, ParallelFor parallel_for) {
  const int64_t work = std::max<int64_t>(1, p.num_states * p.head_dim);
  parallel_for(0, p.num_rows, std::max<int64_t>(1, 32768 / work), [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(2 * p.head_dim);
    for (int64_t row = begin; row < end; ++row) {
      merge_row(p, row, scratch.data(), scratch.data() + p.head_dim);
    }
  });
}

}  // namespace ttc
