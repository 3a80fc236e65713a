#include "cp_async.h"

#include <cstring>

#include "block.h"

namespace emu {

namespace {

CopyQueue::Entry perform_first(Thread& thread) {
  CopyQueue& queue = thread.copies;
  const CopyQueue::Entry entry = queue.entries.front();
  queue.entries.pop_front();
  switch (entry.kind) {
    case CopyQueue::Kind::kCopy: {
      char* to = thread.block->shared.data + (entry.shared - kSharedBase);
      if (entry.valid)
        std::memcpy(to, entry.global, entry.bytes);
      else
        std::memset(to, 0, entry.bytes);
      race::write(thread, to, entry.bytes, "cp.async", entry.site);
      break;
    }
    case CopyQueue::Kind::kCommit: --queue.groups; break;
    case CopyQueue::Kind::kArrive: mbarrier_deferred_arrived(thread, entry.shared); break;
  }
  return entry;
}

}  // namespace

void cp_async(void* smem, const void* global, int bytes, bool valid, const Site& site) {
  const uint32_t address = shared_address(smem, bytes, bytes, "cp.async");
  if (valid) {
    read_global(global, bytes, bytes, "cp.async");
    race::read(*current, global, bytes, "cp.async", site);
  }
  race::write(*current, smem, bytes, "cp.async", site);
  std::memset(smem, 0xff, bytes);
  current->copies.entries.push_back(
      {CopyQueue::Kind::kCopy, valid, static_cast<uint8_t>(bytes), address, global, site});
}

void cp_async_commit_group() {
  current->copies.entries.push_back({CopyQueue::Kind::kCommit, false, 0, 0, nullptr, {}});
  ++current->copies.groups;
}

void cp_async_wait_group(int pending) {
  while (current->copies.groups > pending) perform_first(*current);
}

void cp_async_arrive(uint64_t* barrier, const Site& site) {
  const uint32_t address = shared_address(barrier, 8, 8, "cp.async.mbarrier.arrive");
  current->copies.entries.push_back({CopyQueue::Kind::kArrive, false, 0, address, nullptr, site});
  mbarrier_defer_arrival(*current, address, site);
}

void finish_copies_before_arrival(Thread& thread, uint32_t barrier) {
  while (!thread.copies.entries.empty()) {
    const CopyQueue::Entry done = perform_first(thread);
    if (done.kind == CopyQueue::Kind::kArrive && done.shared == barrier) return;
  }
}

}  // namespace emu
