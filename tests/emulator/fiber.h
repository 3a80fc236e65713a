// Fibers: functions with stacks of their own that hand control to each other, within one OS thread.
#pragma once

#include <cstddef>

namespace emu {

constexpr size_t kStackBytes = 512 * 1024;

struct Fiber {
  void* context = nullptr;  // where the stack was left; with ucontext, a ucontext_t
  char* stack = nullptr;    // lowest usable address, above a page that faults; null for the OS thread's own
  void* sanitizer_stack = nullptr;
};

// Readies a fiber to run entry, which must never return. Stacks come from a pool.
void fiber_start(Fiber& fiber, void (*entry)());
void fiber_switch(Fiber& from, Fiber& to);
// To be called first thing in entry.
void fiber_entered();
// Gives the stack back; the fiber must not be running.
void fiber_stop(Fiber& fiber);

}  // namespace emu
