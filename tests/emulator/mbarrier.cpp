#include "mbarrier.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "block.h"

namespace emu {

namespace {

// What an initialised barrier's 8 bytes hold; anything else means that the program wrote there.
constexpr uint64_t kMark = 0x3a72b4e1c0de0000u;

std::string name_of(uint32_t address) { return "mbarrier at byte " + std::to_string(address - kSharedBase); }

Mbarrier& find(Block& block, uint32_t address, const char* operation, const Site& site) {
  auto it = block.mbarriers.find(address);
  if (it == block.mbarriers.end())
    fail(std::string(operation) + " at " + at(site) + ": " + name_of(address) + " is not initialised");
  uint64_t bits;
  std::memcpy(&bits, block.shared.data + (address - kSharedBase), 8);
  if (bits != kMark + address)
    fail(std::string(operation) + " at " + at(site) + ": the bytes of " + name_of(address) + " were overwritten");
  return it->second;
}

Mbarrier& find(uint64_t* barrier, uint32_t& address, const char* operation, const Site& site) {
  address = shared_address(barrier, 8, 8, operation);
  race::atomic(*current, barrier, 8, operation, site);
  return find(*current->block, address, operation, site);
}

int64_t queued_bytes(const Mbarrier& barrier) {
  int64_t sum = 0;
  for (const TensorLoad& load : barrier.loads) sum += load.bytes;
  return sum;
}

// Only asynchronous work is missing.
bool due(const Mbarrier& barrier) {
  return barrier.pending == static_cast<int>(barrier.deferred.size()) && barrier.bytes == queued_bytes(barrier);
}

void settle(Mbarrier& barrier, uint32_t address) {
  if (!due(barrier)) return;
  const bool asynchronous = !barrier.loads.empty() || !barrier.deferred.empty();
  if (asynchronous && barrier.waiting.empty()) return;
  for (size_t i = barrier.loads.size(); i > 1; --i) std::swap(barrier.loads[i - 1], barrier.loads[random_bits() % i]);
  barrier.completed_loads.clear();
  for (TensorLoad& load : std::exchange(barrier.loads, {})) {
    load.perform();
    barrier.completed_loads.push_back(load.access);
  }
  while (!barrier.deferred.empty()) finish_copies_before_arrival(*barrier.deferred.back(), address);
  barrier.completed = barrier.clock;
  ++barrier.phase;
  barrier.pending = static_cast<int>(barrier.count);
  barrier.bytes = 0;
  for (Thread* thread : std::exchange(barrier.waiting, {})) make_ready(*thread);
}

void count_arrival(Mbarrier& barrier, uint32_t address, const char* operation, const Site& site) {
  if (barrier.pending - static_cast<int>(barrier.deferred.size()) <= 0)
    fail(std::string(operation) + " at " + at(site) + ": one arrival more than the " + std::to_string(barrier.count) +
         " of " + name_of(address) + ", whose phase still waits for " + std::to_string(barrier.bytes) +
         " bytes; nothing orders this arrival after that phase");
}

}  // namespace

void mbarrier_init(uint64_t* barrier, uint32_t count, const Site& site) {
  const uint32_t address = shared_address(barrier, 8, 8, "mbarrier.init");
  if (count == 0 || count >= 1u << 20) fail("mbarrier.init at " + at(site) + ": a count of " + std::to_string(count));
  if (current->block->mbarriers.count(address))
    fail("mbarrier.init at " + at(site) + ": " + name_of(address) + " is initialised already");
  Mbarrier& made = current->block->mbarriers[address];
  made.count = count;
  made.pending = static_cast<int>(count);
  made.initialiser = current;
  race::write(*current, barrier, 8, "mbarrier.init", site);
  *barrier = kMark + address;
}

void mbarrier_inval(uint64_t* barrier, const Site& site) {
  uint32_t address;
  const Mbarrier& found = find(barrier, address, "mbarrier.inval", site);
  if (!found.loads.empty() || !found.waiting.empty())
    fail("mbarrier.inval at " + at(site) + ": " + name_of(address) + " is in use");
  current->block->mbarriers.erase(address);
  race::write(*current, barrier, 8, "mbarrier.inval", site);
}

void mbarrier_arrive(uint64_t* barrier, uint32_t expected_bytes, const Site& site) {
  const char* operation = expected_bytes ? "mbarrier.arrive.expect_tx" : "mbarrier.arrive";
  uint32_t address;
  Mbarrier& found = find(barrier, address, operation, site);
  count_arrival(found, address, operation, site);
  race::release(*current, found.clock);
  found.bytes += expected_bytes;
  --found.pending;
  settle(found, address);
}

void mbarrier_wait(uint64_t* barrier, uint32_t parity, const Site& site) {
  uint32_t address;
  Mbarrier& found = find(barrier, address, "mbarrier.try_wait", site);
  if (parity > 1) fail("mbarrier.try_wait at " + at(site) + ": a parity of " + std::to_string(parity));
  // Checked again afterwards: a thread that sleeps through two phases waits for the next, as a GPU's would.
  while ((found.phase & 1) == parity) {
    const uint64_t phase = found.phase;
    found.waiting.push_back(current);
    settle(found, address);
    if (found.phase == phase) block_current("mbarrier.try_wait", site);
  }
  race::acquire(*current, found.completed);
  for (uint32_t load : found.completed_loads) race::waited(*current, load);
}

void mbarrier_fence() {
  for (auto& [address, barrier] : current->block->mbarriers)
    if (barrier.initialiser == current) barrier.fenced = true;
}

void mbarrier_add_load(uint64_t* barrier, TensorLoad load, const Site& site) {
  uint32_t address;
  Mbarrier& found = find(barrier, address, "tensor load", site);
  if (!found.fenced)
    fail("tensor load at " + at(site) + ": no fence_mbarrier_init after the initialisation of " + name_of(address));
  if (found.pending == 0 && queued_bytes(found) + load.bytes > found.bytes)
    fail("tensor load at " + at(site) + ": " + std::to_string(queued_bytes(found) + load.bytes) +
         " bytes are on their way to " + name_of(address) + ", which expects " + std::to_string(found.bytes));
  found.loads.push_back(std::move(load));
  settle(found, address);
}

void mbarrier_defer_arrival(Thread& thread, uint32_t address, const Site& site) {
  Mbarrier& found = find(*thread.block, address, "cp.async.mbarrier.arrive", site);
  count_arrival(found, address, "cp.async.mbarrier.arrive", site);
  found.deferred.push_back(&thread);
  settle(found, address);
}

void mbarrier_deferred_arrived(Thread& thread, uint32_t address) {
  Mbarrier& found = find(*thread.block, address, "cp.async.mbarrier.arrive", thread.waits_at);
  race::release(thread, found.clock);
  found.deferred.erase(std::find(found.deferred.begin(), found.deferred.end(), &thread));
  --found.pending;
  // Inside settle the phase is completed there, after the last of them.
  if (found.deferred.empty() && found.waiting.empty()) settle(found, address);
}

void finish_mbarriers(Block& block) {
  for (const auto& [address, barrier] : block.mbarriers)
    if (!barrier.loads.empty())
      fail("block " + std::to_string(block.serial) + " ended with " + std::to_string(barrier.loads.size()) +
           " tensor loads in flight on " + name_of(address));
}

std::string describe_mbarriers(const Block& block) {
  std::string text;
  for (const auto& [address, barrier] : block.mbarriers)
    if (!barrier.waiting.empty())
      text += "\n  " + name_of(address) + ": phase " + std::to_string(barrier.phase) + " needs " +
              std::to_string(barrier.pending) + " of " + std::to_string(barrier.count) + " arrivals and expects " +
              std::to_string(barrier.bytes) + " bytes, of which " + std::to_string(queued_bytes(barrier)) +
              " are on their way";
  return text;
}

}  // namespace emu
