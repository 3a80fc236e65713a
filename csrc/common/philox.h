// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", 2011)
// and the layout of our counters.
//
// Randomness belongs to a place in a request, never to a batch slot, an iteration or a rank:
//
//   key      the request's 64-bit seed
//   counter  c0  vocabulary index / 4; output word i is for index 4 * c0 + i
//            c1  sub-index: sibling, step or stream within the domain; 0 for TARGET
//            c2  low 32 bits of the absolute position of the token to be drawn
//            c3  domain << 24 | bits 32..55 of the position
//
// Different domains never share a counter, so that e.g. the noise of a draft is independent of the
// noise of the residual it may be rejected into.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define TTC_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define TTC_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace ttc {

enum class RandomDomain : uint32_t { kTarget = 1, kAccept = 2, kResidual = 3, kDraft = 4 };

constexpr uint32_t kPhiloxFactor0 = 0xD2511F53u, kPhiloxFactor1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u, kPhiloxWeyl1 = 0xBB67AE85u;

struct Philox4 {
  uint32_t word[4];
};

struct PhiloxStream {
  uint32_t key[2];
  uint32_t counter[4];  // counter[0] is filled in per draw
};

// position: in [0, 2^56).
TTC_HOST_DEVICE PhiloxStream philox_stream(uint64_t seed, uint64_t position, RandomDomain domain,
                                           uint32_t sub_index) {
  const uint32_t high = static_cast<uint32_t>(domain) << 24 | static_cast<uint32_t>(position >> 32);
  return {{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)},
          {0, sub_index, static_cast<uint32_t>(position), high}};
}

TTC_HOST_DEVICE Philox4 philox4x32(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0,
                                   uint32_t k1) {
#if defined(__GNUC__)
#pragma GCC unroll 10
#endif
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(kPhiloxFactor0) * c0;
    const uint64_t product1 = static_cast<uint64_t>(kPhiloxFactor1) * c2;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(product1);
    c3 = static_cast<uint32_t>(product0);
    k0 += kPhiloxWeyl0;
    k1 += kPhiloxWeyl1;
  }
  return {{c0, c1, c2, c3}};
}

TTC_HOST_DEVICE Philox4 philox_draw(const PhiloxStream& s, uint32_t c0) {
  return philox4x32(c0, s.counter[1], s.counter[2], s.counter[3], s.key[0], s.key[1]);
}

}  // namespace ttc
