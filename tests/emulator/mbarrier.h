// mbarrier: arrivals and bytes that complete a phase.
//
//   phase p of a barrier made with count = 3       completes when both are empty
//     arrivals  [thread] [thread] [cp.async of a thread, deferred]
//     bytes     [tensor load 8192] [tensor load 8192]
//
// Tensor loads and deferred arrivals are performed as late as possible: when some thread waits for the
// phase and nothing else is missing.
#pragma once

#include <cstdint>
#include <functional>
#include <source_location>
#include <string>
#include <vector>

#include "race.h"

namespace emu {

struct Block;
struct Thread;

struct TensorLoad {
  uint32_t bytes;
  uint32_t access;  // as the race check knows it
  std::function<void()> perform;
};

struct Mbarrier {
  uint32_t count = 0;
  int pending = 0;         // arrivals the phase still needs
  int64_t bytes = 0;       // bytes the phase still expects
  uint64_t phase = 0;      // phases completed
  Thread* initialiser = nullptr;
  bool fenced = false;     // its initialisation is visible to tensor loads
  std::vector<TensorLoad> loads;
  std::vector<Thread*> deferred;
  std::vector<Thread*> waiting;
  race::Clock clock;      // what those who arrived had seen
  race::Clock completed;  // the same, for the last completed phase
  std::vector<uint32_t> completed_loads;
};

void mbarrier_init(uint64_t* barrier, uint32_t count, const std::source_location& site);
void mbarrier_inval(uint64_t* barrier, const std::source_location& site);
void mbarrier_arrive(uint64_t* barrier, uint32_t expected_bytes, const std::source_location& site);
void mbarrier_wait(uint64_t* barrier, uint32_t parity, const std::source_location& site);
// Barriers the current thread initialised become visible to tensor loads.
void mbarrier_fence();

void mbarrier_add_load(uint64_t* barrier, TensorLoad load, const std::source_location& site);
void mbarrier_defer_arrival(Thread& thread, uint32_t address, const std::source_location& site);
void mbarrier_deferred_arrived(Thread& thread, uint32_t address);

// The block has ended: loads in flight are an error.
void finish_mbarriers(Block& block);
std::string describe_mbarriers(const Block& block);

}  // namespace emu
