// Races, in the build for them: see race.cpp. Elsewhere these are no words.
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>

namespace emu {

struct Thread;
struct Warp;
struct Block;

namespace race {

struct Clock {};
struct Shadow {};

inline void start(Thread&, int) {}
inline void start(Block&, size_t) {}
inline void finish() {}
inline void read(Thread&, const void*, size_t, const char*, const std::source_location&) {}
inline void write(Thread&, const void*, size_t, const char*, const std::source_location&) {}
inline void atomic(Thread&, const void*, size_t, const char*, const std::source_location&) {}
inline void atomic_begin(Thread&, const void*, size_t, bool, const std::source_location&) {}
inline void atomic_end(Thread&, const void*, bool) {}
inline void async_read(Thread&, const void*, size_t, const char*, const std::source_location&) {}
inline void async_write(Thread&, const void*, size_t, const char*, const std::source_location&) {}
inline void join_lanes(Warp&, uint32_t) {}
inline void release(Thread&, Clock&) {}
inline void acquire(Thread&, const Clock&) {}
inline void fence_proxy(Thread&) {}
inline void threadfence(Thread&) {}

}  // namespace race
}  // namespace emu
