#include "barrier.h"

#include "block.h"

namespace emu {

namespace {

void complete(NamedBarrier& barrier) {
  for (Thread* thread : barrier.waiting) {
    race::acquire(*thread, barrier.clock);
    make_ready(*thread);
  }
  barrier = {};
}

// Counts the arrival of the current thread and completes the barrier if it was the last.
bool arrive(int id, int threads, const char* name, const Site& site) {
  if (id < 0 || id > 15) fail(std::string(name) + " at " + at(site) + ": there is no barrier " + std::to_string(id));
  if (threads != kWholeBlock && (threads <= 0 || threads % 32))
    fail(std::string(name) + " at " + at(site) + ": " + std::to_string(threads) + " threads are not whole warps");
  Block& block = *current->block;
  NamedBarrier& barrier = block.barriers[id];
  if (barrier.arrived && barrier.expected != threads)
    fail(std::string(name) + " at " + at(site) + ": barrier " + std::to_string(id) + " waits for " +
         (barrier.expected == kWholeBlock ? "the block" : std::to_string(barrier.expected) + " threads") +
         ", this thread expects " + (threads == kWholeBlock ? "the block" : std::to_string(threads)));
  for (const Thread* other : barrier.waiting)
    if (other->warp == current->warp &&
        (other->waits_at.line() != site.line() || std::string_view(other->waits_at.file_name()) != site.file_name()))
      fail("divergent " + std::string(name) + " at " + at(site) + ": lane " + std::to_string(other->lane) +
           " of the same warp waits in it at " + at(other->waits_at));
  barrier.expected = threads;
  race::release(*current, barrier.clock);
  if (++barrier.arrived < (threads == kWholeBlock ? block.running : threads)) return false;
  race::acquire(*current, barrier.clock);
  complete(barrier);
  return true;
}

}  // namespace

void barrier_sync(int id, int threads, const char* name, const Site& site) {
  if (arrive(id, threads, name, site)) return;
  current->block->barriers[id].waiting.push_back(current);
  block_current(name, site);
}

void barrier_arrive(int id, int threads, const char* name, const Site& site) { arrive(id, threads, name, site); }

void barriers_thread_exited(Thread& thread) {
  Block& block = *thread.block;
  for (NamedBarrier& barrier : block.barriers)
    if (barrier.arrived && barrier.expected == kWholeBlock && barrier.arrived == block.running - 1) complete(barrier);
}

}  // namespace emu
