// The rows of one request, as Walk sees them, by one block.
#pragma once

#include <type_traits>

#include "verify/race.cuh"
#include "verify/walk.h"

namespace ttc {

// Whether rows are described when the walk comes to them.
struct Eager {
  using Scratch = ReduceScratch;
};
struct Lazy {
  struct Scratch : SelectScratch {
    bool described[kMaxDraftNodes];
  };
};

template <class When>
struct WalkBlock {  // shared
  WalkScratch walk;
  typename When::Scratch rows;
};

template <class When>
class CudaRows {
 public:
  // drawn: [num_nodes], the tokens that the rows have given already, or null.
  __device__ CudaRows(const VerifyParams& p, int64_t first_row, const int32_t* drawn, typename When::Scratch& s)
      : p_(p), first_(first_row), drawn_(drawn), s_(s) {
    if constexpr (std::is_same_v<When, Lazy>) {
      for (int i = static_cast<int>(threadIdx.x); i < kMaxDraftNodes; i += static_cast<int>(blockDim.x)) {
        s_.described[i] = p_.filters.temperature == nullptr;
      }
    }
  }

  template <typename Body>
  __device__ __forceinline__ void once(const Body& body) {
    __syncthreads();
    if (threadIdx.x == 0) body();
    __syncthreads();
  }

  __device__ __forceinline__ bool usable(int64_t row) {
    if constexpr (std::is_same_v<When, Lazy>) {
      if (!s_.described[row - first_]) {
        const Descriptor found = describe_row(p_.logits, p_.filters, row, s_);
        float* desc = p_.descriptors + row * kDescriptorColumns;
        once([&] {
#pragma unroll
          for (int i = 0; i < kDescriptorColumns; ++i) desc[i] = found.column[i];
          s_.described[row - first_] = true;
        });
      }
    }
    return has_distribution(row);
  }

  // A choice between a row's children; here the row is described by now.
  template <typename Body>
  __device__ __forceinline__ int64_t decide(int64_t, const Body& body) {
    return body();
  }

  __device__ __forceinline__ bool has_distribution(int64_t row) const {
    return p_.descriptors[row * kDescriptorColumns + kArgmax] >= 0.0f;
  }

  __device__ __forceinline__ float target(int64_t row, int32_t token) const {
    return probability(dist(row), one_logit(p_.logits, row, token), token);
  }

  __device__ __forceinline__ float logprob(int64_t row, int32_t token) const {
    return log_probability(dist(row), one_logit(p_.logits, row, token), token);
  }

  __device__ __forceinline__ bool has_draft(int64_t row) const {
    const int64_t r = draft_row(row);
    if (r < 0 || r >= p_.draft.num_rows) return false;
    return p_.draft.ids != nullptr || draft_dist(r).argmax >= 0;
  }

  __device__ __forceinline__ float draft(int64_t row, int32_t token) const {
    const DraftDist& q = p_.draft;
    const int64_t r = draft_row(row);
    if (q.ids == nullptr) return probability(draft_dist(r), one_logit(q.logits, r, token), token);
    const int64_t at = place_in_support(r, token);
    return at < 0 ? 0.0f : sparse_probability(at);
  }

  // The sum of max(p - c q, 0) without the excluded tokens.
  __device__ __forceinline__ int64_t residual_mass(int64_t row, float c, const int32_t* excluded,
                                                   int64_t num_excluded) {
    const DraftDist& q = p_.draft;
    const RowDist d = dist(row);
    const int64_t r = draft_row(row);
    int64_t mass = 0;
    if (q.ids == nullptr) {
      const RowView draft_view = row_view(q.logits, r);
      const RowDist draft_d = draft_dist(r);
      for_pieces(row_view(p_.logits, row), [&](int first, const float (&logits)[kPiece]) {
        float drafts[kPiece];
        widen_piece(load_piece(draft_view, first), draft_view.dtype, drafts);
#pragma unroll
        for (int i = 0; i < kPiece; ++i) {
          const float p = probability(d, logits[i], first + i);
          mass += to_fixed(remainder_of(p, c, probability(draft_d, drafts[i], first + i)));
        }
      });
      for (int64_t i = threadIdx.x; i < num_excluded; i += blockDim.x) {
        mass -= to_fixed(remainder_of(target(row, excluded[i]), c, draft_of_one(r, excluded[i])));
      }
    } else {
      // All of p, less what a few tokens lose.
      if (threadIdx.x == 0) mass = static_cast<int64_t>(kFixedOne);
      for (int64_t i = threadIdx.x; i < num_excluded; i += blockDim.x) mass -= to_fixed(target(row, excluded[i]));
      for_support(r, excluded, num_excluded, [&](int32_t token, float share) {
        const float p = target(row, token);
        mass += to_fixed(remainder_of(p, c, share)) - to_fixed(p);
      });
    }
    mass = block_reduce<Sum>(mass, s_.sums);
    return mass > 0 ? mass : 0;
  }

  __device__ __forceinline__ int32_t draw(int64_t row, const PhiloxStream& stream) {
    if (drawn_ != nullptr) return drawn_[row];
    return race_row(p_.logits, row, dist(row), stream, s_);
  }

  // The winner among what the residual has left, -1 if that is nothing.
  __device__ __forceinline__ int32_t race(int64_t row, const PhiloxStream& stream, float c, const int32_t* excluded,
                                          int64_t num_excluded) {
    const RowDist d = dist(row);
    const bool whole = c == 0.0f;
    const int64_t r = draft_row(row);
    if (d.inv_temperature == 0.0f) {
      const bool left = whole || remainder_of(target(row, d.argmax), c, draft(row, d.argmax)) > 0.0f;
      return left && !is_in(excluded, num_excluded, d.argmax) ? d.argmax : -1;
    }
    const bool sparse = !whole && p_.draft.ids != nullptr;
    uint64_t best = kNoPlace;
    if (sparse) {
      for_support(r, excluded, num_excluded, [&](int32_t token, float q) {
        const float p = target(row, token), left = remainder_of(p, c, q);
        if (!(left > 0.0f)) return;
        const float scaled = (one_logit(p_.logits, row, token) - d.max) * d.inv_temperature;
        const uint64_t place = place_of((scaled + log_fp32(left / p)) + token_noise(stream, token), token);
        best = place < best ? place : best;
      });
    }
    const RowDist draft_d = !whole && !sparse ? draft_dist(r) : RowDist{};
    best = race_pieces(row_view(p_.logits, row), d, stream, best, [&](int index, float l, float scaled) {
      if (is_in(excluded, num_excluded, index)) return kLowest;
      if (whole) return scaled;
      if (sparse) return is_in_support(r, index) ? kLowest : scaled;
      const float p = probability(d, l, index);
      const float left = remainder_of(p, c, probability(draft_d, one_logit(p_.draft.logits, r, index), index));
      return left > 0.0f ? scaled + log_fp32(left / p) : kLowest;
    });
    best = block_reduce<Min>(best, s_.places);
    return best == kNoPlace ? -1 : index_at(best);
  }

  __device__ __forceinline__ int64_t entropy(int64_t row) {
    return entropy_of(row_view(p_.logits, row), dist(row), s_);
  }

 private:
  __device__ __forceinline__ RowDist dist(int64_t row) const {
    return row_dist(p_.descriptors + row * kDescriptorColumns);
  }

  __device__ __forceinline__ int64_t draft_row(int64_t row) const {
    return p_.draft.rows == nullptr ? row : p_.draft.rows[row];
  }

  __device__ __forceinline__ RowDist draft_dist(int64_t r) const {
    return row_dist(p_.draft.descriptors + r * kDescriptorColumns);
  }

  __device__ __forceinline__ float draft_of_one(int64_t r, int32_t token) const {
    return probability(draft_dist(r), one_logit(p_.draft.logits, r, token), token);
  }

  __device__ __forceinline__ float sparse_probability(int64_t at) const {
    const float logprob = p_.draft.logprobs[at];
    return logprob > -80.0f ? exp_fp32(logprob < 0.0f ? logprob : 0.0f) : 0.0f;
  }

  // Of row r of a sparse draft, -1 if the token is none of it. Each lane looks at every 32nd id.
  __device__ __forceinline__ int64_t place_in_support(int64_t r, int32_t token) const {
    const DraftDist& q = p_.draft;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    for (int64_t begin = 0; begin < q.width; begin += 32) {
      const int64_t i = begin + lane;
      const uint32_t found = __ballot_sync(~0u, i < q.width && q.ids[r * q.width + i] == token);
      if (found != 0) return r * q.width + begin + __ffs(static_cast<int>(found)) - 1;
    }
    return -1;
  }

  // The same by a thread alone.
  __device__ __forceinline__ bool is_in_support(int64_t r, int32_t token) const {
    return is_in(p_.draft.ids + r * p_.draft.width, p_.draft.width, token);
  }

  static __device__ __forceinline__ bool is_in(const int32_t* tokens, int64_t count, int32_t token) {
    for (int64_t i = 0; i < count; ++i) {
      if (tokens[i] == token) return true;
    }
    return false;
  }

  template <typename Body>
  __device__ __forceinline__ void for_support(int64_t r, const int32_t* excluded, int64_t num_excluded,
                                              const Body& body) const {
    const DraftDist& q = p_.draft;
    for (int64_t i = r * q.width + threadIdx.x; i < (r + 1) * q.width; i += blockDim.x) {
      const int32_t token = q.ids[i];
      if (token < 0 || token >= p_.logits.vocab_size || is_in(excluded, num_excluded, token)) continue;
      body(token, sparse_probability(i));
    }
  }

  const VerifyParams& p_;
  const int64_t first_;
  const int32_t* const drawn_;
  typename When::Scratch& s_;
};

}  // namespace ttc
