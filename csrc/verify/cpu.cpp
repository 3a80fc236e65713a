// Descriptors of rows, and tokens drawn from them, on the CPU.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "verify/cpu_rows.h"

namespace ttc {

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kLowestFinite = std::numeric_limits<float>::lowest();

// How far below the largest the candidates of a cut reach, as log2 of a weight: nearly always a few
// dozen tokens are enough, and the blocks without any are not read.
constexpr float kReaches[] = {8.0f, 11.0f, 14.0f, 17.0f, 20.0f, 24.0f, kInf};

bool keeps_k(const RowFilters& p, int64_t r, int64_t n) { return p.top_k[r] > 0 && p.top_k[r] < n; }

bool is_filtered(const RowFilters& p, int64_t r, int64_t n) {
  return keeps_k(p, r, n) || p.top_p[r] < 1.0f || p.min_p[r] > 0.0f;
}

Cut narrowed_by_min_p(const Cut& cut, float max, const RowFilters& p, int64_t r) {
  return p.min_p[r] > 0.0f ? narrower(cut, min_p_cut(max, p.temperature[r], p.min_p[r])) : cut;
}

}  // namespace

bool bound_needs_sum(const RowFilters& p, int64_t r, int64_t n, bool with_mass) {
  const bool by_mass = p.top_p[r] < 1.0f && !keeps_k(p, r, n);
  return by_mass || (with_mass && !is_filtered(p, r, n));
}

void Row::open(const LogitRows& logits, int64_t r, const char* next, float scale) {
  const RowView wanted = row_view(logits, r);
  if (wanted.data == view_.data && wanted.mask == view_.mask) return;
  view_ = wanted;
  view_.ahead = &ahead_;
  ahead_.begin(view_.data, next, view_.n * dtype_bytes(view_.dtype));
  const int64_t blocks = view_.num_blocks();
  tops_.resize(whole_pieces(blocks));
  scan_ = row_kernels().scan_row(view_, scale, tops_.data());
  std::fill(tops_.begin() + blocks, tops_.end(), kLowest);
}

int64_t Row::argmax() {
  if (scan_.max == kLowest) return -1;
  if (scan_.special && row_kernels().count_specials(view_).bad > 0) return -1;
  const int64_t b = std::find(tops_.begin(), tops_.end(), scan_.max) - tops_.begin();
  float buffer[kRowBlock];
  const float* logits = block_of(view_, b * kRowBlock, buffer);
  return b * kRowBlock + (std::find(logits, logits + kRowBlock, scan_.max) - logits);
}

int64_t Row::count_finite() const {
  return scan_.special ? view_.n - row_kernels().count_specials(view_).lowest : view_.n;
}

Race Row::race(const RowDist& target) const {
  Race race;
  race.row = view_;
  race.tops = tops_.data();
  race.target = target;
  return race;
}

// Takes the tokens with weights from 2^-reach on as candidates.
void Row::collect_within(float reach, float inv_temperature) {
  collect(std::max(scan_.max - reach / (inv_temperature * kLog2E), kLowestFinite), inv_temperature);
}

// Takes the tokens with logits from `least` on.
void Row::collect(float least, float inv_temperature) {
  least_ = least;
  size_ = 0;
  const RowKernels& kernels = row_kernels();
  constexpr int64_t kAtOnce = 16;  // blocks, for whose tokens there has to be room
  float tops[kRaceBlocks];
  int32_t blocks[kRaceBlocks];
  const auto num_tops = static_cast<int64_t>(tops_.size());
  for (int64_t first = 0; first < num_tops; first += kRaceBlocks) {
    const int64_t n = std::min(kRaceBlocks, num_tops - first);
    const int64_t num_blocks = kernels.compact(&tops_[first], n, first, least, tops, blocks);
    for (int64_t i = 0; i < num_blocks; i += kAtOnce) {
      if (size_ + kAtOnce * kRowBlock > static_cast<int64_t>(logits_.size())) {
        logits_.resize(2 * size_ + kAtOnce * kRowBlock);
        indices_.resize(logits_.size());
        weights_.resize(logits_.size());
      }
      size_ += kernels.compact_blocks(view_, blocks + i, std::min(kAtOnce, num_blocks - i), least, &logits_[size_],
                                      &indices_[size_]);
    }
  }
  kernels.fixed_weights(logits_.data(), size_, scan_.max, inv_temperature, weights_.data());
}

// The shortest prefix of the candidates, in order of falling logit, ties to the lower index, with so
// many tokens, or so much mass. False if they are too few.
bool Row::cut_after(bool by_mass, int64_t target, float inv_temperature, Cut& cut, Kept& kept) {
  const Kept all = {size_, std::accumulate(weights_.data(), weights_.data() + size_, int64_t{0})};
  if ((by_mass ? all.mass : all.count) < target) {
    kept = all;
    return false;
  }
  // A histogram over the logits finds the bin in which the cut lies; only its tokens are sorted. Each
  // step from a logit to its bin is monotonic, which keeps a larger one from landing in a later bin.
  const int32_t last_bin = size_ <= 256 ? 0 : 2047;
  // Held back so that a temperature near the smallest float cannot give 0 * inf.
  const float bins_per_logit = std::min(inv_temperature, 1e30f) * 32.0f;
  bins_.resize(std::max<size_t>(bins_.size(), size_));
  for (int64_t i = 0; i < size_; ++i) {
    const float d = (scan_.max - logits_[i]) * bins_per_logit;
    bins_[i] = static_cast<int32_t>(d < last_bin ? d : last_bin);
  }
  std::vector<Kept> of_bin(last_bin + 1, Kept{0, 0});
  for (int64_t i = 0; i < size_; ++i) {
    Kept& bin = of_bin[bins_[i]];
    ++bin.count;
    bin.mass += weights_[i];
  }
  kept = {0, 0};
  const auto reached = [&](const Kept& more) {
    return (by_mass ? kept.mass + more.mass : kept.count + more.count) >= target;
  };
  int32_t b = 0;
  for (; !reached(of_bin[b]); ++b) {
    kept.count += of_bin[b].count;
    kept.mass += of_bin[b].mass;
  }
  std::vector<int32_t> order;
  order.reserve(of_bin[b].count);
  for (int64_t i = 0; i < size_; ++i) {
    if (bins_[i] == b) order.push_back(static_cast<int32_t>(i));
  }
  std::stable_sort(order.begin(), order.end(), [&](int32_t i, int32_t j) { return logits_[i] > logits_[j]; });
  for (const int32_t i : order) {
    const bool last = reached({1, weights_[i]});
    ++kept.count;
    kept.mass += weights_[i];
    if (last) {
      cut = {logits_[i], indices_[i] + 1};
      break;
    }
  }
  return true;
}

// Exact top-k, top-p and min-p among the candidates; false if the cut lies below them.
bool Row::cut_of(const RowFilters& p, int64_t r, float inv_temperature, int64_t total, Cut& cut) {
  cut = Cut{};
  Kept kept;
  if (keeps_k(p, r, view_.n)) {
    // What is kept is what top_p refers to; all, if there are no k tokens.
    const bool found = cut_after(false, p.top_k[r], inv_temperature, cut, kept);
    if (!found && size_ < count_finite()) return false;
    total = kept.mass;
  }
  if (p.top_p[r] < 1.0f) {
    const double wanted = std::ceil(static_cast<double>(p.top_p[r]) * static_cast<double>(total));
    const int64_t target = std::clamp<int64_t>(static_cast<int64_t>(wanted), 1, total);
    Cut shortest;
    if (!cut_after(true, target, inv_temperature, shortest, kept)) return false;
    cut = narrower(cut, shortest);
  }
  return true;
}

Cut Row::find_cut(const RowFilters& p, int64_t r, float inv_temperature, int64_t total) {
  Cut cut;
  least_ = kInf;
  if (keeps_k(p, r, view_.n) || p.top_p[r] < 1.0f) {
    for (const float* reach = kReaches;; ++reach) {
      collect_within(*reach, inv_temperature);
      if (cut_of(p, r, inv_temperature, total, cut)) break;
    }
  }
  return narrowed_by_min_p(cut, scan_.max, p, r);
}

Row::Kept Row::kept_by(const Cut& cut, float inv_temperature) {
  if (cut.pivot < least_) collect(cut.pivot, inv_temperature);
  Kept kept = {0, 0};
  for (int64_t i = 0; i < size_; ++i) {
    const bool is_in = logits_[i] > cut.pivot || (logits_[i] == cut.pivot && indices_[i] < cut.tie_end);
    kept.count += is_in;
    kept.mass += is_in ? weights_[i] : 0;
  }
  return kept;
}

void Row::describe(const RowFilters& p, int64_t r, float* desc) {
  const float temperature = p.temperature[r];
  const int64_t top = argmax();
  std::fill_n(desc, kDescriptorColumns, 0.0f);
  desc[kTemperature] = temperature;
  desc[kArgmax] = static_cast<float>(top);
  desc[kMax] = scan_.max;
  if (top < 0) {
    desc[kPivot] = kInf;
    desc[kLogZ] = desc[kLogZAll] = desc[kMax] = std::numeric_limits<float>::quiet_NaN();
    return;
  }
  if (temperature == 0.0f) {
    desc[kPivot] = scan_.max;
    desc[kTieEnd] = static_cast<float>(top + 1);
    desc[kNumKept] = desc[kZ] = 1.0f;
    return;
  }
  const float inv = 1.0f / temperature;
  const int64_t total = sum_weights(inv);
  const Cut cut = find_cut(p, r, inv, total);
  const Kept kept = is_filtered(p, r, view_.n) ? kept_by(cut, inv) : Kept{count_finite(), total};
  desc[kPivot] = cut.pivot;
  desc[kTieEnd] = static_cast<float>(std::min<int64_t>(cut.tie_end, view_.n));
  desc[kZ] = static_cast<float>(kept.mass) * 0x1p-40f;
  desc[kLogZ] = log_fp32(desc[kZ]);
  desc[kNumKept] = static_cast<float>(kept.count);
  desc[kLogZAll] = log_fp32(static_cast<float>(total) * 0x1p-40f);
}

bool Row::bound(const RowFilters& p, int64_t r, bool with_mass, DistBounds& bounds) {
  const int64_t top = argmax();
  if (top < 0 || p.temperature[r] == 0.0f) return false;
  const float inv = 1.0f / p.temperature[r];
  const bool by_mass = p.top_p[r] < 1.0f && !keeps_k(p, r, view_.n), filtered = is_filtered(p, r, view_.n);
  MassBounds mass = {1, 1};  // whatever it is, where nobody looks at it
  if (bound_needs_sum(p, r, view_.n, with_mass)) mass = row_kernels().bound_weights(view_, scan_, inv, tops_.data());
  Cut strict, generous;
  bool ends = true;
  if (by_mass) {
    collect_within(kReaches[0], inv);
    // Where the candidates are too few for the least sum, all of them are kept, whatever else is.
    const bool enough = cut_of(p, r, inv, mass.least, strict);
    if (!enough) strict.pivot = least_;
    ends = enough && cut_of(p, r, inv, mass.most, generous);
    if (!ends) generous = Cut{};
    strict = narrowed_by_min_p(strict, scan_.max, p, r);
    generous = narrowed_by_min_p(generous, scan_.max, p, r);
  } else {
    strict = generous = find_cut(p, r, inv, 0);
  }
  if (with_mass && filtered) mass = {kept_by(strict, inv).mass, ends ? kept_by(generous, inv).mass : mass.most};
  const auto dist = [&](const Cut& cut, int64_t kept) {
    const auto tie_end = static_cast<int32_t>(std::min<int64_t>(cut.tie_end, view_.n));
    const float z = static_cast<float>(kept) * 0x1p-40f;
    return RowDist{scan_.max, inv, cut.pivot, tie_end, 1.0f / z, 0.0f, static_cast<int32_t>(top)};
  };
  bounds = {dist(strict, mass.most), dist(generous, mass.least)};
  return true;
}

void row_descriptor(const RowDescriptorParams& p, ParallelFor parallel_for) {
  parallel_for(0, p.logits.num_rows, 1, [&](int64_t begin, int64_t end) {
    Row row;
    for (int64_t r = begin; r < end; ++r) {
      row.open(p.logits, r, r + 1 < end ? row_view(p.logits, r + 1).data : nullptr);
      row.describe(p.filters, r, p.descriptors + r * kDescriptorColumns);
    }
  });
}

void sample_tokens(const SampleTokensParams& p, ParallelFor parallel_for) {
  parallel_for(0, p.logits.num_rows, 1, [&](int64_t begin, int64_t end) {
    Row row;
    for (int64_t r = begin; r < end; ++r) {
      const float* desc = p.descriptors + r * kDescriptorColumns;
      p.tokens[r] = static_cast<int32_t>(desc[kArgmax]);
      if (p.tokens[r] < 0 || desc[kTemperature] == 0.0f) continue;
      row.open(p.logits, r);
      Race race = row.race(row_dist(desc));
      race.stream = philox_stream(static_cast<uint64_t>(p.seeds[r]), static_cast<uint64_t>(p.positions[r]),
                                  RandomDomain::kTarget, 0);
      p.tokens[r] = static_cast<int32_t>(row_kernels().race_row(race).index);
    }
  });
}

}  // namespace ttc
