// Runs the blocks of a grid and, inside them, whichever thread is ready.
#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "barrier.h"
#include "block.h"

namespace emu {

Thread* current = nullptr;
dim3 grid_dim, block_dim;

namespace {

struct Grid {
  const char* kernel = nullptr;
  const std::function<void()>* body = nullptr;
  std::vector<std::unique_ptr<Block>> resident;
  Fiber main;
  std::exception_ptr error;
  Block* finished = nullptr;
};

Grid* grid = nullptr;
uint64_t random_state = 0x9e3779b97f4a7c15u;
int resident_limit = 1;

// A lane of the warp that can run, after the current one in cyclic order.
Thread* next_lane(Warp& warp) {
  const int from = current && current->warp == &warp ? current->lane + 1 : static_cast<int>(random_bits() & 31);
  const uint32_t rotated = std::rotr(warp.ready, from & 31);
  return warp.threads[(std::countr_zero(rotated) + from) & 31];
}

Thread* next_thread() {
  if (current && current->warp->ready && random_bits() % 8) return next_lane(*current->warp);
  const size_t blocks = grid->resident.size(), first_block = blocks > 1 ? random_bits() % blocks : 0;
  for (size_t b = 0; b < blocks; ++b) {
    auto& warps = grid->resident[(first_block + b) % blocks]->warps;
    const size_t first = random_bits() % warps.size();
    for (size_t w = 0; w < warps.size(); ++w)
      if (Warp& warp = warps[(first + w) % warps.size()]; warp.ready) return next_lane(warp);
  }
  return nullptr;
}

void switch_to(Thread* next) {
  Thread* self = current;
  if (next == self) return;
  current = next;
  fiber_switch(self ? self->fiber : grid->main, next ? next->fiber : grid->main);
}

[[noreturn]] void thread_main() {
  fiber_entered();
  try {
    (*grid->body)();
    Thread& self = *current;
    self.exited = true;
    self.warp->exited |= 1u << self.lane;
    self.warp->ready &= ~(1u << self.lane);
    lane_exited(self);
    barriers_thread_exited(self);
    if (--self.block->running == 0)
      grid->finished = self.block;
    else
      switch_to(next_thread());
  } catch (...) {
    grid->error = std::current_exception();  // of the C++ library, say; left before the switch to the OS thread
  }
  switch_to(nullptr);
  __builtin_unreachable();
}

std::unique_ptr<Block> start_block(uint32_t serial, size_t shared_bytes) {
  auto block = std::make_unique<Block>();
  block->serial = serial;
  block->index = dim3(serial % grid_dim.x, serial / grid_dim.x % grid_dim.y, serial / grid_dim.x / grid_dim.y);
  block->shared.allocate(shared_bytes);
  const int threads = static_cast<int>(block_dim.x * block_dim.y * block_dim.z);
  block->warps.resize((threads + 31) / 32);
  block->running = threads;
  for (int id = 0; id < threads; ++id) {
    auto thread = std::make_unique<Thread>();
    thread->id = id;
    thread->index = dim3(id % block_dim.x, id / block_dim.x % block_dim.y, id / block_dim.x / block_dim.y);
    thread->lane = id % 32;
    thread->block = block.get();
    Warp& warp = block->warps[id / 32];
    thread->warp = &warp;
    warp.block = block.get();
    warp.id = id / 32;
    warp.lanes |= 1u << thread->lane;
    warp.ready = warp.lanes;
    warp.threads[thread->lane] = thread.get();
    race::start(*thread, threads);
    fiber_start(thread->fiber, thread_main);
    block->threads.push_back(std::move(thread));
  }
  race::start(*block, shared_bytes);
  return block;
}

void stop_block(Block& block) {
  for (auto& thread : block.threads) fiber_stop(thread->fiber);
  block.shared.release();
}

// Groups the threads of a block that wait in the same place: "warp 0 lanes 0-15 in ldmatrix at ...".
std::string who_waits_where(const Block& block) {
  std::string text;
  for (const Warp& warp : block.warps) {
    uint32_t left = warp.lanes & ~warp.exited;
    if (warp.exited) text += "\n  warp " + std::to_string(warp.id) + " lanes " + lane_list(warp.exited) + ": returned";
    while (left) {
      const Thread& first = *warp.threads[std::countr_zero(left)];
      uint32_t same = 0;
      for (int lane = 0; lane < 32; ++lane)
        if (left >> lane & 1 && warp.threads[lane]->waits_in == first.waits_in &&
            warp.threads[lane]->waits_at.line() == first.waits_at.line())
          same |= 1u << lane;
      left &= ~same;
      text += "\n  warp " + std::to_string(warp.id) + " lanes " + lane_list(same) + ": " +
              (first.waits_in ? first.waits_in + (" at " + at(first.waits_at)) : "running");
    }
  }
  return text;
}

}  // namespace

uint32_t random_bits() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return static_cast<uint32_t>(random_state >> 32);
}

std::string at(const Site& site) {
  const char* slash = std::strrchr(site.file_name(), '/');
  return std::string(slash ? slash + 1 : site.file_name()) + ":" + std::to_string(site.line());
}

std::string describe(const Thread& thread) {
  const dim3 b = thread.block->index;
  return "block (" + std::to_string(b.x) + ", " + std::to_string(b.y) + ", " + std::to_string(b.z) + ") warp " +
         std::to_string(thread.warp->id) + " lane " + std::to_string(thread.lane);
}

void fail(const std::string& what) {
  const std::string where = current ? ", " + describe(*current) : "";
  const Error error("kernel " + std::string(grid->kernel) + where + ": " + what);
  if (!current) throw error;
  // Nothing is thrown through the kernel: calls put there by the compiler may not throw.
  grid->error = std::make_exception_ptr(error);
  switch_to(nullptr);
  __builtin_unreachable();
}

void make_ready(Thread& thread) { thread.warp->ready |= 1u << thread.lane; }

void block_current(const char* what, const Site& site) {
  Thread& self = *current;
  self.waits_in = what;
  self.waits_at = site;
  self.warp->ready &= ~(1u << self.lane);
  switch_to(next_thread());
  self.waits_in = nullptr;
}

void yield_current() { switch_to(next_thread()); }

void run_grid(const char* kernel, dim3 grid_size, dim3 block_size, size_t shared_bytes,
              const std::function<void()>& body) {
  Grid state;
  state.kernel = kernel;
  state.body = &body;
  grid = &state;
  const uint64_t threads = uint64_t{block_size.x} * block_size.y * block_size.z;
  if (threads == 0 || threads > 1024) fail("a block of " + std::to_string(threads) + " threads");
  if (shared_bytes > 227 * 1024) fail(std::to_string(shared_bytes) + " bytes of shared memory; at most 232448 exist");
  grid_dim = grid_size;
  block_dim = block_size;
  std::vector<uint32_t> order(size_t{grid_size.x} * grid_size.y * grid_size.z);
  std::iota(order.begin(), order.end(), 0u);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random_bits() % i]);

  size_t next = 0;
  auto finish = [&](Block& block) {
    finish_mbarriers(block);
    finish_wgmma(block);
    block.shared.check_redzones();
  };
  try {
    while (next < order.size() || !state.resident.empty()) {
      while (next < order.size() && static_cast<int>(state.resident.size()) < resident_limit)
        state.resident.push_back(start_block(order[next++], shared_bytes));
      Thread* thread = next_thread();
      if (!thread) {
        std::string text = "deadlock, no thread can go on";
        for (auto& block : state.resident)
          text += "\n block (" + std::to_string(block->index.x) + ", " + std::to_string(block->index.y) + ", " +
                  std::to_string(block->index.z) + ")" + who_waits_where(*block) + describe_mbarriers(*block);
        fail(text);
      }
      switch_to(thread);
      if (state.error) std::rethrow_exception(state.error);
      if (Block* done = std::exchange(state.finished, nullptr)) {
        finish(*done);
        stop_block(*done);
        std::erase_if(state.resident, [&](auto& block) { return block.get() == done; });
      }
    }
  } catch (...) {
    current = nullptr;
    for (auto& block : state.resident) stop_block(*block);
    race::finish();
    grid = nullptr;
    throw;
  }
  race::finish();
  grid = nullptr;
}

}  // namespace emu

extern "C" {

// Order of blocks and warps in the launches that follow; resident: blocks that run interleaved.
void emu_schedule(uint64_t seed, int resident) {
  emu::random_state = (seed + 1) * 0x9e3779b97f4a7c15u;
  for (int i = 0; i < 8; ++i) emu::random_bits();
  emu::resident_limit = resident;
}
}
