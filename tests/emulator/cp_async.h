// cp.async, as late as the program allows: the destination turns into 0xff when the copy is issued and
// receives the data when the thread waits for it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <source_location>

namespace emu {

struct Thread;

// What a thread has issued and not waited for, in order:  copy copy | copy copy | copy  (| = commit)
struct CopyQueue {
  enum class Kind : uint8_t { kCopy, kCommit, kArrive };
  struct Entry {
    Kind kind;
    bool valid;         // kCopy: else zeros
    uint8_t bytes;      // kCopy
    uint32_t shared;    // address of the destination, or of the mbarrier
    const void* global;
    std::source_location site;
  };
  std::deque<Entry> entries;
  int groups = 0;  // commits among them
};

void cp_async(void* smem, const void* global, int bytes, bool valid, const std::source_location& site);
void cp_async_commit_group();
void cp_async_wait_group(int pending);
// The mbarrier gets an arrival of this thread once all its earlier copies are done.
void cp_async_arrive(uint64_t* barrier, const std::source_location& site);
// Performs what thread has issued up to its next arrival on this mbarrier.
void finish_copies_before_arrival(Thread& thread, uint32_t barrier);

}  // namespace emu
