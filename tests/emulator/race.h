// Races: two accesses to the same bytes, at least one a write, that nothing orders. Only in the build
// for them (EMU_RACE); elsewhere every function here is empty.
//
// What orders accesses (vector clocks, one entry per thread of the block):
//
//   thread A: write ─ release ───────► acquire ─ read :thread B
//
//   __syncthreads, named barriers     release at arrival, acquire when the barrier completes
//   mbarriers                         release at arrival, acquire after a wait, which also ends the
//                                     writes of the tensor loads of that phase
//   __syncwarp                        both, among its lanes; shuffles and votes order nothing
//   atomics of order acq_rel          both, through the address; also between blocks
//   relaxed atomics                   with __threadfence before (release) or after them (acquire)
//   fence_proxy_async                 what came before it in this order may be read by wgmma
//   wgmma wait                        the end of the reads of operands by that group, for the warp group
//
// Plain accesses reach us through the calls that g++ -fsanitize=thread puts before each of them; our
// own versions of those calls are in race_runtime.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <source_location>
#include <vector>

namespace emu {

struct Thread;
struct Warp;
struct Block;

namespace race {

using Site = std::source_location;

#if defined(EMU_RACE)

using Ticks = std::vector<uint32_t>;  // per thread of a block: its events up to this one
using Blocks = std::map<uint32_t, std::shared_ptr<const Ticks>>;

struct Clock {
  Ticks seen;     // of the own block
  Ticks fenced;   // those with a proxy fence in between
  Blocks blocks;  // of other blocks
};

struct ThreadClock : Clock {
  Blocks released;  // at the last __threadfence
  Blocks read;      // from relaxed atomics since then
};

struct Record {
  uint32_t block, tick, place;  // who, when, and where in the program (an index into a table)
  uint16_t thread;
  uint8_t bytes, kind;  // which of the 4 bytes; what
};

struct Shadow {
  std::vector<std::vector<Record>> words;  // per 4 bytes of shared memory
};

void start(Thread& thread, int threads);
void start(Block& block, size_t shared_bytes);
void finish();
void read(Thread& thread, const void* p, size_t size, const char* operation, const Site& site);
void write(Thread& thread, const void* p, size_t size, const char* operation, const Site& site);
void atomic(Thread& thread, const void* p, size_t size, const char* operation, const Site& site);
void atomic_begin(Thread& thread, const void* p, size_t size, bool acquire, bool writes, const Site& site);
void atomic_end(Thread& thread, const void* p, bool release);
// A write by a tensor load: others may touch the bytes once a thread has called `waited` with the number returned.
uint32_t async_write(Thread& thread, const void* p, size_t size, const char* operation, const Site& site);
void waited(Thread& thread, uint32_t access);
// A read by wgmma; group counts the commits of the warp group before it.
void async_read(Thread& thread, const void* p, size_t size, uint64_t group, const Site& site);
void wgmma_waited(Warp& warp, uint64_t groups);  // for the first `groups` groups
void join_lanes(Warp& warp, uint32_t lanes);
void release(Thread& thread, Clock& clock);
void acquire(Thread& thread, const Clock& clock);
void fence_proxy(Thread& thread);
void threadfence(Thread& thread);

#else

struct Clock {};
struct ThreadClock {};
struct Shadow {};
inline void start(Thread&, int) {}
inline void start(Block&, size_t) {}
inline void finish() {}
inline void read(Thread&, const void*, size_t, const char*, const Site&) {}
inline void write(Thread&, const void*, size_t, const char*, const Site&) {}
inline void atomic(Thread&, const void*, size_t, const char*, const Site&) {}
inline void atomic_begin(Thread&, const void*, size_t, bool, bool, const Site&) {}
inline void atomic_end(Thread&, const void*, bool) {}
inline uint32_t async_write(Thread&, const void*, size_t, const char*, const Site&) { return 0; }
inline void waited(Thread&, uint32_t) {}
inline void async_read(Thread&, const void*, size_t, uint64_t, const Site&) {}
inline void wgmma_waited(Warp&, uint64_t) {}
inline void join_lanes(Warp&, uint32_t) {}
inline void release(Thread&, Clock&) {}
inline void acquire(Thread&, const Clock&) {}
inline void fence_proxy(Thread&) {}
inline void threadfence(Thread&) {}

#endif

}  // namespace race
}  // namespace emu
