#include "race.h"

#if defined(EMU_RACE)

#include <array>
#include <unordered_map>

#include "block.h"
#include "race_runtime.h"

namespace emu::race {

namespace {

enum Kind : uint8_t { kRead = 0, kWrite = 1, kAtomic = 2, kAsync = 4 };  // kAsync: by tensor loads and wgmma
// As Record::thread: wgmma or a tensor load, in flight until someone waits; the tick is an index into `ends`.
constexpr uint16_t kInFlight = 0xffff;

struct Access {
  uint8_t kind;
  uint32_t place;
  uint32_t end;  // if asynchronous: index into `ends`
};

// When each thread of the block waited for the end of an access; ~0 while it has not.
using End = Ticks;

std::unordered_map<uintptr_t, std::vector<Record>> global_words;
std::unordered_map<uintptr_t, Blocks> released_through;  // what acquire-release operations on an address passed on
std::vector<End> ends;
std::map<std::array<uint64_t, 3>, uint32_t> end_of_group;  // by block, warp group, group

void join(Ticks& to, const Ticks& from) {
  if (to.size() < from.size()) to.resize(from.size());
  for (size_t i = 0; i < from.size(); ++i) to[i] = std::max(to[i], from[i]);
}

void join(Blocks& to, const Blocks& from) {
  for (const auto& [block, ticks] : from) {
    auto& mine = to[block];
    if (mine == ticks) continue;
    auto joined = std::make_shared<Ticks>(*ticks);
    if (mine) join(*joined, *mine);
    mine = std::move(joined);
  }
}

void join(Clock& to, const Clock& from) {
  join(to.seen, from.seen);
  join(to.fenced, from.fenced);
  join(to.blocks, from.blocks);
}

uint32_t& own_tick(Thread& thread) { return thread.clock.seen[thread.id]; }

// What a thread knows, in terms that other blocks understand.
Blocks knowledge(const Thread& thread) {
  Blocks all = thread.clock.blocks;
  all[thread.block->serial] = std::make_shared<Ticks>(thread.clock.seen);
  return all;
}

void learn(Thread& thread, const Blocks& blocks) {
  for (const auto& [block, ticks] : blocks)
    if (block == thread.block->serial) join(thread.clock.seen, *ticks);
  Blocks others = blocks;
  others.erase(thread.block->serial);
  join(thread.clock.blocks, others);
}

bool ordered(const Record& earlier, const Thread& thread) {
  const Ticks* seen = &thread.clock.seen;
  if (earlier.block != thread.block->serial) {
    auto it = thread.clock.blocks.find(earlier.block);
    if (it == thread.clock.blocks.end()) return false;
    seen = it->second.get();
  }
  if (earlier.thread == kInFlight) {
    const End& end = ends[earlier.tick];
    for (size_t i = 0; i < end.size(); ++i)
      if ((*seen)[i] >= end[i]) return true;
    return false;
  }
  return (earlier.block == thread.block->serial && earlier.thread == thread.id) ||
         (*seen)[earlier.thread] >= earlier.tick;
}

// Between the proxies order is not enough: a fence must lie in between.
bool fenced(const Record& earlier, const Access& access, const Thread& thread) {
  return !(access.kind & kAsync) || earlier.kind & kAsync || !(earlier.kind & kWrite) ||
         earlier.block != thread.block->serial || thread.clock.fenced[earlier.thread] >= earlier.tick;
}

[[noreturn]] void report(const Record& earlier, const Access& access, const Thread& thread, const void* p,
                         const char* problem) {
  const SharedMemory& shared = thread.block->shared;
  const auto word = [](uint8_t kind) {
    return std::string(kind & kAtomic ? "atomic" : kind & kWrite ? "write" : "read");
  };
  std::string who = "an operation in flight";
  if (earlier.thread != kInFlight)
    who = "warp " + std::to_string(earlier.thread / 32) + " lane " + std::to_string(earlier.thread % 32);
  if (earlier.block != thread.block->serial) who = "block " + std::to_string(earlier.block) + " " + who;
  const std::string where =
      shared.contains(p, 1) ? "byte " + std::to_string(static_cast<const char*>(p) - shared.data) + " of shared memory"
                            : "global address " + hex(p);
  fail("race: " + word(access.kind) + " (" + place_name(access.place) + ") by warp " + std::to_string(thread.warp->id) +
       " lane " + std::to_string(thread.lane) + " at " + where + problem + word(earlier.kind) + " (" +
       place_name(earlier.place) + ") by " + who);
}

void check(std::vector<Record>& word, uint8_t bytes, const Access& access, Thread& thread, const void* p) {
  const bool reads = !(access.kind & kWrite);
  for (size_t i = 0; i < word.size();) {
    const Record& earlier = word[i];
    const bool conflict =
        earlier.bytes & bytes && (!reads || earlier.kind & kWrite) && !(earlier.kind & access.kind & kAtomic);
    const bool in_order = ordered(earlier, thread);
    if (conflict && !in_order) report(earlier, access, thread, p, ", unordered with the earlier ");
    if (conflict && !fenced(earlier, access, thread))
      report(earlier, access, thread, p, " with no fence_proxy_async after the earlier ");
    // Whoever is ordered after this access is ordered after that one too, so it need not be kept.
    const bool covered = in_order && !(earlier.bytes & ~bytes) && (!reads || !(earlier.kind & kWrite)) &&
                         (earlier.kind & kAsync) == (access.kind & kAsync) && !(access.kind & kAtomic);
    if (covered) {
      word[i] = word.back();
      word.pop_back();
    } else {
      ++i;
    }
  }
  const bool in_flight = access.kind & kAsync;
  const Record mine{thread.block->serial,
                    in_flight ? access.end : own_tick(thread),
                    access.place,
                    in_flight ? kInFlight : static_cast<uint16_t>(thread.id),
                    bytes,
                    access.kind};
  for (const Record& there : word)
    if (there.block == mine.block && there.thread == mine.thread && there.tick == mine.tick &&
        there.kind == mine.kind && !(mine.bytes & ~there.bytes))
      return;
  word.push_back(mine);
}

void check_all(Thread& thread, const void* p, size_t size, const Access& access) {
  const SharedMemory& shared = thread.block->shared;
  const bool in_shared = shared.contains(p, 1);
  const auto first = reinterpret_cast<uintptr_t>(p) - (in_shared ? reinterpret_cast<uintptr_t>(shared.data) : 0);
  for (uintptr_t word = first / 4; word * 4 < first + size; ++word) {
    uint8_t bytes = 0;
    for (uintptr_t byte = std::max(first, word * 4); byte < std::min(first + size, word * 4 + 4); ++byte)
      bytes |= static_cast<uint8_t>(1u << byte % 4);
    check(in_shared ? thread.block->shadow.words[word] : global_words[word], bytes, access, thread,
          static_cast<const char*>(p) + (word * 4 > first ? word * 4 - first : 0));
  }
}

}  // namespace

void start(Thread& thread, int threads) {
  thread.clock = {};
  thread.clock.seen.resize(threads);
  thread.clock.fenced.resize(threads);
  own_tick(thread) = 1;
}

void start(Block& block, size_t shared_bytes) { block.shadow.words.assign((shared_bytes + 3) / 4, {}); }

void finish() {
  global_words.clear();
  released_through.clear();
  ends.clear();
  end_of_group.clear();
}

void plain(Thread& thread, const void* p, size_t size, bool writes, uint32_t place) {
  check_all(thread, p, size, {writes ? kWrite : kRead, place, 0});
}

void read(Thread& thread, const void* p, size_t size, const char* operation, const Site& site) {
  check_all(thread, p, size, {kRead, place(operation, site), 0});
}

void write(Thread& thread, const void* p, size_t size, const char* operation, const Site& site) {
  check_all(thread, p, size, {kWrite, place(operation, site), 0});
}

void atomic(Thread& thread, const void* p, size_t size, const char* operation, const Site& site) {
  check_all(thread, p, size, {kWrite | kAtomic, place(operation, site), 0});
}

uint32_t async_write(Thread& thread, const void* p, size_t size, const char* operation, const Site& site) {
  ends.emplace_back(thread.block->threads.size(), ~0u);
  const auto end = static_cast<uint32_t>(ends.size() - 1);
  check_all(thread, p, size, {kWrite | kAsync, place(operation, site), end});
  return end;
}

void waited(Thread& thread, uint32_t access) {
  uint32_t& tick = ends[access][thread.id];
  tick = std::min(tick, own_tick(thread));
}

void async_read(Thread& thread, const void* p, size_t size, uint64_t group, const Site& site) {
  const uint64_t warp_group = thread.warp->id / 4;
  auto [it, fresh] = end_of_group.try_emplace({thread.block->serial, warp_group, group}, ends.size());
  if (fresh) ends.emplace_back(thread.block->threads.size(), ~0u);
  check_all(thread, p, size, {kRead | kAsync, place("wgmma", site), it->second});
}

void wgmma_waited(Warp& warp, uint64_t groups) {
  for (uint64_t group = 0; group < groups; ++group) {
    auto it = end_of_group.find({warp.block->serial, static_cast<uint64_t>(warp.id / 4), group});
    if (it == end_of_group.end()) continue;
    for (int lane = 0; lane < 32; ++lane) waited(warp.thread(lane), it->second);
  }
}

void release(Thread& thread, Clock& clock) {
  join(clock, thread.clock);
  ++own_tick(thread);
}

void acquire(Thread& thread, const Clock& clock) { join(thread.clock, clock); }

void join_lanes(Warp& warp, uint32_t lanes) {
  Clock all;
  for (int lane = 0; lane < 32; ++lane)
    if (lanes >> lane & 1) release(warp.thread(lane), all);
  for (int lane = 0; lane < 32; ++lane)
    if (lanes >> lane & 1) acquire(warp.thread(lane), all);
}

void fence_proxy(Thread& thread) {
  join(thread.clock.fenced, thread.clock.seen);
  ++own_tick(thread);
}

void threadfence(Thread& thread) {
  thread.clock.released = knowledge(thread);
  ++own_tick(thread);
  learn(thread, std::exchange(thread.clock.read, {}));
}

void atomic_begin(Thread& thread, const void* p, size_t size, bool acquire, bool writes, const Site& site) {
  check_all(thread, p, size, {static_cast<uint8_t>(kAtomic | (writes ? kWrite : kRead)), place("atomic", site), 0});
  Blocks& through = released_through[reinterpret_cast<uintptr_t>(p)];
  if (acquire)
    learn(thread, through);
  else
    join(thread.clock.read, through);
}

void atomic_end(Thread& thread, const void* p, bool release) {
  Blocks& through = released_through[reinterpret_cast<uintptr_t>(p)];
  if (release) {
    join(through, knowledge(thread));
    ++own_tick(thread);
  } else {
    join(through, thread.clock.released);
  }
}

}  // namespace emu::race

#endif
