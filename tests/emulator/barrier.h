// __syncthreads and named barriers (bar.sync, bar.arrive).
#pragma once

#include <source_location>

namespace emu {

struct Thread;

constexpr int kWholeBlock = -1;  // all threads that have not returned

// id: 0..15; threads: how many arrivals complete the barrier, or kWholeBlock.
void barrier_sync(int id, int threads, const char* name, const std::source_location& site);
void barrier_arrive(int id, int threads, const char* name, const std::source_location& site);

// A barrier of the whole block may have waited for this thread only.
void barriers_thread_exited(Thread& thread);

}  // namespace emu
