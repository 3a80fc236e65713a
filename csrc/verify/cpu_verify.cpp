// Verification of drafts, sampling of drafts and log-probabilities on the CPU.
#include <algorithm>
#include <atomic>
#include <vector>

#include "verify/cpu_rows.h"
#include "verify/walk.h"

namespace ttc {

namespace {

// Access to the rows of one request at a time.
//
// Where no log-probabilities are wanted, the sum of a row's weights, which takes longer than all else, is
// hardly ever needed: a row is `bounded` first, and it is only described where what lies between the
// bounds does not choose the same child, or token, as each of them. All that a choice depends on rises or
// falls with the children's probabilities, in rounded arithmetic too.
//
// A walk that comes to a row which is not described ends there, as if the row had no distribution, and
// is begun again once the row is described; what it has found by passing over rows is not done twice.
// Between the two a thread works for another request, and meanwhile fetches the row from memory.
class CpuRows {
 public:
  // `open` is the row that the thread read last.
  CpuRows(const VerifyParams& params, Row& open) : p_(params), open_(open) {
    const bool one_pass = p_.rule <= VerifyRule::kRejection;
    bounds_first_ = one_pass && p_.logprobs == nullptr && p_.filters.temperature != nullptr;
  }

  void begin_request(int64_t first_row, int64_t count) {
    first_ = first_row;
    known_.assign(count, p_.filters.temperature == nullptr ? Known::kDescribed : Known::kNothing);
    bounds_.resize(bounds_first_ ? count : 0);
    found_.clear();
    begin_walk();
  }

  void begin_walk() {
    wanted_ = -1;
    num_passed_ = 0;
  }

  // The row that the walk has stopped for; -1: it was not stopped.
  int64_t wanted() const { return wanted_; }

  const char* wanted_data() const { return row_view(p_.logits, wanted_).data; }

  // Describes the wanted row. `ahead` is a row that will be wanted then, or null.
  void describe(const char* ahead) {
    const char* next = ahead != nullptr ? ahead : first_child(wanted_);
    open_.open(p_.logits, wanted_, next, estimated_scale(wanted_));
    const int64_t v = wanted_ - first_;
    if (bounds_first_ && open_.bound(p_.filters, wanted_, bounds_mass(), bounds_[v])) {
      known_[v] = Known::kBounded;
    } else {
      describe_exactly(wanted_);
    }
  }

  template <typename Body>
  void once(const Body& body) {
    body();
  }

  bool usable(int64_t row) {
    if (known_[row - first_] == Known::kNothing && wanted_ < 0) wanted_ = row;
    return has_distribution(row);
  }

  bool has_distribution(int64_t row) const { return known_[row - first_] != Known::kNothing && dist(row).argmax >= 0; }

  // What choice() gives for this row.
  template <typename Choice>
  int64_t decide(int64_t row, const Choice& choice) {
    if (is_bounded(row)) {
      in_doubt_ = false;
      is_strict_ = true;
      const int64_t chosen = choice();
      is_strict_ = false;
      if (choice() == chosen && !in_doubt_) return chosen;
      describe_exactly(row);
    }
    return choice();
  }

  float target(int64_t row, int32_t token) const {
    return probability(dist(row), one_logit(p_.logits, row, token), token);
  }

  float logprob(int64_t row, int32_t token) {
    return log_probability(dist(row), one_logit(p_.logits, row, token), token);
  }

  bool has_draft(int64_t row) const {
    const int64_t r = draft_row(row);
    if (r < 0 || r >= p_.draft.num_rows) return false;
    return p_.draft.ids != nullptr || draft_dist(r).argmax >= 0;
  }

  float draft(int64_t row, int32_t token) const {
    const DraftDist& q = p_.draft;
    const int64_t r = draft_row(row);
    if (q.ids == nullptr) return probability(draft_dist(r), one_logit(q.logits, r, token), token);
    for (int64_t i = 0; i < q.width; ++i) {
      if (q.ids[r * q.width + i] == token) return sparse_probability(r * q.width + i);
    }
    return 0.0f;
  }

  int64_t residual_mass(int64_t row, float c, const int32_t* excluded, int64_t num_excluded) {
    if (is_bounded(row)) {
      in_doubt_ = true;
      return 0;
    }
    return pass([&] { return find_residual_mass(row, c, excluded, num_excluded); });
  }

  int32_t draw(int64_t row, const PhiloxStream& stream) { return race(row, stream, 0.0f, nullptr, 0); }

  int32_t race(int64_t row, const PhiloxStream& stream, float c, const int32_t* excluded, int64_t num_excluded) {
    return static_cast<int32_t>(pass([&] {
      // The winner of more tokens than are kept is that of the kept ones, if it is one of them.
      const int32_t found = find_winner(row, stream, c, excluded, num_excluded);
      if (found < 0 || !is_bounded(row)) return found;
      if (is_kept(bounds_[row - first_].strict, one_logit(p_.logits, row, found), found)) return found;
      describe_exactly(row);
      return find_winner(row, stream, c, excluded, num_excluded);
    }));
  }

  int64_t entropy(int64_t row) {
    return pass([&] { return row_kernels().entropy_mass(dist(row), row_view(p_.logits, row)); });
  }

 private:
  enum class Known : char { kNothing, kBounded, kDescribed };

  bool bounds_mass() const { return p_.rule != VerifyRule::kSampled; }

  // Of the weights whose sum is estimated, in units of log2; 0: none is.
  float estimated_scale(int64_t row) const {
    const float temperature = p_.filters.temperature[row];
    if (!bounds_first_ || temperature == 0.0f) return 0.0f;
    return bound_needs_sum(p_.filters, row, p_.logits.vocab_size, bounds_mass()) ? 1.0f / temperature * kLog2E : 0.0f;
  }

  bool is_bounded(int64_t row) const { return known_[row - first_] == Known::kBounded; }

  void describe_exactly(int64_t row) {
    open_.open(p_.logits, row);
    open_.describe(p_.filters, row, p_.descriptors + row * kDescriptorColumns);
    known_[row - first_] = Known::kDescribed;
  }

  // What a pass over a row finds; a walk makes the same passes in the same order each time.
  template <typename Body>
  int64_t pass(const Body& body) {
    if (wanted_ >= 0) return 0;  // whatever the walk does now, it will be begun again
    if (num_passed_ == found_.size()) found_.push_back(body());
    return found_[num_passed_++];
  }

  int64_t find_residual_mass(int64_t row, float c, const int32_t* excluded, int64_t num_excluded) const {
    int64_t mass;
    if (p_.draft.ids == nullptr) {
      const int64_t r = draft_row(row);
      mass = row_kernels().residual_mass(dist(row), row_view(p_.logits, row), draft_dist(r),
                                         row_view(p_.draft.logits, r), c);
      for (int64_t i = 0; i < num_excluded; ++i) {
        mass -= to_fixed(remainder_of(target(row, excluded[i]), c, draft(row, excluded[i])));
      }
      return std::max<int64_t>(mass, 0);
    }
    // All of p, less what a few tokens lose.
    mass = static_cast<int64_t>(kFixedOne);
    for (int64_t i = 0; i < num_excluded; ++i) mass -= to_fixed(target(row, excluded[i]));
    for_support(row, excluded, num_excluded, [&](int32_t token, float q) {
      const float p = target(row, token);
      mass += to_fixed(remainder_of(p, c, q)) - to_fixed(p);
    });
    return std::max<int64_t>(mass, 0);
  }

  int32_t find_winner(int64_t row, const PhiloxStream& stream, float c, const int32_t* excluded, int64_t num_excluded) {
    const RowDist d = dist(row);
    if (d.inv_temperature == 0.0f) return greedy(row, d.argmax, c, excluded, num_excluded);
    open_.open(p_.logits, row);
    Race race = open_.race(d);
    race.stream = stream;
    race.excluded = excluded;
    race.num_excluded = num_excluded;
    if (c == 0.0f) return winner(race, kNoWinner);
    if (p_.draft.ids == nullptr) {
      const int64_t r = draft_row(row);
      race.draft = row_view(p_.draft.logits, r);
      race.draft_dist = draft_dist(r);
      race.c = c;
      return winner(race, kNoWinner);
    }
    // The tokens that q supports race by themselves.
    excluded_.assign(excluded, excluded + num_excluded);
    Winner best = kNoWinner;
    for_support(row, excluded, num_excluded, [&](int32_t token, float q) {
      excluded_.push_back(token);
      const float p = target(row, token), left = remainder_of(p, c, q);
      if (!(left > 0.0f)) return;
      const float scaled = (one_logit(p_.logits, row, token) - d.max) * d.inv_temperature;
      const Winner found = {(scaled + log_fp32(left / p)) + token_noise(stream, token), token};
      if (beats(found, best)) best = found;
    });
    std::sort(excluded_.begin(), excluded_.end());
    race.excluded = excluded_.data();
    race.num_excluded = static_cast<int64_t>(excluded_.size());
    return winner(race, best);
  }

  // The row of a node's first child, which is likely to be next; null: there is none.
  const char* first_child(int64_t row) const {
    const auto end = first_ + static_cast<int64_t>(known_.size());
    int64_t child = row + 1;
    if (p_.parent != nullptr) {
      while (child < end && p_.parent[child] != row - first_) ++child;
    }
    return child < end ? row_view(p_.logits, child).data : nullptr;
  }

  RowDist dist(int64_t row) const {
    if (!is_bounded(row)) return row_dist(p_.descriptors + row * kDescriptorColumns);
    const DistBounds& bounds = bounds_[row - first_];
    return is_strict_ ? bounds.strict : bounds.generous;
  }

  int64_t draft_row(int64_t row) const { return p_.draft.rows == nullptr ? row : p_.draft.rows[row]; }

  RowDist draft_dist(int64_t r) const { return row_dist(p_.draft.descriptors + r * kDescriptorColumns); }

  float sparse_probability(int64_t at) const {
    const float logprob = p_.draft.logprobs[at];
    return logprob > -80.0f ? exp_fp32(logprob < 0.0f ? logprob : 0.0f) : 0.0f;
  }

  template <typename Body>
  void for_support(int64_t row, const int32_t* excluded, int64_t num_excluded, const Body& body) const {
    const DraftDist& q = p_.draft;
    const int64_t begin = draft_row(row) * q.width;
    for (int64_t i = begin; i < begin + q.width; ++i) {
      const int32_t token = q.ids[i];
      if (token < 0 || token >= p_.logits.vocab_size) continue;
      if (std::binary_search(excluded, excluded + num_excluded, token)) continue;
      body(token, sparse_probability(i));
    }
  }

  // The winner of the race and of who won already; -1 for none.
  static int32_t winner(const Race& race, const Winner& other) {
    const Winner found = row_kernels().race_row(race);
    const Winner& best = beats(found, other) ? found : other;
    return best.index == kNoWinner.index ? -1 : static_cast<int32_t>(best.index);
  }

  int32_t greedy(int64_t row, int32_t argmax, float c, const int32_t* excluded, int64_t num_excluded) const {
    if (std::binary_search(excluded, excluded + num_excluded, argmax)) return -1;
    if (c != 0.0f && !(remainder_of(target(row, argmax), c, draft(row, argmax)) > 0.0f)) return -1;
    return argmax;
  }

  const VerifyParams& p_;
  Row& open_;
  int64_t first_ = 0, wanted_ = -1;
  bool bounds_first_ = false;
  std::vector<Known> known_;
  std::vector<DistBounds> bounds_;  // of bounded rows
  bool is_strict_ = false;          // which of the two is looked at
  bool in_doubt_ = false;           // they do not suffice
  std::vector<int64_t> found_;
  size_t num_passed_ = 0;
  std::vector<int32_t> excluded_;
};

void walk(const VerifyParams& p, int64_t request, CpuRows& rows, WalkScratch& scratch) {
  const auto run = [&]<VerifyRule kRule>() { Walk<CpuRows, kRule>(p, request, rows, scratch).run(); };
  switch (p.rule) {
    case VerifyRule::kGreedy:
    case VerifyRule::kSampled: return run.operator()<VerifyRule::kSampled>();
    case VerifyRule::kTargetOnly: return run.operator()<VerifyRule::kTargetOnly>();
    case VerifyRule::kRejection: return run.operator()<VerifyRule::kRejection>();
    case VerifyRule::kBlock: return run.operator()<VerifyRule::kBlock>();
    case VerifyRule::kTraversal: return run.operator()<VerifyRule::kTraversal>();
    case VerifyRule::kTypical: return run.operator()<VerifyRule::kTypical>();
  }
}

}  // namespace

void verify(const VerifyParams& p, ParallelFor parallel_for) {
  // Some requests read many rows and others one: each thread takes the next as it gets to it.
  std::atomic<int64_t> next = 0;
  parallel_for(0, p.num_requests, 1, [&](int64_t begin, int64_t end) {
    const int64_t num_threads = (p.num_requests + end - begin - 1) / (end - begin);
    Row open;
    WalkScratch scratch;
    struct Request {
      CpuRows rows;
      int64_t index = -1;
    };
    Request mine[2] = {{{p, open}}, {{p, open}}};
    const auto is_waiting = [](const Request& request) { return request.rows.wanted() >= 0; };
    // Takes requests until one waits for a row. Only the first of `mine` takes the last ones, or
    // another thread would have nothing to do.
    const auto take = [&](Request& request) {
      while (&request == mine || next + num_threads <= p.num_requests) {
        request.index = next++;
        if (request.index >= p.num_requests) break;
        request.rows.begin_request(p.cu_nodes[request.index],
                                   p.cu_nodes[request.index + 1] - p.cu_nodes[request.index]);
        walk(p, request.index, request.rows, scratch);
        if (is_waiting(request)) return;
      }
      request.rows.begin_walk();
    };
    take(mine[0]);
    take(mine[1]);
    for (int turn = 0; is_waiting(mine[0]) || is_waiting(mine[1]); turn ^= 1) {
      Request& request = mine[turn];
      Request& other = mine[turn ^ 1];
      if (!is_waiting(request)) continue;
      request.rows.describe(is_waiting(other) ? other.rows.wanted_data() : nullptr);
      request.rows.begin_walk();
      walk(p, request.index, request.rows, scratch);
      if (!is_waiting(request)) take(request);
    }
  });
}

void sample_children(const SampleChildrenParams& p, ParallelFor parallel_for) {
  const RowKernels& kernels = row_kernels();
  parallel_for(0, p.logits.num_rows, 1, [&](int64_t begin, int64_t end) {
    Row row;
    std::vector<Winner> best(p.k);
    for (int64_t r = begin; r < end; ++r) {
      const RowDist d = row_dist(p.descriptors + r * kDescriptorColumns);
      row.open(p.logits, r);
      Race race = row.race(d);
      const auto stream = [&](uint32_t child) {
        const auto seed = static_cast<uint64_t>(p.seeds[r]);
        const auto position = static_cast<uint64_t>(p.positions[r]);
        if (p.target_noise) return philox_stream(seed, position, RandomDomain::kTarget, 0);
        const uint32_t sub_index = static_cast<uint32_t>(p.streams[r]) << 8 | child;
        return philox_stream(seed, position, RandomDomain::kDraft, sub_index);
      };
      int64_t count = 0;
      if (d.argmax < 0) {
      } else if (d.inv_temperature == 0.0f) {  // there is one token only
        count = p.mode == ChildMode::kIid ? p.k : 1;
        std::fill_n(best.begin(), count, Winner{0.0f, d.argmax});
      } else if (p.mode == ChildMode::kTopK) {
        count = kernels.top_scores(race, p.k, best.data());
      } else if (p.mode == ChildMode::kWithoutReplacement) {
        race.stream = stream(0);
        count = kernels.top_scores_with_noise(race, p.k, best.data());
      } else {
        for (count = 0; count < p.k; ++count) {
          race.stream = stream(static_cast<uint32_t>(count));
          best[count] = kernels.race_row(race);
        }
      }
      for (int64_t i = 0; i < p.k; ++i) {
        const bool there = i < count;
        const int64_t token = there ? best[i].index : -1;
        p.tokens[r * p.k + i] = static_cast<int32_t>(token);
        p.logprobs[r * p.k + i] = there ? log_probability(d, one_logit(p.logits, r, token), token) : kLowest;
        p.scores[r * p.k + i] = there ? best[i].score : kLowest;
      }
    }
  });
}

void token_logprobs(const TokenLogprobsParams& p, ParallelFor parallel_for) {
  const int64_t n = p.logits.vocab_size;
  parallel_for(0, p.count, 1, [&](int64_t begin, int64_t end) {
    Row row;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t r = p.rows[i], token = p.tokens[i];
      const bool there = r >= 0 && token >= 0 && token < n;
      const RowDist d = there ? row_dist(p.descriptors + r * kDescriptorColumns) : RowDist{};
      const float logit = there ? one_logit(p.logits, r, token) : 0.0f;
      const bool usable = there && d.argmax >= 0;
      p.processed[i] = usable ? log_probability(d, logit, token) : there ? kLowest : 0.0f;
      if (p.raw == nullptr) continue;
      LogitRows plain = p.logits;
      plain.bitmask = nullptr;
      if (!there) {
        p.raw[i] = 0.0f;
        continue;
      }
      row.open(plain, r);
      if (row.argmax() < 0) {
        p.raw[i] = kLowest;
        continue;
      }
      const float mass = static_cast<float>(row.sum_weights(1.0f)) * 0x1p-40f;
      p.raw[i] = (one_logit(plain, r, token) - row.max()) - log_fp32(mass);
    }
  });
}

}  // namespace ttc
