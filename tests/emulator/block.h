// What runs: a block of threads, its warps, and the switching between them.
//
//   Grid ─┬─ Block ─┬─ shared memory, exact size ── SharedMemory (memory.h)
//         │         ├─ named barriers 0..15 (0 is __syncthreads)
//         │         ├─ mbarriers, by address (mbarrier.h)
//         │         └─ Warp ×≤32 ─┬─ collectives waiting for lanes (warp.h)
//         │                       ├─ wgmma in flight (wgmma.h)
//         │                       └─ Thread ×32 ── a fiber; its cp.async in flight (cp_async.h)
//         └─ the next block, in an order drawn from the seed
//
// A thread runs until it has to wait: in a collective for the other lanes, in a barrier for other
// warps. The last lane to arrive performs the collective for the warp. Which warp goes on next is
// drawn from the seed, so that several seeds see several orders.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <source_location>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cp_async.h"
#include "cuda_words.h"
#include "fiber.h"
#include "mbarrier.h"
#include "memory.h"
#include "race.h"
#include "warp.h"
#include "wgmma.h"

namespace emu {

using Site = std::source_location;

// A fault of the kernel. The text names kernel, block, warp and lanes.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Block;
struct Warp;

struct Thread {
  dim3 index;
  int id = 0, lane = 0;
  Warp* warp = nullptr;
  Block* block = nullptr;
  Fiber fiber;
  bool exited = false;
  const char* waits_in = nullptr;  // the operation it is blocked in
  Site waits_at;
  CopyQueue copies;
  race::ThreadClock clock;
};

struct Warp {
  Block* block = nullptr;
  int id = 0;
  uint32_t lanes = 0, ready = 0, exited = 0;
  std::vector<Collective> forming;
  WgmmaState wgmma;
  std::array<Thread*, 32> threads{};
  Thread& thread(int lane) { return *threads[lane]; }
};

struct NamedBarrier {
  int expected = 0, arrived = 0;
  std::vector<Thread*> waiting;
  race::Clock clock;
};

struct Block {
  dim3 index;
  uint32_t serial = 0;  // linear index in the grid
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<Warp> warps;
  int running = 0;  // threads that have not returned
  std::array<NamedBarrier, 16> barriers;
  std::map<uint32_t, Mbarrier> mbarriers;  // by shared address
  SharedMemory shared;
  race::Shadow shadow;
};

extern Thread* current;
extern dim3 grid_dim, block_dim;

// Ends the launch with an Error, with where the current thread is put in front of the text.
[[noreturn]] void fail(const std::string& what);
std::string describe(const Thread& thread);
std::string at(const Site& site);

// The current thread stops being ready and others run until someone makes it ready again.
void block_current(const char* what, const Site& site);
void make_ready(Thread& thread);
// Others may run first.
void yield_current();
uint32_t random_bits();

// Runs one grid. body: the kernel with its arguments, run once per thread.
void run_grid(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body);

}  // namespace emu
