// How drafts are verified: one walk over the nodes of one request, the same on every backend.
//
// `Rows` gives access to the rows of logits: it reads single logits, and does the few things that
// pass over a row (its description, a residual's mass, a race, an entropy). A choice between a row's
// children is made inside `decide(row, choice)`, which may make it more than once. `usable(row)` comes before
// anything else of a row, which it describes if that was not done; it says, and `has_distribution(row)`
// then says again, whether tokens can be drawn from the row. All threads of a GPU block
// run the walk side by side; `once` is for what only one of them may write.
//
// The residual of a node after any number of rejected siblings is max(p - c q, 0) / S without the
// excluded tokens, so three scalars hold it: c, its mass S, and `rem`, the share of q that the
// rejected siblings have left, for siblings drawn without replacement.
//
// Random numbers. A rejected draft tells something about the coin it was rejected with, so no coin
// may serve twice in a request. Position p is passed once in top-down rules: coins and noise are
// keyed by the position of the token to be drawn. Block and traversal also toss coins for places that
// the next pass comes to again; theirs are keyed by the pass's first position and a running number.
#pragma once

#include "verify/row_math.h"
#include "verify/verify.h"

#if defined(__CUDACC__)
#define TTC_WALK __device__ __forceinline__
#else
#define TTC_WALK
#endif

namespace ttc {

// 24 random bits: in [0, 1), so that u * q < p never accepts p = 0 and always accepts p >= q > 0.
TTC_HOST_DEVICE float coin_uniform(uint32_t random) { return static_cast<float>(random >> 8) * 0x1p-24f; }

TTC_HOST_DEVICE float from_fixed(int64_t mass) { return static_cast<float>(mass) * 0x1p-40f; }

TTC_HOST_DEVICE float at_most_one(float x) { return x < 1.0f ? x : 1.0f; }

// What the walk keeps beside the nodes; in shared memory on a GPU.
struct WalkScratch {
  int16_t first_child[kMaxDraftNodes];
  int16_t next_sibling[kMaxDraftNodes];
  int16_t depth[kMaxDraftNodes];
  int32_t excluded[kMaxDraftNodes];
  // of traversal (and alpha of typical acceptance: log-probability of the path)
  float alpha[kMaxDraftNodes];
  float c[kMaxDraftNodes];
  float mass[kMaxDraftNodes];
  float rem[kMaxDraftNodes];
  int16_t next_child[kMaxDraftNodes];
};

// The residual of a node, on its way through its children.
struct Residual {
  float c = 0.0f;
  float mass = 1.0f;
  float rem = 1.0f;
  bool changed = false;  // a child was rejected
};

// Where a walk ends.
struct Stop {
  int64_t node;
  Residual residual = {};
  int32_t token = -1;  // what the node's row has given already
};

// kRule: greedy is the sampled rule of rows that keep one token.
template <typename Rows, VerifyRule kRule>
class Walk {
 public:
  TTC_WALK Walk(const VerifyParams& params, int64_t request, Rows& rows, WalkScratch& scratch)
      : p_(params),
        rows_(rows),
        s_(scratch),
        b_(request),
        begin_(params.cu_nodes[request]),
        n_(params.cu_nodes[request + 1] - params.cu_nodes[request]) {}

  TTC_WALK void run() {
    rows_.once([&] {
      for (int64_t i = 0; i < p_.width; ++i) {
        p_.out_tokens[b_ * p_.width + i] = p_.path[b_ * p_.width + i] = -1;
        if (p_.logprobs != nullptr) p_.logprobs[b_ * p_.width + i] = 0.0f;
      }
      p_.num_accepted[b_] = n_ == 0 ? -1 : 0;
      p_.status[b_] = n_ == 0 ? kOk : link() ? kOk : kInvalidTree;
    });
    if (n_ == 0 || p_.status[b_] != kOk) return;
    if constexpr (kRule == VerifyRule::kBlock) {
      finish(block());
    } else if constexpr (kRule == VerifyRule::kTraversal) {
      finish(traversal());
    } else if constexpr (kRule == VerifyRule::kTypical) {
      finish(typical());
    } else {
      finish(top_down());
    }
  }

 private:
  // Children in the order of their indices. False if the nodes are no tree or do not fit the outputs.
  TTC_WALK bool link() {
    if (n_ < 1 || n_ > kMaxDraftNodes || begin_ < 0 || begin_ + n_ > p_.logits.num_rows) return false;
    for (int64_t v = 0; v < n_; ++v) s_.first_child[v] = s_.next_sibling[v] = -1;
    s_.depth[0] = 0;
    if (parent(0) != -1) return false;
    for (int64_t v = 1; v < n_; ++v) {
      const int32_t u = parent(v);
      if (u < 0 || u >= v) return false;
      s_.depth[v] = static_cast<int16_t>(s_.depth[u] + 1);
      if (s_.depth[v] >= p_.width) return false;
    }
    for (int64_t v = n_ - 1; v > 0; --v) {
      const int32_t u = parent(v);
      s_.next_sibling[v] = s_.first_child[u];
      s_.first_child[u] = static_cast<int16_t>(v);
    }
    return true;
  }

  TTC_WALK int32_t parent(int64_t v) const {
    return p_.parent == nullptr ? static_cast<int32_t>(v) - 1 : p_.parent[begin_ + v];
  }

  TTC_WALK int32_t token(int64_t v) const { return p_.tokens[begin_ + v]; }

  TTC_WALK bool in_vocabulary(int64_t v) const { return token(v) >= 0 && token(v) < p_.logits.vocab_size; }

  TTC_WALK Proposal proposal(int64_t v) const {
    return p_.draft.proposals == nullptr ? Proposal::kOneHot : static_cast<Proposal>(p_.draft.proposals[begin_ + v]);
  }

  // Whether a draft can be accepted at all: padding cannot, nor a token that was there before where
  // that is impossible, nor one that is said to come from a draft row without a distribution.
  TTC_WALK bool is_candidate(int64_t v) const {
    if (!in_vocabulary(v)) return false;
    const Proposal kind = proposal(v);
    if (kind == Proposal::kOneHot) return true;
    const int64_t u = parent(v);
    if (!rows_.has_draft(begin_ + u)) return false;
    if (kind == Proposal::kIid) return true;
    for (int64_t w = s_.first_child[u]; w != v; w = s_.next_sibling[w]) {
      if (token(w) == token(v) && proposal(w) == kind) return false;
    }
    return true;
  }

  TTC_WALK float coin(int64_t v, int64_t position, uint32_t sub_index) const {
    if (p_.coins != nullptr) return p_.coins[begin_ + v];
    const auto seed = static_cast<uint64_t>(p_.seeds[b_]);
    const PhiloxStream stream = philox_stream(seed, static_cast<uint64_t>(position), RandomDomain::kAccept, sub_index);
    return coin_uniform(philox_draw(stream, 0).word[0]);
  }

  TTC_WALK int64_t position(int64_t v) const { return p_.positions[b_] + s_.depth[v]; }

  // Collects the tokens of the one-hot children of v before `end` (a child, or -1 for all), which a
  // residual leaves out: each once, in rising order.
  TTC_WALK int64_t exclude(int64_t v, int64_t end) {
    int64_t count = 0;
    for (int64_t w = s_.first_child[v]; w != -1 && w != end; w = s_.next_sibling[w]) count += excludes(v, w);
    rows_.once([&] {
      int64_t filled = 0;
      for (int64_t w = s_.first_child[v]; w != -1 && w != end; w = s_.next_sibling[w]) {
        if (!excludes(v, w)) continue;
        int64_t place = filled++;
        for (; place > 0 && s_.excluded[place - 1] > token(w); --place) {
          s_.excluded[place] = s_.excluded[place - 1];
        }
        s_.excluded[place] = token(w);
      }
    });
    return count;
  }

  // Whether child w takes its token out of the residual of v: a second one has nothing left to take.
  TTC_WALK bool excludes(int64_t v, int64_t w) const {
    return in_vocabulary(w) && proposal(w) == Proposal::kOneHot && !is_excluded(v, w, token(w));
  }

  TTC_WALK bool is_excluded(int64_t v, int64_t end, int32_t wanted) const {
    for (int64_t w = s_.first_child[v]; w != -1 && w != end; w = s_.next_sibling[w]) {
      if (token(w) == wanted && proposal(w) == Proposal::kOneHot) return true;
    }
    return false;
  }

  // What the residual of v keeps of its child x, of which the earlier children were rejected.
  TTC_WALK float left_of(int64_t v, int64_t x, float c) const {
    if (is_excluded(v, x, token(x))) return 0.0f;
    const float p = rows_.target(begin_ + v, token(x));
    return c == 0.0f ? p : remainder_of(p, c, rows_.draft(begin_ + v, token(x)));
  }

  // The residual of v once its child x was rejected.
  TTC_WALK void reject(int64_t v, int64_t x, float kept, float alpha, Residual& r) {
    r.changed = true;
    if (proposal(x) == Proposal::kOneHot) {
      r.mass = r.mass > kept ? r.mass - kept : 0.0f;
      return;
    }
    const float scale = alpha * r.rem;
    if (scale > 0.0f) r.c = r.c + r.mass / scale;
    const int64_t num_excluded = exclude(v, x);
    r.mass = from_fixed(rows_.residual_mass(begin_ + v, r.c, s_.excluded, num_excluded));
    if (proposal(x) == Proposal::kWithoutReplacement) {
      r.rem = r.rem - rows_.draft(begin_ + v, token(x));
    }
  }

  // The token that ends a pass, from what the node's residual has left, or from the row itself.
  TTC_WALK void finish(const Stop& stop) {
    const int64_t v = stop.node;
    int32_t last = stop.token;
    if constexpr (kRule != VerifyRule::kSampled) {
      if (rows_.has_distribution(begin_ + v)) {
        const Residual& r = stop.residual;
        const PhiloxStream stream = noise(v, r.changed ? RandomDomain::kResidual : RandomDomain::kTarget);
        const int64_t num_excluded = r.changed ? exclude(v, -1) : 0;
        // Where rounding has taken all there was, in a place that has hardly any probability, the
        // whole row races.
        for (int attempt = 0; attempt < 2 && last < 0; ++attempt) {
          last = attempt == 0 ? rows_.race(begin_ + v, stream, r.c, s_.excluded, num_excluded)
                              : rows_.race(begin_ + v, stream, 0.0f, s_.excluded, 0);
        }
      }
    }
    write(v, last);
    for (int64_t w = v; w != 0; w = parent(w)) write(parent(w), token(w));
    rows_.once([&] {
      p_.num_accepted[b_] = s_.depth[v];
      if (last < 0) p_.status[b_] = kNoDistribution;
    });
  }

  // The token that the row of node v gave.
  TTC_WALK void write(int64_t v, int32_t given) {
    const float logprob = given < 0 || p_.logprobs == nullptr ? 0.0f : rows_.logprob(begin_ + v, given);
    rows_.once([&] {
      const int64_t at = b_ * p_.width + s_.depth[v];
      p_.out_tokens[at] = given;
      p_.path[at] = static_cast<int32_t>(v);
      if (p_.logprobs != nullptr) p_.logprobs[at] = logprob;
    });
  }

  TTC_WALK PhiloxStream noise(int64_t v, RandomDomain domain) const {
    return philox_stream(static_cast<uint64_t>(p_.seeds[b_]), static_cast<uint64_t>(position(v)), domain, 0);
  }

  TTC_WALK Stop top_down() {
    int64_t v = 0;
    for (;;) {
      if (!rows_.usable(begin_ + v)) return {v};
      Residual r;
      int64_t next = -1;
      if constexpr (kRule == VerifyRule::kSampled) {
        const int32_t drawn = rows_.draw(begin_ + v, noise(v, RandomDomain::kTarget));
        for (next = s_.first_child[v]; next != -1; next = s_.next_sibling[next]) {
          if (token(next) == drawn) break;
        }
        if (next == -1) return {v, r, drawn};
      } else if constexpr (kRule == VerifyRule::kTargetOnly) {
        next = rows_.decide(begin_ + v, [&] { return r = {}, accept_by_one_coin(v, r); });
      } else {
        next = rows_.decide(begin_ + v, [&] { return r = {}, accept_in_turn(v, r); });
      }
      if (next == -1) return {v, r};
      v = next;
    }
  }

  // SGLang's rule without its thresholds: one coin for all children, which are one interval each.
  TTC_WALK int64_t accept_by_one_coin(int64_t v, Residual& r) {
    const float u = coin(v, position(v), 0);
    float sum = 0.0f;
    for (int64_t x = s_.first_child[v]; x != -1; x = s_.next_sibling[x]) {
      if (!in_vocabulary(x) || is_excluded(v, x, token(x))) continue;
      sum = sum + rows_.target(begin_ + v, token(x));
      if (u < sum) return x;
      r.changed = true;
    }
    return -1;
  }

  // Leviathan et al. and, for more than one child, recursive rejection: each is tested against what
  // the earlier ones have left.
  TTC_WALK int64_t accept_in_turn(int64_t v, Residual& r) {
    uint32_t number = 0;
    for (int64_t x = s_.first_child[v]; x != -1; x = s_.next_sibling[x]) {
      if (!is_candidate(x)) continue;
      const float u = coin(x, position(v), number++);
      const float kept = left_of(v, x, r.c);
      if (proposal(x) == Proposal::kOneHot) {
        if (u * r.mass < kept) return x;
      } else {
        const float q = rows_.draft(begin_ + v, token(x));
        if (u * (q * r.mass) < kept * r.rem) return x;
      }
      reject(v, x, kept, 1.0f, r);
    }
    return -1;
  }

  // Block verification, Sun et al., 2024: the longest prefix whose own test passes; no early stop.
  TTC_WALK Stop block() {
    int64_t length = 0;
    while (length + 1 < n_ && is_candidate(length + 1) && rows_.usable(begin_ + length)) ++length;
    int64_t accepted = 0;
    float ratio = 1.0f, accepted_ratio = 1.0f;  // P_i of the paper
    for (int64_t i = 1; i <= length; ++i) {
      const bool one_hot = proposal(i) == Proposal::kOneHot;
      const float q = one_hot ? 1.0f : rows_.draft(begin_ + i - 1, token(i));
      const float numerator = ratio * rows_.target(begin_ + i - 1, token(i));
      const float u = coin(i, p_.positions[b_], static_cast<uint32_t>(i - 1));
      ratio = q > 0.0f ? at_most_one(numerator / q) : numerator > 0.0f ? 1.0f : 0.0f;
      bool accept = u * q < numerator;
      if (i < length) {
        const float z = block_residual(i, ratio);
        const float total = z + (1.0f - ratio);
        accept = total > 0.0f ? u * total < z : true;
      }
      if (accept) accepted = i, accepted_ratio = ratio;
    }
    Residual r;
    if (accepted < length) {
      r.changed = true;
      if (proposal(accepted + 1) != Proposal::kOneHot) r.c = 1.0f / accepted_ratio;
    }
    rows_.usable(begin_ + accepted);
    return {accepted, r};
  }

  // Z_i: sum of max(P_i p_i - q_i, 0) after i tokens.
  TTC_WALK float block_residual(int64_t i, float ratio) {
    if (!(ratio > 0.0f)) return 0.0f;
    if (proposal(i + 1) == Proposal::kOneHot) {
      const float p = rows_.target(begin_ + i, token(i + 1));
      return ratio * (p < 1.0f ? 1.0f - p : 0.0f);
    }
    return ratio * from_fixed(rows_.residual_mass(begin_ + i, 1.0f / ratio, s_.excluded, 0));
  }

  // Traversal verification, Weng et al., 2025: from the leaves up; a leaf that fails is deleted and
  // leaves its parent a residual, and the parent a new chance.
  TTC_WALK Stop traversal() {
    rows_.once([&] {
      for (int64_t v = 0; v < n_; ++v) {
        s_.c[v] = 0.0f;
        s_.mass[v] = s_.rem[v] = s_.alpha[v] = 1.0f;
        s_.next_child[v] = s_.first_child[v];
      }
    });
    int64_t v = 0;
    for (uint32_t tests = 0;;) {
      const int64_t x = candidate_from(v, s_.next_child[v]);
      if (x != -1) {
        const float alpha = at_most_one(path_acceptance(v, x));
        rows_.once([&] {
          s_.next_child[v] = static_cast<int16_t>(x);
          s_.alpha[x] = alpha;
        });
        v = x;
        continue;
      }
      if (v == 0 || coin(v, p_.positions[b_], tests++) < s_.alpha[v]) {
        const bool deleted = s_.first_child[v] != -1 && s_.next_child[v] != s_.first_child[v];
        return {v, {s_.c[v], s_.mass[v], s_.rem[v], deleted}};
      }
      const int64_t u = parent(v);
      remove(u, v);
      v = u;
    }
  }

  // The first of x and its later siblings that can be accepted; none where v has no distribution.
  TTC_WALK int64_t candidate_from(int64_t v, int64_t x) const {
    if (!rows_.usable(begin_ + v)) return -1;
    while (x != -1 && !is_candidate(x)) x = s_.next_sibling[x];
    return x;
  }

  TTC_WALK float path_acceptance(int64_t v, int64_t x) const {
    const float kept = left_of(v, x, s_.c[v]);
    if (!(kept > 0.0f && s_.mass[v] > 0.0f)) return 0.0f;
    const float share = s_.alpha[v] * (kept / s_.mass[v]);
    if (proposal(x) == Proposal::kOneHot) return share;
    const float q = rows_.draft(begin_ + v, token(x));
    return q > 0.0f ? share * (s_.rem[v] / q) : 1.0f;
  }

  TTC_WALK void remove(int64_t u, int64_t x) {
    const float alpha = s_.alpha[u], before = s_.mass[u];
    Residual r{s_.c[u], before, s_.rem[u], true};
    const float kept = left_of(u, x, r.c);
    reject(u, x, kept, alpha, r);
    const float mass = before > 0.0f ? alpha * (r.mass / before) : 0.0f;
    const float total = mass + (1.0f - alpha);
    rows_.once([&] {
      s_.c[u] = r.c;
      s_.mass[u] = r.mass;
      s_.rem[u] = r.rem;
      s_.alpha[u] = total > 0.0f ? mass / total : 1.0f;
      s_.next_child[u] = s_.next_sibling[x];
    });
  }

  // Typical acceptance, Cai et al. (Medusa), 2024; not lossless. The deepest accepted node, the
  // likelier path on a tie.
  TTC_WALK Stop typical() {
    int64_t best = 0;
    rows_.once([&] { s_.alpha[0] = 0.0f; });
    for (int64_t v = 1; v < n_; ++v) {
      const int64_t u = parent(v);
      float sum = -std::numeric_limits<float>::infinity();
      if (s_.alpha[u] > sum && in_vocabulary(v) && rows_.usable(begin_ + u)) {
        const float p = rows_.target(begin_ + u, token(v));
        const float entropy = from_fixed(rows_.entropy(begin_ + u));
        // exp_fp32 takes what is <= 0; an entropy is.
        const float bound = p_.delta * exp_fp32(-entropy);
        if (p > (p_.epsilon < bound ? p_.epsilon : bound)) {
          sum = s_.alpha[u] + rows_.logprob(begin_ + u, token(v));
        }
      }
      rows_.once([&] { s_.alpha[v] = sum; });
      const bool accepted = s_.alpha[v] > -std::numeric_limits<float>::infinity();
      const bool deeper = s_.depth[v] > s_.depth[best];
      const bool likelier = s_.depth[v] == s_.depth[best] && s_.alpha[v] > s_.alpha[best];
      if (accepted && (deeper || likelier)) best = v;
    }
    rows_.usable(begin_ + best);
    return {best};
  }

  const VerifyParams& p_;
  Rows& rows_;
  WalkScratch& s_;
  const int64_t b_, begin_, n_;
};

}  // namespace ttc
