#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "step_score/score_math.h"
#include "step_score/step_score.h"

namespace ttc {

namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Better first: higher scores, then lower indices; NaN behind everything.
struct Better {
  const float* scores;
  bool operator()(int32_t a, int32_t b) const {
    const float x = scores[a], y = scores[b];
    if (std::isnan(x) || std::isnan(y)) return std::isnan(x) == std::isnan(y) ? a < b : std::isnan(y);
    return x != y ? x > y : a < b;
  }
};

}  // namespace

void aggregate_steps(const AggregateStepsParams& p) {
  const int64_t n = p.out.count, carried = p.carry_count;
  for (int64_t i = 0; i < n; ++i) {
    const float score = p.scores[i];
    float least = is_probability(score) ? score : kNan;
    int64_t logs = std::isnan(least) ? 0 : fixed_log(score);
    int64_t sum = std::isnan(least) ? 0 : fixed_score(score);
    int64_t count = 1;
    if (p.parent[i] >= 0) {
      const bool old = p.parent[i] < carried;
      const float* stats = old ? p.carry_stats : p.out.stats;
      const int64_t* state = old ? p.carry_state : p.out.state;
      const int64_t at = old ? p.parent[i] : p.parent[i] - carried, width = old ? carried : n;
      if (std::isnan(least) || std::isnan(stats[at])) {
        least = kNan;
      } else {
        least = std::min(least, stats[at]);
      }
      logs += state[at];
      sum += state[width + at];
      count += state[2 * width + at];
    }
    p.out.state[i] = logs;
    p.out.state[n + i] = sum;
    p.out.state[2 * n + i] = count;
    p.out.stats[i] = least;
    p.out.stats[n + i] = std::isnan(least) ? kNan : product_of_logs(logs);
    p.out.stats[2 * n + i] = std::isnan(least) ? kNan : mean_of_scores(sum, count);
    p.out.stats[3 * n + i] = score;
  }
}

void select_topk(const SelectTopkParams& p, ParallelFor parallel_for) {
  const int64_t all = p.num_groups == 0 ? 0 : p.group_indptr[p.num_groups] - p.group_indptr[0];
  const int64_t per_group = 1 + all / std::max<int64_t>(1, p.num_groups);
  parallel_for(0, p.num_groups, 1 + (1 << 14) / per_group, [&](int64_t begin, int64_t end) {
    std::vector<int32_t> order;
    for (int64_t g = begin; g < end; ++g) {
      order.resize(p.group_indptr[g + 1] - p.group_indptr[g]);
      std::iota(order.begin(), order.end(), p.group_indptr[g]);
      const int64_t kept = std::min<int64_t>(p.k, order.size());
      std::partial_sort(order.begin(), order.begin() + kept, order.end(), Better{p.scores});
      int32_t* row = p.selected + g * p.k;
      std::copy(order.begin(), order.begin() + kept, row);
      std::fill(row + kept, row + p.k, -1);
    }
  });
}

}  // namespace ttc
