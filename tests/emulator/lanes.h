// Shuffles, votes, matches and reductions among the lanes of a warp.
#pragma once

#include <cstdint>
#include <cstring>

#include "block.h"

namespace emu {

// What a lane brings to an exchange, and what it takes away.
template <class T>
struct Exchange {
  T value;
  int source;  // lane to read from; its own if that is outside its segment
  T result;
};

template <class T>
T exchange(const char* name, uint32_t mask, T value, int source, const Site& site) {
  Exchange<T> mine{value, source, value};
  collective(
      name, mask, Aligned::kNo, &mine,
      [](Warp&, uint32_t lanes, void* const* arguments) {
        for (int lane = 0; lane < 32; ++lane) {
          if (!(lanes >> lane & 1)) continue;
          auto& taker = *static_cast<Exchange<T>*>(arguments[lane]);
          if (!(lanes >> taker.source & 1))
            fail("shuffle: lane " + std::to_string(lane) + " reads lane " + std::to_string(taker.source) +
                 ", which does not take part");
          taker.result = static_cast<Exchange<T>*>(arguments[taker.source])->value;
        }
      },
      site);
  return mine.result;
}

// All lanes get combine(values of the lanes that take part, ascending).
template <class T, class R>
struct Combination {
  T value;
  int lane;
  R result;
};

template <class R, class T, class Combine>
R combine(const char* name, uint32_t mask, T value, Combine, const Site& site) {
  static_assert(std::is_empty_v<Combine>);
  Combination<T, R> mine{value, current->lane, {}};
  collective(
      name, mask, Aligned::kNo, &mine,
      [](Warp&, uint32_t lanes, void* const* arguments) {
        T values[32];
        for (int lane = 0; lane < 32; ++lane)
          if (lanes >> lane & 1) values[lane] = static_cast<Combination<T, R>*>(arguments[lane])->value;
        for (int lane = 0; lane < 32; ++lane)
          if (lanes >> lane & 1)
            static_cast<Combination<T, R>*>(arguments[lane])->result = Combine{}(lanes, values, lane);
      },
      site);
  return mine.result;
}

// First lane of the segment of width lanes that the calling lane is in.
inline int segment(int width) { return current->lane & ~(width - 1); }

}  // namespace emu

#define EMU_SITE const emu::Site& site = emu::Site::current()

template <class T>
inline T __shfl_sync(uint32_t mask, T value, int source, int width = 32, EMU_SITE) {
  return emu::exchange("__shfl_sync", mask, value, emu::segment(width) + (source & (width - 1)), site);
}
template <class T>
inline T __shfl_xor_sync(uint32_t mask, T value, int bits, int width = 32, EMU_SITE) {
  const int lane = emu::current->lane, source = lane ^ bits;
  return emu::exchange("__shfl_xor_sync", mask, value, source < emu::segment(width) + width ? source : lane, site);
}
template <class T>
inline T __shfl_up_sync(uint32_t mask, T value, unsigned distance, int width = 32, EMU_SITE) {
  const int lane = emu::current->lane, source = lane - static_cast<int>(distance);
  return emu::exchange("__shfl_up_sync", mask, value, source >= emu::segment(width) ? source : lane, site);
}
template <class T>
inline T __shfl_down_sync(uint32_t mask, T value, unsigned distance, int width = 32, EMU_SITE) {
  const int lane = emu::current->lane, source = lane + static_cast<int>(distance);
  return emu::exchange("__shfl_down_sync", mask, value, source < emu::segment(width) + width ? source : lane, site);
}

inline uint32_t __ballot_sync(uint32_t mask, int predicate, EMU_SITE) {
  return emu::combine<uint32_t>(
      "__ballot_sync", mask, predicate,
      [](uint32_t lanes, const int* values, int) {
        uint32_t r = 0;
        for (int i = 0; i < 32; ++i) r |= static_cast<uint32_t>(lanes >> i & 1 && values[i]) << i;
        return r;
      },
      site);
}
inline int __any_sync(uint32_t mask, int predicate, EMU_SITE) { return __ballot_sync(mask, predicate, site) != 0; }
inline int __all_sync(uint32_t mask, int predicate, EMU_SITE) { return __ballot_sync(mask, !predicate, site) == 0; }

template <class T>
inline uint32_t __match_any_sync(uint32_t mask, T value, EMU_SITE) {
  return emu::combine<uint32_t>(
      "__match_any_sync", mask, value,
      [](uint32_t lanes, const T* values, int lane) {
        uint32_t r = 0;
        for (int i = 0; i < 32; ++i)
          r |= static_cast<uint32_t>(lanes >> i & 1 && !std::memcmp(&values[i], &values[lane], sizeof(T))) << i;
        return r;
      },
      site);
}
template <class T>
inline uint32_t __match_all_sync(uint32_t mask, T value, int* predicate, EMU_SITE) {
  const uint32_t equal = __match_any_sync(mask, value, site);
  *predicate = equal == mask;
  return *predicate ? mask : 0;
}

#define EMU_REDUCE(NAME, EXPRESSION)                \
  template <class T>                                \
  inline T NAME(uint32_t mask, T value, EMU_SITE) { \
    return emu::combine<T>(                         \
        #NAME, mask, value,                         \
        [](uint32_t lanes, const T* values, int) {  \
          int i = std::countr_zero(lanes);          \
          T r = values[i];                          \
          while (++i < 32)                          \
            if (lanes >> i & 1) r = EXPRESSION;     \
          return r;                                 \
        },                                          \
        site);                                      \
  }
EMU_REDUCE(__reduce_add_sync, static_cast<T>(r + values[i]))
EMU_REDUCE(__reduce_min_sync, std::min(r, values[i]))
EMU_REDUCE(__reduce_max_sync, std::max(r, values[i]))
EMU_REDUCE(__reduce_and_sync, static_cast<T>(r& values[i]))
EMU_REDUCE(__reduce_or_sync, static_cast<T>(r | values[i]))
EMU_REDUCE(__reduce_xor_sync, static_cast<T>(r ^ values[i]))
#undef EMU_REDUCE

// All lanes of the warp that are here; the emulator's warps are never split without a reason.
inline uint32_t __activemask() { return emu::current->warp->lanes & ~emu::current->warp->exited; }
#undef EMU_SITE
