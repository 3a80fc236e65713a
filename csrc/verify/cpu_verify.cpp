// Verification of drafts, sampling of drafts and log-probabilities on the CPU.
#include <algorithm>
#include <limits>
#include <vector>

#include "verify/cpu_rows.h"
#include "verify/walk.h"

namespace ttc {

namespace {

// A thread's access to the rows of one request at a time.
class CpuRows {
 public:
  CpuRows(const VerifyParams& params) : p_(params) {}

  void begin_request(int64_t first_row, int64_t count) {
    first_ = first_row;
    described_.assign(count, p_.filters.temperature == nullptr);
  }

  template <typename Body>
  void once(const Body& body) {
    body();
  }

  bool usable(int64_t row) {
    if (!described_[row - first_]) {
      float* desc = p_.descriptors + row * kDescriptorColumns;
      describe_row(p_.logits, p_.filters, row, fp32_row(p_.logits, row, target_buffer_), desc);
      described_[row - first_] = true;
    }
    return has_distribution(row);
  }

  bool has_distribution(int64_t row) const { return dist(row).argmax >= 0; }

  float target(int64_t row, int32_t token) {
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
    int64_t mass;
    if (p_.draft.ids == nullptr) {
      const int64_t r = draft_row(row), n = p_.logits.vocab_size;
      const float* target_row = fp32_row(p_.logits, row, target_buffer_);
      const float* draft_row = fp32_row(p_.draft.logits, r, draft_buffer_);
      mass = row_kernels().residual_mass(dist(row), target_row, draft_dist(r), draft_row, n, c);
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

  int32_t draw(int64_t row, const PhiloxStream& stream) { return race(row, stream, 0.0f, nullptr, 0); }

  int32_t race(int64_t row, const PhiloxStream& stream, float c, const int32_t* excluded,
               int64_t num_excluded) {
    Race race;
    race.target = dist(row);
    race.stream = stream;
    race.excluded = excluded;
    race.num_excluded = num_excluded;
    if (race.target.inv_temperature == 0.0f) return greedy(row, race.target.argmax, race, c);
    const float* target_row = fp32_row(p_.logits, row, target_buffer_);
    const bool residual = c != 0.0f;
    if (!residual) return winner(race, target_row);
    if (p_.draft.ids == nullptr) {
      const int64_t r = draft_row(row);
      race.draft = fp32_row(p_.draft.logits, r, draft_buffer_);
      race.draft_dist = draft_dist(r);
      race.c = c;
      return winner(race, target_row);
    }
    // The tokens that q supports race by themselves.
    excluded_.assign(excluded, excluded + num_excluded);
    Winner best = kNoWinner;
    for_support(row, excluded, num_excluded, [&](int32_t token, float q) {
      excluded_.push_back(token);
      const float p = target(row, token), left = remainder_of(p, c, q);
      if (!(left > 0.0f)) return;
      const Philox4 words = philox_draw(stream, static_cast<uint32_t>(token / 4));
      const float scaled =
          (one_logit(p_.logits, row, token) - race.target.max) * race.target.inv_temperature;
      const Winner found = {(scaled + log_fp32(left / p)) + gumbel(words.word[token % 4]), token};
      if (beats(found, best)) best = found;
    });
    std::sort(excluded_.begin(), excluded_.end());
    race.excluded = excluded_.data();
    race.num_excluded = static_cast<int64_t>(excluded_.size());
    const Winner other = row_kernels().race_row(race, target_row, p_.logits.vocab_size);
    if (beats(other, best)) best = other;
    return best.index == kNoWinner.index ? -1 : static_cast<int32_t>(best.index);
  }

  int64_t entropy(int64_t row) {
    const float* logits = fp32_row(p_.logits, row, target_buffer_);
    return row_kernels().entropy_mass(dist(row), logits, p_.logits.vocab_size);
  }

 private:
  RowDist dist(int64_t row) const { return row_dist(p_.descriptors + row * kDescriptorColumns); }

  int64_t draft_row(int64_t row) const {
    return p_.draft.rows == nullptr ? row : p_.draft.rows[row];
  }

  RowDist draft_dist(int64_t r) const {
    return row_dist(p_.draft.descriptors + r * kDescriptorColumns);
  }

  float sparse_probability(int64_t at) const {
    const float logprob = p_.draft.logprobs[at];
    return logprob > -80.0f ? exp_fp32(logprob < 0.0f ? logprob : 0.0f) : 0.0f;
  }

  template <typename Body>
  void for_support(int64_t row, const int32_t* excluded, int64_t num_excluded, const Body& body) {
    const DraftDist& q = p_.draft;
    const int64_t begin = draft_row(row) * q.width;
    for (int64_t i = begin; i < begin + q.width; ++i) {
      const int32_t token = q.ids[i];
      if (token < 0 || token >= p_.logits.vocab_size) continue;
      if (std::binary_search(excluded, excluded + num_excluded, token)) continue;
      body(token, sparse_probability(i));
    }
  }

  int32_t winner(const Race& race, const float* row) const {
    const Winner best = row_kernels().race_row(race, row, p_.logits.vocab_size);
    return best.index == kNoWinner.index ? -1 : static_cast<int32_t>(best.index);
  }

  int32_t greedy(int64_t row, int32_t argmax, const Race& race, float c) {
    if (std::binary_search(race.excluded, race.excluded + race.num_excluded, argmax)) return -1;
    if (c != 0.0f && !(remainder_of(target(row, argmax), c, draft(row, argmax)) > 0.0f)) return -1;
    return argmax;
  }

  const VerifyParams& p_;
  int64_t first_ = 0;
  std::vector<char> described_;
  std::vector<float> target_buffer_, draft_buffer_;
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
  parallel_for(0, p.num_requests, 1, [&](int64_t begin, int64_t end) {
    CpuRows rows(p);
    WalkScratch scratch;
    for (int64_t b = begin; b < end; ++b) {
      rows.begin_request(p.cu_nodes[b], p.cu_nodes[b + 1] - p.cu_nodes[b]);
      walk(p, b, rows, scratch);
    }
  });
}

void sample_children(const SampleChildrenParams& p, ParallelFor parallel_for) {
  const RowKernels& kernels = row_kernels();
  const int64_t n = p.logits.vocab_size;
  parallel_for(0, p.logits.num_rows, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> buffer;
    std::vector<Winner> best(p.k);
    for (int64_t r = begin; r < end; ++r) {
      Race race;
      race.target = row_dist(p.descriptors + r * kDescriptorColumns);
      const float* row = fp32_row(p.logits, r, buffer);
      const auto stream = [&](uint32_t child) {
        const auto seed = static_cast<uint64_t>(p.seeds[r]);
        const auto position = static_cast<uint64_t>(p.positions[r]);
        if (p.target_noise) return philox_stream(seed, position, RandomDomain::kTarget, 0);
        const uint32_t sub_index = static_cast<uint32_t>(p.streams[r]) << 8 | child;
        return philox_stream(seed, position, RandomDomain::kDraft, sub_index);
      };
      int64_t count = 0;
      if (race.target.argmax < 0) {
      } else if (race.target.inv_temperature == 0.0f) {  // there is one token only
        count = p.mode == ChildMode::kIid ? p.k : 1;
        std::fill_n(best.begin(), count, Winner{0.0f, race.target.argmax});
      } else if (p.mode == ChildMode::kTopK) {
        count = kernels.top_scores(race, row, n, p.k, best.data());
      } else if (p.mode == ChildMode::kWithoutReplacement) {
        race.stream = stream(0);
        count = kernels.top_scores_with_noise(race, row, n, p.k, best.data());
      } else {
        for (count = 0; count < p.k; ++count) {
          race.stream = stream(static_cast<uint32_t>(count));
          best[count] = kernels.race_row(race, row, n);
        }
      }
      constexpr float kLowest = -std::numeric_limits<float>::infinity();
      for (int64_t i = 0; i < p.k; ++i) {
        const bool there = i < count;
        const int64_t token = there ? best[i].index : -1;
        p.tokens[r * p.k + i] = static_cast<int32_t>(token);
        p.logprobs[r * p.k + i] = there ? log_probability(race.target, row[token], token) : kLowest;
        p.scores[r * p.k + i] = there ? best[i].score : kLowest;
      }
    }
  });
}

void token_logprobs(const TokenLogprobsParams& p, ParallelFor parallel_for) {
  const int64_t n = p.logits.vocab_size;
  constexpr float kLowest = -std::numeric_limits<float>::infinity();
  parallel_for(0, p.count, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> buffer;
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
      const float* row = there ? fp32_row(plain, r, buffer) : nullptr;
      const RowMax top = there ? row_kernels().find_max(row, n) : RowMax{0.0f, -1};
      if (top.argmax < 0) {
        p.raw[i] = there ? kLowest : 0.0f;
        continue;
      }
      const KeptSums sums = row_kernels().sum_kept(row, n, top.max, 1.0f, kLowest, 0);
      p.raw[i] = (row[token] - top.max) - log_fp32(static_cast<float>(sums.mass_all) * 0x1p-40f);
    }
  });
}

}  // namespace ttc
